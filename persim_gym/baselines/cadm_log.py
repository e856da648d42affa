"""What CaDM learns from: a log's transitions, standardized, and batches of histories and of what follows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from persim_gym.baselines.cadm_config import CaDMConfig
from persim_gym.baselines.layers import Scaling, one_hot
from persim_gym.data.trajectories import Trajectories
from persim_gym.tasks import Task


@dataclass(frozen=True)
class Batch:
    """B contexts of each member and the transitions they are to explain, f each."""

    histories: Tensor
    """(M, K·(D + A), B)."""
    inputs: Tensor
    """(M, F, B·f): standardized features of the states."""
    next_inputs: Tensor
    """(M, F, B·f): of the next states."""
    actions: Tensor
    """(M, A, B·f)."""
    targets: Tensor
    """(M, D, B·f)."""
    backward_targets: Tensor
    """(M, D, B·f)."""
    weight: Tensor
    """(M, 1, B·f): 0 where the transition is after the end of the episode."""


@dataclass(frozen=True)
class StandardizedLog:
    """A log's T transitions as the networks see them, on a device, and the scalings that made them so."""

    columns: Tensor
    """(T, 2·F + A + 2·D): features, next features, actions, targets, backward targets."""
    widths: tuple[int, ...]
    """Of these five."""
    remembered: Tensor
    """(T + 1, D + A): what a history holds of a transition, change of state, standardized or not, and action; the last
    row, none's, is zero."""
    starts: Tensor
    """(T,): the first transition of each one's episode."""
    ends: Tensor
    """(T,): the one after the last of each one's episode."""
    history_length: int
    """K."""
    history_scale: Tensor | None
    """(D, 1): what changes of state in a history are divided by; None for raw ones."""
    inputs: Scaling
    actions: Scaling | None
    """None for discrete actions, which are one-hot."""
    targets: Scaling

    @classmethod
    def of(
        cls, log: Trajectories, task: Task, config: CaDMConfig, rows: Tensor, device: torch.device
    ) -> StandardizedLog:
        """Return all of a log, standardized over some rows (n,) of it."""
        features = config.features
        states = torch.tensor(np.asarray(log.observations, np.float32).T.copy(), device=device)
        next_states = torch.tensor(np.asarray(log.next_observations, np.float32).T.copy(), device=device)
        actions, action_scaling = torch.tensor(np.array(log.actions), device=device), None
        if task.discrete:
            actions = one_hot(actions, task.action_size)
        else:
            actions = actions.T.float()
            action_scaling = Scaling.of(actions[:, rows])
            actions = action_scaling(actions)
        inputs, next_inputs = features.of(states), features.of(next_states)
        targets, backward_targets = next_states - features.base(states), states - features.base(next_states)
        input_scaling, target_scaling = Scaling.of(inputs[:, rows]), Scaling.of(targets[:, rows])
        backward_scaling = Scaling.of(backward_targets[:, rows])
        parts = (
            input_scaling(inputs), input_scaling(next_inputs), actions, target_scaling(targets),
            backward_scaling(backward_targets),
        )  # fmt: skip
        moved = next_states - states
        history_scale = Scaling.of(moved[:, rows]).scale if config.standardized_history else None
        remembered = torch.cat([moved if history_scale is None else moved / history_scale, actions]).T
        return cls(
            columns=torch.cat(parts).T.contiguous(),
            widths=tuple(len(part) for part in parts),
            remembered=torch.cat([remembered, torch.zeros_like(remembered[:1])]),
            starts=torch.tensor(np.repeat(log.episode_starts, log.episode_lengths), device=device),
            ends=torch.tensor(np.repeat(log.episode_ends, log.episode_lengths), device=device),
            history_length=config.history_length,
            history_scale=history_scale,
            inputs=input_scaling,
            actions=action_scaling,
            targets=target_scaling,
        )

    def histories(self, rows: Tensor, after: int = 0) -> Tensor:
        """Return the histories (M, K·(D + A), B) before (or ``after`` = 1: including) transitions (M, B)."""
        stop = (rows + after)[:, :, None]
        first = torch.maximum(stop - self.history_length, self.starts[rows][:, :, None])
        index = first + torch.arange(self.history_length, device=rows.device)
        index = torch.where(index < stop, index, len(self.remembered) - 1)
        return self.remembered[index].flatten(2).transpose(1, 2).contiguous()

    def batch(self, rows: Tensor, offsets: Tensor) -> Batch:
        """Gather the histories before transitions (M, B), and the transitions ``offsets`` (f,) after them."""
        futures = rows[:, :, None] + offsets
        ends = self.ends[rows][:, :, None]
        weight = (futures < ends).flatten(1)
        chosen = torch.minimum(futures, ends - 1).flatten(1)
        columns = self.columns[chosen].transpose(1, 2).contiguous()
        inputs, next_inputs, actions, targets, backward_targets = columns.split(self.widths, dim=1)
        return Batch(
            self.histories(rows), inputs, next_inputs, actions, targets, backward_targets, weight[:, None].float()
        )
