"""A progress bar for terminals, where the log goes to a file."""

from __future__ import annotations

from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm


class ProgressBar(HookBase):
    """Shows iterations, the time left and the loss on standard error, on the main process alone."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def before_train(self) -> None:
        trainer = self.trainer
        self._bar = tqdm(
            total=trainer.max_iter, initial=trainer.start_iter, unit="step", disable=not comm.is_main_process()
        )

    def after_step(self) -> None:
        losses = self.trainer.storage.histories().get("total_loss")
        if losses is not None:
            self._bar.set_postfix_str(f"loss {losses.median(20):.4f}", refresh=False)
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.set_description("evaluating")

    def after_train(self) -> None:
        if self._bar is not None:  # another hook may have failed before this one began
            self._bar.close()
