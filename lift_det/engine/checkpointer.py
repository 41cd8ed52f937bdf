"""detectron2's checkpointer, with files that a kill cannot break, and with shapes named when they do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from lift_det.checkpoint import CheckpointError, read_checkpoint, read_state_dict, strip_prefix
from lift_det.files import write_atomically


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
        path = self._write(name, data)
        self.tag_last_checkpoint(os.path.basename(path))

    def save_weights(self, name: str, **facts: Any) -> None:
        """Writes ``<save_dir>/<name>.pth`` with the weights and ``facts`` alone; no resume starts from it."""
        if self.save_dir and self.save_to_disk:
            self._write(name, {"model": self.model.state_dict(), **facts})

    def _write(self, name: str, data: dict[str, Any]) -> str:
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        try:
            write_atomically(path, lambda file: torch.save(data, file))
        except (OSError, RuntimeError) as error:
            # torch.save raises an error of its zip file over the disk's
            disks = error if isinstance(error, OSError) else error.__context__
            if not isinstance(disks, OSError):
                raise
            last = f"'{self.get_checkpoint_file()}', which is whole" if self.has_checkpoint() else "the beginning"
            raise OSError(
                disks.errno,
                f"{disks.strerror}: the checkpoint '{path}' could not be written. Make space on that disk (older "
                f"checkpoints can go, train.checkpointer.max_to_keep keeps fewer); --resume then goes on from {last}.",
            ) from error
        return path

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
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # Upstream drops tensors of another shape before the model sees them; models that check what they load (see
        # CheckedLoading) are shown them first, so that their message can name both shapes.
        check = getattr(self.model, "check_state_dict", None)
        if check is not None and not checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            check(strip_prefix(checkpoint["model"], "module."))
        return super()._load_model(checkpoint)
