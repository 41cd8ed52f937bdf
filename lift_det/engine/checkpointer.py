"""detectron2's checkpointer, with files that a kill cannot break, and with shapes named when they do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from lift_det.checkpoint import CheckpointError, read_checkpoint, read_state_dict, strip_prefix, write_atomically


class Checkpointer(DetectionCheckpointer):
    """Reads and writes what :class:`detectron2.checkpoint.DetectionCheckpointer` does, and reads safetensors.

    A checkpoint is written beside its place and moved there, so that a kill or a full disk leaves the last one whole.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` and points ``last_checkpoint`` at it."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As upstream's, atomically."""
        content = last_filename_basename.encode()
        write_atomically(os.path.join(self.save_dir, "last_checkpoint"), lambda file: file.write(content))

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith((".pkl", ".pyth")):
            return super()._load_file(filename)
        # Upstream's rules for these. It reads them with pickle.load and torch.load, which could run code.
        data = read_checkpoint(filename)
        if not isinstance(data, Mapping):
            raise CheckpointError(f"'{filename}' holds no state dict, but a {type(data).__name__}.")
        if filename.endswith(".pyth"):
            model = {k: v for k, v in data["model_state"].items() if not k.endswith("num_batches_tracked")}
            return {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if "model" in data:
            heuristics = "matching_heuristics=True" in self._parsed_url_during_load.query
            return {**data, "matching_heuristics": heuristics or bool(data.get("matching_heuristics", False))}
        data = data.get("blobs", data)
        model = {k: v for k, v in data.items() if not k.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        if f.endswith(".safetensors"):
            return read_state_dict(f)[0]
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # Upstream drops tensors of another shape before the model sees them; models that check what they load (see
        # CheckedLoading) are shown them first, so that their message can name both shapes.
        check = getattr(self.model, "check_state_dict", None)
        if check is not None and not checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            check(strip_prefix(checkpoint["model"], "module."))
        return super()._load_model(checkpoint)
