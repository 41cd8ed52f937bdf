"""Reading and writing files of trained upsamplers."""

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

# Settings in which a model may differ from its file: BatchNorm may become SyncBN or FrozenBN.
_MAY_DIFFER = ("norm",)
#: old names of settings, in files and configs of earlier versions
RENAMED_SETTINGS = {"keep_length": "preserve_norm", "normalize": "standardize", "pool": "attention_kernel"}


class UpsamplerFile:
    """The file of a trained upsampler, with its registered ``name``, ``settings``, ``metadata`` and ``state_dict``."""

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Args:
            path: see :func:`load_lift`.

        Raises:
            CheckpointError: the file cannot be read, or holds no registered upsampler.
        """
        self.path = os.fspath(path)
        state_dict, self.metadata = read_state_dict(path)
        if "upsampler" not in self.metadata:  # DataParallel's prefix; a named upsampler may have a part `module`
            state_dict = strip_prefix(state_dict, "module.")
        if any(name.startswith("backbone.") for name in state_dict):
            prefix = "backbone.lift."
            state_dict = {name[len(prefix) :]: v for name, v in state_dict.items() if name.startswith(prefix)}
        self.state_dict = state_dict
        name, self._stated = _recognise_lift(state_dict)
        self.name: str = self.metadata.get("upsampler", name)
        if self.name not in UPSAMPLERS:
            found = f"'{self.name}', which is not registered" if self.name else f"the tensors {list(state_dict)[:4]}"
            raise CheckpointError(f"'{path}' is no LiFT: expected one of {sorted(UPSAMPLERS)}, found {found}.")
        self._parameters = {
            name: parameter
            for name, parameter in inspect.signature(UPSAMPLERS[self.name]).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        for key, value in _read_settings(self.metadata).items():
            self._stated[key if key in self._parameters else RENAMED_SETTINGS.get(key, key)] = value
        self.settings = {key: value for key, value in self._stated.items() if key in self._parameters}

    def check(self, **arguments: Any) -> None:
        """Raises CheckpointError if ``name`` or other arguments contradict the file; None is never a contradiction."""
        stated = {**self._stated, "name": self.name}
        lines = []
        for key, value in arguments.items():
            if value is None or key in _MAY_DIFFER:
                continue
            if key in stated and stated[key] != value:
                lines.append(f"  given {key}={value}, in the file {key}={stated[key]}\n")
            elif key not in stated and key not in self._parameters:
                lines.append(f"  given {key}={value}, which {self.name} does not have\n")
        if lines:
            raise CheckpointError(
                f"'{self.path}' holds another upsampler ({self.name}):\n{''.join(lines)}"
                "Leave these arguments out, or use another file. in_channels and patch_size are those of the ViT."
            )

    def build(self, **arguments: Any) -> FeatureUpsampler:
        """Builds the upsampler with its weights, in training mode.

        Args:
            arguments: of its class. Those that the file states have to agree with it, except ``norm``.

        Raises:
            CheckpointError: arguments contradict the file, or arguments or tensors are missing.
        """
        self.check(**arguments)
        settings = self.settings | {k: v for k, v in arguments.items() if k in self._parameters and v is not None}
        kind = UPSAMPLERS[self.name]
        required = [name for name, parameter in self._parameters.items() if parameter.default is parameter.empty]
        missing = [name for name in (*required, *kind.stated_by_files) if name not in settings]
        if missing:
            raise CheckpointError(
                f"'{self.path}' does not state {' and '.join(missing)}. For a file of the paper's authors use "
                "load_lift(path, patch_size=16, residual=False), in a config lift.residual=False."
            )
        upsampler = kind(**settings)
        self.load_into(upsampler)
        return upsampler

    def load_into(self, upsampler: FeatureUpsampler) -> None:
        """Loads the weights into an upsampler; raises CheckpointError if its settings or tensors do not match."""
        settings = upsampler.settings()
        self.check(name=upsampler.name, **settings)
        load_strictly(upsampler, self.state_dict, self.path, hint=f"Settings of this upsampler: {settings}.")
        upsampler.metadata = dict(self.metadata)
        upsampler.trained = True


def load_lift(
    path: str | os.PathLike, patch_size: int | None = None, residual: bool | None = None, **settings: Any
) -> FeatureUpsampler:
    """Loads a trained LiFT or another registered upsampler.

    Args:
        path: a file of :func:`save_lift`, a checkpoint of LiFT's training or of a detector, or a ``.pth`` file of the
            paper's authors.
        patch_size, residual: only needed for the authors' files, which do not state them; ``residual`` is False there.
        settings: other arguments of the upsampler's class that the file does not state.

    Returns:
        The upsampler in evaluation mode, with the file's metadata in ``.metadata``.

    Raises:
        CheckpointError: the file cannot be read, holds no upsampler, or does not state all settings.
    """
    return UpsamplerFile(path).build(patch_size=patch_size, residual=residual, **settings).eval()


def save_lift(lift: FeatureUpsampler, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Saves an upsampler of a registered class with its settings, for :func:`load_lift`. The write is atomic.

    Args:
        lift: the upsampler.
        path: a ``.safetensors`` file.
        metadata: further metadata, such as the features and the data that the upsampler was trained on.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in lift.state_dict().items()}
    data = safetensors.torch.save(tensors, {**(metadata or {}), **settings_to_metadata(lift), "format": "lift_det"})
    write_atomically(path, lambda file: file.write(data))


def _recognise_lift(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Infers the name and settings of a LiFT from its tensors. The name is empty if it is not a LiFT."""
    if "outc.weight" not in state_dict:
        return "", {}
    settings: dict[str, Any] = {"in_channels": state_dict["outc.weight"].shape[0]}
    parts = {name.split(".")[0] for name in state_dict}
    if not parts & {"trunk", "pool", "normalize"}:
        return "lift", settings
    settings["network"] = "trunk" if "trunk" in parts else "paper"
    settings["attention_kernel"] = math.isqrt(state_dict["pool.prior"].shape[1]) if "pool" in parts else 0
    settings |= {"standardize": "normalize" in parts, "residual": True}
    return "lift_plus", settings


def _read_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    if "settings" in metadata:
        try:
            return dict(json.loads(metadata["settings"]))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The settings in the metadata of a LiFT's file cannot be read: {error}.") from error
    settings: dict[str, Any] = {}
    for key, text in metadata.items():  # files from before November 2026 have a key for each setting
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings
