"""Checkpoints that are written atomically and read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lift_det.checkpoint import CheckpointError, read_checkpoint, read_state_dict, strip_prefix
from lift_det.files import write_atomically, write_text_atomically


class Checkpointer(DetectionCheckpointer):
    """Drop-in for :class:`detectron2.checkpoint.DetectionCheckpointer` that also reads safetensors.

    If writing fails or the process is killed, the previous checkpoint is intact. Pickled code is never run.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` and points ``last_checkpoint`` at it."""
        if self.save_dir and self.save_to_disk:
            states = {key: value.state_dict() for key, value in self.checkpointables.items()}
            self._write(name, {"model": self.model.state_dict(), **states, **kwargs})
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, model: nn.Module, **metadata: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` with a model's weights and ``metadata``, without ``last_checkpoint``."""
        if self.save_dir and self.save_to_disk:
            model = model.module if isinstance(model, DistributedDataParallel) else model
            self._write(name, {"model": model.state_dict(), **metadata})

    def _write(self, name: str, data: dict[str, Any]) -> None:
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            write_atomically(path, lambda file: torch.save(data, file))
        except (OSError, RuntimeError) as error:
            # torch.save raises a RuntimeError while it handles the OSError
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            last = f"'{self.get_checkpoint_file()}'" if self.has_checkpoint() else "the beginning"
            raise OSError(
                cause.errno,
                f"{cause.strerror}: the checkpoint '{path}' could not be written. Make space on that disk "
                f"(train.checkpointer.max_to_keep keeps fewer checkpoints); --resume then continues from {last}.",
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes ``last_checkpoint`` atomically."""
        write_text_atomically(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith((".pkl", ".pyth")):
            return super()._load_file(filename)
        # Upstream reads these files with pickle.load and torch.load, which can run code. The rest is as upstream.
        data = read_checkpoint(filename)
        if not isinstance(data, Mapping):
            raise CheckpointError(f"'{filename}' holds a {type(data).__name__}, expected a state dict.")
        if filename.endswith(".pyth"):
            model = {k: v for k, v in data["model_state"].items() if not k.endswith("num_batches_tracked")}
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if "model" in data:
            heuristics = "matching_heuristics=True" in self._parsed_url_during_load.query
            return {**data, "matching_heuristics": heuristics or bool(data.get("matching_heuristics", False))}
        model = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_state_dict(f)[0] if f.endswith(".safetensors") else read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # Upstream drops tensors of a wrong shape before the model sees them. CheckedLoading models check them first, so
        # that the error names both shapes.
        check = getattr(self.model, "check_state_dict", None)
        if check is not None and not checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            check(strip_prefix(checkpoint["model"], "module."))
        return super()._load_model(checkpoint)
