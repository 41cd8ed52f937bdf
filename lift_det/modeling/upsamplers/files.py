"""Files of trained upsamplers: what they hold, reading and writing them."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from lift_det.checkpoint import CheckpointError, load_strictly, read_state_dict, strip_prefix
from lift_det.files import write_atomically

from .base import UPSAMPLERS, FeatureUpsampler, settings_to_metadata

# In these a model may differ from a file: BatchNorm trained on one GPU is SyncBN on eight, or frozen.
_FREE = ("norm",)


class UpsamplerFile:
    """A trained upsampler on disk.

    Attributes:
        path: as it was given.
        name: in the registry.
        settings: the arguments of its class, as far as the file says.
        metadata: all that the file says.
        state_dict: its tensors.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Args:
            path: a file that :func:`save_lift` wrote, a checkpoint of LiFT's training or of a detector, or one of the
                paper's authors' ``.pth`` files.

        Raises:
            CheckpointError: no such file, or no upsampler of a registered kind in it.
        """
        self.path = os.fspath(path)
        state_dict, self.metadata = read_state_dict(path)
        self.state_dict = _lift_part(state_dict, named="upsampler" in self.metadata)
        self._held = _settings_from_names(self.state_dict) | _settings_from_metadata(self.metadata)
        self.name: str = self.metadata.get("upsampler") or _name_from_settings(self._held)
        if self.name not in UPSAMPLERS:
            held = f"an upsampler '{self.name}', which is not registered" if self.name else f"{list(state_dict)[:4]} …"
            raise CheckpointError(f"'{path}' is no LiFT: expected one of {sorted(UPSAMPLERS)}, found {held}.")
        self._arguments = {
            name: argument
            for name, argument in inspect.signature(UPSAMPLERS[self.name]).parameters.items()
            if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        }
        self.settings = {name: self._held[name] for name in self._arguments if name in self._held}

    def check(self, **stated: Any) -> None:
        """Compares what is stated elsewhere with what the file holds.

        Args:
            stated: ``name``, or arguments of the upsampler's class. None states nothing.

        Raises:
            CheckpointError: one contradicts the file; the message has both sides.
        """
        held = {**self._held, "name": self.name}
        lines = []
        for key, value in stated.items():
            if value is None or key in _FREE:
                continue
            if key in held and held[key] != value:
                lines.append(f"  stated {key}={value}, in the file {key}={held[key]}\n")
            elif key not in held and key not in self._arguments:
                lines.append(f"  stated {key}={value}, which {self.name} does not have\n")
        if lines:
            raise CheckpointError(
                f"'{self.path}' holds another upsampler ({self.name}) than is asked for:\n{''.join(lines)}"
                "Leave out what the file says by itself, or name another file. in_channels and patch_size are the "
                "ViT's: a LiFT belongs to the ViT that it was trained on."
            )

    def build(self, **stated: Any) -> FeatureUpsampler:
        """The upsampler with its weights, in training mode.

        Args:
            stated: arguments of its class that the file does not say; those that it says have to agree, but for the
                normalisation layer (``norm``). None states nothing.

        Raises:
            CheckpointError: a contradiction, or the file lacks an argument or tensors.
        """
        self.check(**stated)
        settings = self.settings | {k: v for k, v in stated.items() if k in self._arguments and v is not None}
        kind = UPSAMPLERS[self.name]
        required = [name for name, parameter in self._arguments.items() if parameter.default is parameter.empty]
        unknown = [name for name in (*required, *kind.stated_by_files) if name not in settings]
        if unknown:
            raise CheckpointError(
                f"'{self.path}' does not say {' and '.join(unknown)}: state what is missing, such as "
                "load_lift(path, patch_size=16, residual=False) for a file of the paper's authors "
                "(in a config lift.residual=False)."
            )
        upsampler = kind(**settings)
        self.load_into(upsampler)
        return upsampler

    def load_into(self, upsampler: FeatureUpsampler) -> None:
        """Loads the weights into an upsampler that was built with the file's settings.

        Raises:
            CheckpointError: it was built with others, or tensors do not fit.
        """
        self.check(name=upsampler.name, **upsampler.settings())
        load_strictly(
            upsampler,
            self.state_dict,
            self.path,
            hint=f"This upsampler has {upsampler.settings()}: it fits one ViT's width. Name the file that belongs to "
            "your ViT.",
        )
        upsampler.metadata = dict(self.metadata)
        upsampler.trained = True


def load_lift(
    path: str | os.PathLike, patch_size: int | None = None, residual: bool | None = None, **settings: Any
) -> FeatureUpsampler:
    """Loads a trained LiFT, or another registered upsampler; everything about it is read from the file.

    Args:
        path: see :class:`UpsamplerFile`.
        patch_size: needed where the file does not say it (the authors' do not).
        residual: needed there, too; the authors' files are ``False``.
        settings: other arguments of the upsampler's class that the file does not say.

    Returns:
        The upsampler, in evaluation mode, with ``.metadata`` as the file had it.

    Raises:
        CheckpointError: no such file, no upsampler in it, or settings that neither the file nor the caller gives.
    """
    return UpsamplerFile(path).build(patch_size=patch_size, residual=residual, **settings).eval()


def save_lift(lift: FeatureUpsampler, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Writes an upsampler as safetensors with its settings as metadata; the file is whole or not there.

    Args:
        lift: what to save. :func:`load_lift` reads it if its class is registered.
        path: ends in ``.safetensors``.
        metadata: more to say about it: the features, the data, the figures.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in lift.state_dict().items()}
    data = safetensors.torch.save(tensors, {**(metadata or {}), **settings_to_metadata(lift), "format": "lift_det"})
    write_atomically(path, lambda file: file.write(data))


def _lift_part(state_dict: Mapping[str, Tensor], named: bool) -> dict[str, Tensor]:
    """The upsampler's tensors of a state dict: all of it, or what a model keeps as ``backbone.lift``.

    Args:
        state_dict: of the file.
        named: whether the file names its kind, and so is none that DataParallel has put ``module.`` into.
    """
    state_dict = dict(state_dict) if named else strip_prefix(state_dict, "module.")
    if not any(name.startswith("backbone.") for name in state_dict):
        return state_dict
    prefix = "backbone.lift."
    return {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}


def _settings_from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    if "settings" in metadata:
        return json.loads(metadata["settings"])
    return {key: _value(text) for key, text in metadata.items()}  # of files from before November 2026


def _settings_from_names(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of a LiFT say by their names and shapes."""
    if "outc.weight" not in state_dict:
        return {}
    settings = {
        "in_channels": state_dict["outc.weight"].shape[0],
        "network": "trunk" if any(name.startswith("trunk.") for name in state_dict) else "paper",
        "pool": math.isqrt(state_dict["pool.prior"].shape[1]) if "pool.prior" in state_dict else 0,
        "normalize": "normalize.mean" in state_dict,
    }
    # the plain network's tensors are the same with and without the residual
    return settings | ({"residual": True} if _name_from_settings(settings) == "lift_plus" else {})


def _name_from_settings(settings: Mapping[str, Any]) -> str:
    """The kind of a LiFT in a file that does not name it; empty if it is none."""
    if "network" not in settings:
        return ""
    return "lift_plus" if settings["network"] == "trunk" or settings["pool"] or settings["normalize"] else "lift"


def _value(text: str) -> Any:
    """A single value of a file's metadata: numbers and truth values as such, everything else as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text
