"""The loop over epochs, for everything that is trained so: a progress bar, an eye on the loss, a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from persim_gym.errors import TrainingDivergedError
from persim_gym.terminal import ProgressBar
from persim_gym.training.checkpoint import Checkpoint, Resumable


class EpochTrainer(Resumable, Protocol):
    """A training run that counts its epochs."""

    epoch: int
    """How many are done."""
    loss: float
    """Mean of the last one."""


def run_epochs(
    trainer: EpochTrainer,
    run_epoch: Callable[[], float],
    checkpoint: Checkpoint,
    *,
    epochs: int,
    title: str,
    progress: bool,
    advice: str,
    preparation: str = "",
) -> None:
    """Run the epochs that are left, after those of the checkpoint if there is one.

    The checkpoint is written from time to time and, as what follows may take long, after the last epoch.

    Args:
        trainer: just made.
        run_epoch: runs one epoch of it and returns the mean loss.
        checkpoint: of the run; whoever calls removes it.
        epochs: in all.
        title: of the bar, and of the error.
        progress: whether to show the bar.
        advice: what to do if training diverges.
        preparation: what the first epoch waits for, "" if for nothing.

    Raises:
        TrainingDivergedError: the loss is no longer finite.
        FileFormatError: the checkpoint is damaged, or of another run.

    """
    checkpoint.resume(trainer)
    with ProgressBar(title, epochs, progress, done=trainer.epoch) as bar:
        bar.complete(trainer.epoch, preparation)
        while trainer.epoch < epochs:
            loss = run_epoch()
            if not np.isfinite(loss):
                raise TrainingDivergedError(f"{title}: the loss is {loss} after epoch {trainer.epoch}; {advice}")
            bar.advance(f"loss {loss:.3e}")
            if checkpoint.due or trainer.epoch == epochs:
                checkpoint.write(trainer)
