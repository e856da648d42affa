"""One training run: the log on the device, its batches, and the optimizer of all members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

from persim_gym.config import ADAM_BETAS, ADAM_EPSILON, PerSimConfig
from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import matmul_precision
from persim_gym.model.factorization import initialize_layer, member_rows
from persim_gym.model.normalizer import Normalizer
from persim_gym.simulators.networks.kernels import jit
from persim_gym.tasks import Task
from persim_gym.threads import run_in_threads
from persim_gym.training.gradients import loss_and_gradients
from persim_gym.training.graphs import RecordedStep

_FLOATS_PER_CACHE_LINE = 16
_EVALUATION_BATCH = 8192
_GATHERED_AT_ONCE = 1024
"""Transitions of a member that are fetched together, for several small batches."""


@dataclass(frozen=True)
class DeviceLog:
    """A log on the device, one row per transition, with everything that training needs of it."""

    numbers: Tensor
    """(T, I + O): standardized inputs and targets, side by side, so that one gather fetches both; of the dynamics they
    are state and change, D each."""
    agents: Tensor
    """(T,) int64."""
    actions: Tensor
    """(T,) int64 or (T, A) float32."""
    num_inputs: int
    """I."""
    num_agents: int
    num_actions: int

    @classmethod
    def of(cls, log: Trajectories, task: Task, normalizer: Normalizer, device: torch.device) -> DeviceLog:
        states, changes = normalizer.standardized(log.observations, log.next_observations)
        numbers = np.concatenate([states, changes], axis=1).astype(np.float32)
        return cls(
            torch.as_tensor(numbers, device=device),
            torch.as_tensor(np.asarray(log.agents, np.int64), device=device),
            torch.as_tensor(np.array(log.actions), device=device),
            states.shape[1],
            log.num_agents,
            task.action_size,
        )

    def with_actions(self, actions: np.ndarray) -> DeviceLog:
        """Return the same transitions with their actions written otherwise."""
        return replace(self, actions=torch.as_tensor(np.array(actions), device=self.actions.device))

    def batches(self, rows: Tensor, members: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield the transitions of rows (n,), the same for every member, some thousand at once."""
        for part in rows.split(_EVALUATION_BATCH):
            yield self.gather(part.expand(members, -1)).batch(0, len(part))

    def gather(self, rows: Tensor) -> MemberBatches:
        """Return every member's own transitions (M, n)."""
        members, count = rows.shape
        flat = rows.reshape(-1)
        numbers = self.numbers.index_select(0, flat).view(members, count, -1).transpose(1, 2).contiguous()
        agents = member_rows(self.agents.index_select(0, flat).view(members, count), members, self.num_agents)
        actions = self.actions.index_select(0, flat)
        if actions.dim() == 1:
            actions = member_rows(actions.view(members, count), members, self.num_actions)
        else:
            actions = actions.view(members, count, -1).transpose(1, 2).contiguous()
        states, changes = numbers[:, : self.num_inputs], numbers[:, self.num_inputs :]
        return MemberBatches(states, changes, agents, actions)


@dataclass(frozen=True)
class MemberBatches:
    """Transitions of every member, in its own order."""

    states: Tensor
    """(M, I, n)."""
    changes: Tensor
    """(M, O, n)."""
    agents: Tensor
    """(M, n) rows of the agent table (`member_rows`)."""
    actions: Tensor
    """(M, n) rows of the action table, or (M, A, n)."""

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return states (M, I, B), agent rows (M·B,), actions (M·B,) or (M, A, B), and changes (M, O, B) of a part."""
        actions = self.actions[..., start:stop]
        return (
            self.states[..., start:stop],
            self.agents[:, start:stop].reshape(-1),
            actions.reshape(-1) if actions.dim() == 2 else actions,
            self.changes[..., start:stop],
        )


class Trainer:
    """The parameters, the optimizer and the random generator of one training run."""

    def __init__(
        self,
        shapes: dict[str, tuple[tuple[int, ...], int]],
        config: PerSimConfig,
        seed: int,
        device: torch.device,
        threads: int = 1,
        *,
        logistic: bool = False,
    ) -> None:
        self.config, self._threads, self._logistic = config, threads, logistic
        # A small network's epochs are compiled where numba is; it has an action table and one hidden layer.
        small = len(config.state_hidden) == 1 and "action.weight" in shapes
        self._compiled = small and device.type == "cpu" and jit.available()
        self._recorded: tuple[DeviceLog, int, RecordedStep] | None = None
        self.epoch, self.loss = 0, float("nan")
        self.generator = torch.Generator(device).manual_seed(seed)
        count = sum(_padded(shape) for shape, _ in shapes.values())
        self.flat, self.flat_gradient = torch.zeros(count, device=device), torch.zeros(count, device=device)
        self.first_moment, self.second_moment = torch.zeros(count, device=device), torch.zeros(count, device=device)
        self.step = torch.zeros((), device=device)
        self._rate, self._total = torch.zeros((), device=device), torch.zeros(config.num_members, device=device)
        self._shapes = shapes
        self.parameters = _views(self.flat, shapes)
        self.gradients = _views(self.flat_gradient, shapes)
        for name, (_, fan_in) in shapes.items():
            initialize_layer(self.parameters[name], fan_in, self.generator)

    @torch.inference_mode()
    def run_epoch(self, columns: DeviceLog, rows: Tensor) -> float:
        """Visit every transition once, each member in its own order; return the mean loss."""
        config, count = self.config, len(rows)
        order = torch.stack(
            [
                rows[torch.randperm(count, generator=self.generator, device=rows.device)]
                for _ in range(config.num_members)
            ]
        )
        run = self._run_compiled if self._compiled else self._run_recorded if rows.is_cuda else self._run_batches
        with matmul_precision(config.matmul_precision):
            self.loss = run(columns, order, config.learning_rate_in(self.epoch))
        self.epoch += 1
        return self.loss

    @property
    def preparation(self) -> str:
        """What the first epoch waits for, "" if for nothing."""
        return "compiling (seconds, once on a machine)" if self._compiled else ""

    def _run_batches(self, columns: DeviceLog, order: Tensor, learning_rate: float) -> float:
        """Descend batch by batch, all members together; order (M, n)."""
        config, count = self.config, order.shape[1]
        total = torch.zeros(config.num_members, device=order.device)
        size = config.batch_size_for(count)
        for part in order.split(size * max(1, _GATHERED_AT_ONCE // size), dim=1):
            gathered = columns.gather(part)
            for start in range(0, part.shape[1], size):
                stop = min(start + size, part.shape[1])
                losses = self._learn(gathered.batch(start, stop), learning_rate)
                total.add_(losses, alpha=(stop - start) / count)
        return float(total.mean())

    def _run_recorded(self, columns: DeviceLog, order: Tensor, learning_rate: float) -> float:
        """Descend batch by batch on a GPU, whose kernels are recorded once instead of launched one by one."""
        size, count = self.config.batch_size_for(order.shape[1]), order.shape[1]

        def descend(rows: Tensor) -> None:
            losses = self._learn(columns.gather(rows).batch(0, rows.shape[1]), self._rate)
            self._total.add_(losses, alpha=rows.shape[1] / count)

        if self._recorded is None or self._recorded[0] is not columns or self._recorded[1] != count:
            self._recorded = columns, count, RecordedStep(descend)
        self._rate.fill_(learning_rate)
        self._total.zero_()
        for rows in order.split(size, dim=1):
            self._recorded[2](rows)
        return float(self._total.mean())

    def _run_compiled(self, columns: DeviceLog, order: Tensor, learning_rate: float) -> float:
        """Descend member by member, each by itself; order (M, n)."""
        from persim_gym.simulators.networks.kernels.epoch import run_epoch

        members, count = order.shape
        losses, done = np.zeros(members), int(self.step)
        states = (self.flat, self.flat_gradient, self.first_moment, self.second_moment)
        arrays = [{name: view.numpy() for name, view in _views(flat, self._shapes).items()} for flat in states]
        data = (columns.numbers.numpy(), columns.agents.numpy(), columns.actions.numpy())

        def run(member: int) -> None:
            own = [{name: array[member] for name, array in state.items()} for state in arrays]
            rows = order[member].numpy()
            losses[member] = run_epoch(
                own, data, rows, self.config, learning_rate=learning_rate, steps_done=done, logistic=self._logistic
            )

        run_in_threads(run, range(members), self._threads)
        self.step += -(-count // self.config.batch_size_for(count))
        return float(losses.mean())

    def _learn(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], learning_rate: float | Tensor) -> Tensor:
        """Take one step of Adam on all parameters of all members, which are one tensor; return the losses (M,)."""
        losses = loss_and_gradients(
            self.parameters,
            self.gradients,
            *batch,
            huber_threshold=self.config.huber_threshold,
            logistic=self._logistic,
        )
        adam(
            [self.flat], [self.flat_gradient], [self.first_moment], [self.second_moment], [], [self.step],
            fused=True, amsgrad=False, beta1=ADAM_BETAS[0], beta2=ADAM_BETAS[1], lr=learning_rate,
            weight_decay=self.config.weight_decay, decoupled_weight_decay=True, eps=ADAM_EPSILON, maximize=False,
        )  # fmt: skip
        return losses

    def state(self) -> dict[str, Tensor]:
        """Return, with `progress`, everything that the rest of the run depends on."""
        return {**{name: getattr(self, name) for name in _TENSORS}, "generator": self.generator.get_state()}

    def progress(self) -> dict[str, Any]:
        """Return how far the run has come."""
        return {"epoch": self.epoch, "loss": self.loss}

    def resume(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Continue from what `state` and `progress` returned."""
        for name in _TENSORS:
            getattr(self, name).copy_(tensors[name])
        self.generator.set_state(tensors["generator"])
        self.epoch, self.loss = int(progress["epoch"]), float(progress["loss"])


_TENSORS = ("flat", "first_moment", "second_moment", "step")


def _padded(shape: tuple[int, ...]) -> int:
    """Return the number of floats a parameter takes in the flat tensor: it begins on a cache line."""
    return -(-int(np.prod(shape)) // _FLOATS_PER_CACHE_LINE) * _FLOATS_PER_CACHE_LINE


def _views(flat: Tensor, shapes: dict[str, tuple[tuple[int, ...], int]]) -> dict[str, Tensor]:
    views, offset = {}, 0
    for name, (shape, _) in shapes.items():
        views[name] = flat[offset : offset + int(np.prod(shape))].view(shape)
        offset += _padded(shape)
    return views
