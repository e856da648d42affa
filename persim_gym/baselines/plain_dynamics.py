"""Dynamics of whoever is in a log, learned by a few networks whose disagreement tells what they know (for MOReL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.baselines.layers import Scaling, action_features, initial_layers, mlp
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import TrainingDivergedError
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.tasks import Task
from persim_gym.threads import single_thread
from persim_gym.training.checkpoint import Checkpoint, network_state, restore_network
from persim_gym.training.epochs import run_epochs
from persim_gym.training.graphs import RecordedStep
from persim_gym.types import FloatArray

_EVALUATION_BATCH = 8192
_MIN_TO_VALIDATE = 200


@dataclass(frozen=True)
class PlainDynamics:
    """M networks [state, action] -> standardized change of state; nothing tells them who acts."""

    task: Task
    parameters: Mapping[str, Tensor]
    """"net.0.weight" …, (M, outputs, inputs)."""
    states: Scaling
    changes: Scaling

    def predict(self, observations: FloatArray, actions: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """Return the members' mean next observation (B, D) float32, and their discrepancy (B,).

        The discrepancy is the largest distance between two members' predictions, max_{i,j} ‖f_i − f_j‖₂, in units of
        the standardized change.
        """
        device = self.states.mean.device
        following, discrepancies = np.empty(observations.shape, np.float32), np.empty(len(observations), np.float32)
        with torch.inference_mode():
            for start in range(0, len(observations), _EVALUATION_BATCH):
                rows = slice(start, start + _EVALUATION_BATCH)
                states = torch.tensor(np.asarray(observations[rows], np.float32).T, device=device)
                moves = action_features(self.task, actions[rows]).to(device)
                members = len(self.parameters["net.0.weight"])
                inputs = torch.cat([self.states(states), moves]).expand(members, -1, -1)
                outputs = mlp(self.parameters, "net", inputs, torch.relu)
                change = outputs.mean(0) * self.changes.scale + self.changes.mean
                following[rows] = (states + change).T.cpu().numpy()
                discrepancies[rows] = discrepancy(outputs).cpu().numpy()
        return following, discrepancies


def discrepancy(outputs: Tensor) -> Tensor:
    """Return max_{i,j} ‖f_i − f_j‖₂ (B,) of members' outputs (M, D, B)."""
    largest = torch.zeros(outputs.shape[2], device=outputs.device)
    for index in range(1, len(outputs)):
        distances = (outputs[index:] - outputs[:-index]).square().sum(1).sqrt()
        largest = torch.maximum(largest, distances.amax(0))
    return largest


