"""Files of trained upsamplers."""

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

# A model may differ from its file in these: BatchNorm trained on one GPU is SyncBN on eight, or frozen.
_MAY_DIFFER = ("norm",)
# Settings of LiFT and LiFTPlus as files of earlier versions name them.
_RENAMED = {"keep_length": "preserve_norm", "normalize": "standardize", "pool": "attention_kernel"}


class UpsamplerFile:
    """A trained upsampler on disk: ``name`` in the registry, ``settings``, ``metadata`` and ``state_dict``."""

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Args:
            path: a file of :func:`save_lift`, a checkpoint of LiFT's training or of a detector, or a ``.pth`` file of
                the paper's authors.

        Raises:
            CheckpointError: the file is missing, or has no upsampler of a registered kind.
        """
        self.path = os.fspath(path)
        state_dict, self.metadata = read_state_dict(path)
        if "upsampler" not in self.metadata:  # otherwise `module` may be a part of the upsampler
            state_dict = strip_prefix(state_dict, "module.")
        if any(name.startswith("backbone.") for name in state_dict):
            prefix = "backbone.lift."
            state_dict = {name[len(prefix) :]: v for name, v in state_dict.items() if name.startswith(prefix)}
        self.state_dict = state_dict
        name, self.settings = _recognise_lift(state_dict)
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
            key = key if key in self._parameters else _RENAMED.get(key, key)
            if key in self._parameters:
                self.settings[key] = value

    def check(self, **stated: Any) -> None:
        """Raises CheckpointError if ``name`` or other arguments contradict the file; None states nothing."""
        held = {**self.settings, "name": self.name}
        lines = []
        for key, value in stated.items():
            if value is None or key in _MAY_DIFFER:
                continue
            if key in held and held[key] != value:
                lines.append(f"  stated {key}={value}, in the file {key}={held[key]}\n")
            elif key not in held and key not in self._parameters:
                lines.append(f"  stated {key}={value}, which {self.name} does not have\n")
        if lines:
            raise CheckpointError(
                f"'{self.path}' holds another upsampler ({self.name}):\n{''.join(lines)}"
                "Leave out what the file states, or use another file. in_channels and patch_size are the ViT's."
            )

    def build(self, **stated: Any) -> FeatureUpsampler:
        """Builds the upsampler with its weights, in training mode.

        Args:
            stated: arguments of its class that the file lacks. Others have to agree with the file, except ``norm``.

        Raises:
            CheckpointError: a contradiction, or arguments or tensors are missing.
        """
        self.check(**stated)
        settings = self.settings | {k: v for k, v in stated.items() if k in self._parameters and v is not None}
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
        """Loads the weights into an upsampler; raises CheckpointError if its settings or tensors differ."""
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
        path: see :class:`UpsamplerFile`.
        patch_size, residual: needed for the authors' files, which do not state them; ``residual`` is False there.
        settings: other arguments of the class that the file lacks.

    Returns:
        The upsampler in evaluation mode, with the file's metadata in ``.metadata``.

    Raises:
        CheckpointError: no such file, no upsampler in it, or settings are missing.
    """
    return UpsamplerFile(path).build(patch_size=patch_size, residual=residual, **settings).eval()


def save_lift(lift: FeatureUpsampler, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Saves an upsampler with its settings, atomically. :func:`load_lift` loads it if its class is registered.

    Args:
        lift: the upsampler.
        path: a ``.safetensors`` file.
        metadata: further metadata, such as the features and the data it was trained on.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in lift.state_dict().items()}
    data = safetensors.torch.save(tensors, {**(metadata or {}), **settings_to_metadata(lift), "format": "lift_det"})
    write_atomically(path, lambda file: file.write(data))


def _recognise_lift(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and settings of a LiFT according to the names and shapes of its tensors; an empty name if it is none."""
    if "outc.weight" not in state_dict:
        return "", {}
    settings: dict[str, Any] = {"in_channels": state_dict["outc.weight"].shape[0]}
    parts = {name.split(".")[0] for name in state_dict}
    if not parts & {"trunk", "pool", "normalize"}:
        return "lift", settings
    settings["network"] = "trunk" if "trunk" in parts else "paper"
    settings["attention_kernel"] = math.isqrt(state_dict["pool.prior"].shape[1]) if "pool" in parts else 0
    settings["standardize"] = "normalize" in parts
    return "lift_plus", settings


def _read_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    if "settings" in metadata:
        try:
            return dict(json.loads(metadata["settings"]))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The settings in the metadata of a LiFT's file cannot be read: {error}.") from error
    settings: dict[str, Any] = {}
    for key, text in metadata.items():  # files of before November 2026: a setting for each key
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings
