"""One training run of factorized networks, of the dynamics or of an outcome: from initial weights to arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from persim_gym.config import PerSimConfig
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.training.epochs import run_epochs
from persim_gym.training.trainer import DeviceLog, Trainer
from persim_gym.types import IntArray


@dataclass(frozen=True)
class Runner:
    """What all training runs of one `persim_gym.fit` have in common."""

    seed: int
    """Of the initial weights and the batches, the same in every run."""
    device: torch.device
    threads: int
    progress: bool

    def train(
        self,
        shapes: dict[str, tuple[tuple[int, ...], int]],
        config: PerSimConfig,
        columns: DeviceLog,
        rows: IntArray,
        checkpoint: Checkpoint,
        *,
        title: str,
        advice: str,
        logistic: bool = False,
    ) -> tuple[dict[str, np.ndarray], float]:
        """Return the parameters after all epochs over some rows of the columns, and the last epoch's mean loss.

        Args:
            shapes: shape and fan-in of the parameters (`persim_gym.model.parameters.parameter_shapes`).
            config: the settings.
            columns: inputs, targets and actions.
            rows: those to learn from.
            checkpoint: of the run; whoever calls removes it.
            title: of the progress bar, and of the error.
            advice: what to do if training diverges.
            logistic: whether the targets are 0 and 1 and the outputs their logits.

        Raises:
            TrainingDivergedError: the loss is no longer finite.
            FileFormatError: the checkpoint is damaged, or of another run.

        """
        trainer = Trainer(shapes, config, self.seed, self.device, self.threads, logistic=logistic)
        run_epochs(
            trainer,
            partial(trainer.run_epoch, columns, torch.as_tensor(rows, device=self.device)),
            checkpoint,
            epochs=config.epochs,
            title=title,
            progress=self.progress,
            advice=advice,
            preparation=trainer.preparation,
        )
        return {name: tensor.cpu().numpy().copy() for name, tensor in trainer.parameters.items()}, trainer.loss