def fit_plain_dynamics(
    log: Trajectories,
    task: Task,
    *,
    hidden: tuple[int, ...],
    num_members: int = 4,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    validation_fraction: float = 0.1,
    max_gradient_steps: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> PlainDynamics:
    """Train the networks on a log, each with batches of its own; the weights of each member's best epoch are kept.

    With fewer than 200 transitions there is no validation, and the last weights are kept. The checkpoint is written
    after the last epoch, too, so that the same call then only reads it; whoever calls removes it.
    """
    held = int(validation_fraction * log.num_transitions) if log.num_transitions >= _MIN_TO_VALIDATE else 0
    if max_gradient_steps is not None:
        epochs = max(1, min(epochs, max_gradient_steps // -(-(log.num_transitions - held) // batch_size)))
    advice = f"lower learning_rate={learning_rate}"
    trainer = _Trainer(
        log,
        task,
        hidden=hidden,
        num_members=num_members,
        held=held,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=torch.device("cpu") if device is None else device,
    )
    with single_thread():
        run_epochs(
            trainer,
            trainer.run_epoch,
            checkpoint or Checkpoint(None, {}),
            epochs=epochs,
            title="dynamics",
            progress=progress,
            advice=advice,
        )
        best = trainer.best_weights()
    if not best.finite:
        raise TrainingDivergedError(f"the networks' outputs are not finite; {advice}")
    return PlainDynamics(task, best.parameters, trainer.states, trainer.changes)


class _Trainer:
    """The parameters, the best of them so far, the optimizer and the random generator of one training run."""

    def __init__(
        self,
        log: Trajectories,
        task: Task,
        *,
        hidden: tuple[int, ...],
        num_members: int,
        held: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self._batch_size, self._num_members, self._device = batch_size, num_members, device
        self._generator = torch.Generator(device).manual_seed(seed)
        states = torch.tensor(np.asarray(log.observations, np.float32).T.copy(), device=device)
        changes = torch.tensor(np.asarray(log.next_observations, np.float32).T.copy(), device=device) - states
        self.states, self.changes = Scaling.of(states), Scaling.of(changes)
        moves = action_features(task, log.actions).to(device)
        self._inputs = torch.cat([self.states(states), moves]).T.contiguous()
        self._targets = self.changes(changes).T.contiguous()
        sizes = (self._inputs.shape[1], *hidden, self._targets.shape[1])
        layers = initial_layers("net", num_members, sizes, self._generator, device)
        self.parameters = {name: tensor.requires_grad_() for name, tensor in layers.items()}
        self._optimizer = torch.optim.Adam(
            self.parameters.values(), lr=learning_rate, fused=True, capturable=device.type == "cuda"
        )
        order = self._permutation(len(self._inputs))
        self._held_out, self._kept = order[:held], order[held:]
        self._best = _BestWeights(self.parameters)
        self._total = torch.zeros((), device=device)
        self._step = RecordedStep(self._descend)
        self.epoch, self.loss = 0, float("nan")

    def run_epoch(self) -> float:
        """Visit every kept transition once with every member; return the members' mean loss."""
        kept = self._kept
        self._total.zero_()
        shuffled = torch.stack([kept[self._permutation(len(kept))] for _ in range(self._num_members)])
        for rows in shuffled.split(self._batch_size, dim=1):
            self._step(rows)
        if len(self._held_out):
            self._best.offer(self.parameters, self._errors_on(self._held_out))
        self.epoch += 1
        self.loss = float(self._total) / len(kept) / self._num_members
        return self.loss

    def best_weights(self) -> _BestWeights:
        """Return each member's best weights, which are its last if nothing is held out."""
        if not len(self._held_out):
            self._best.offer(self.parameters, self._errors_on(self._kept))
        return self._best

    def state(self) -> dict[str, Tensor]:
        """Return, with `progress`, everything that the epochs to come depend on."""
        kept = network_state(self.parameters, self._optimizer, self._generator)
        return kept | with_prefix("best", self._best.parameters) | {"best_errors": self._best.errors}

    def progress(self) -> dict[str, Any]:
        """Return how far the run has come."""
        return {"epoch": self.epoch, "loss": self.loss}

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state` and `progress` returned."""
        restore_network(self.parameters, self._optimizer, self._generator, tensors)
        for name, tensor in without_prefix("best", tensors).items():
            self._best.parameters[name].copy_(tensor)
        self._best.errors.copy_(tensors["best_errors"])
        self.epoch, self.loss = int(progress["epoch"]), float(progress["loss"])

    def _descend(self, rows: Tensor) -> None:
        """Take a step with a batch of every member (M, B), and add the loss of its transitions up."""
        self._optimizer.zero_grad(set_to_none=False)
        loss = self._member_losses(rows).sum()
        loss.backward()
        self._optimizer.step()
        self._total.add_(loss.detach(), alpha=rows.shape[1])

    def _permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator, device=self._device)

    def _member_losses(self, rows: Tensor) -> Tensor:
        """Return the losses (M,) of rows (M, B)."""
        outputs = mlp(self.parameters, "net", self._inputs[rows].transpose(1, 2), torch.relu)
        return (outputs - self._targets[rows].transpose(1, 2)).square().mean(dim=(1, 2))

    @torch.no_grad()
    def _errors_on(self, rows: Tensor) -> Tensor:
        """Return the losses (M,) of rows (n,)."""
        parts = [
            self._member_losses(part.expand(self._num_members, -1)) * len(part)
            for part in rows.split(_EVALUATION_BATCH)
        ]
        return torch.stack(parts).sum(0) / len(rows)


class _BestWeights:
    """The weights with which each of M members has erred least."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        first = next(iter(parameters.values()))
        self.errors = torch.full((len(first),), torch.inf, device=first.device)
        """(M,)."""

    @torch.no_grad()
    def offer(self, parameters: Mapping[str, Tensor], errors: Tensor) -> None:
        """Keep the weights of the members whose errors (M,) are the lowest so far."""
        better = errors < self.errors
        self.errors = torch.where(better, errors, self.errors)
        for name, tensor in parameters.items():
            self.parameters[name][better] = tensor[better]

    @property
    def finite(self) -> bool:
        """Whether every member has had an error that is a finite number."""
        return bool(self.errors.isfinite().all())
