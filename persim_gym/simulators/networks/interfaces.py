"""What a simulator and the planners' rollouts ask of a network that steps the members of one agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from persim_gym.types import FloatArray, IntArray

Bounds = tuple[Tensor, Tensor]
"""Lower and upper bounds of states, columns (D, 1)."""


def bounds_on(device: torch.device, bounds: tuple[FloatArray, FloatArray] | None) -> Bounds | None:
    """Return bounds (D,), where a model has some (`LearnedDynamics.state_bounds`), on a device."""
    if bounds is None:
        return None
    low, high = (torch.tensor(bound, dtype=torch.float32, device=device) for bound in bounds)
    return low[:, None], high[:, None]


class MemberNetwork(Protocol):
    """The members on a torch device, conditioned on an agent; feature-major. Planners roll it out."""

    num_members: int
    num_actions: int
    """A for discrete actions, 0 for continuous ones."""

    def next_states(self, states: Tensor, actions: Tensor, members: slice = ...) -> Tensor:
        """Return the next states (m, D, B) that some members predict for states (m, D, B), or one for all (m, D, 1).

        ``actions`` are (B,) indices, or what `action_factors` made of continuous actions.
        """
        ...

    def action_factors(self, actions: Tensor, members: slice = ...) -> Tensor:
        """Return continuous actions (A, B) as `next_states` takes them, (m, …, B)."""
        ...


class CpuNetwork(ABC):
    """The members conditioned on one agent in a task of discrete actions, for any number of states of each on the CPU.

    Planners roll it out, and can leave out rollouts that are over. States are columns (D + 1, n) float32 that end in a
    row of ones, which meets the biases; the columns of one member follow those of another.
    """

    size: int
    """D."""
    num_members: int
    at_once: int = 1
    """Members whose columns go through one product together."""

    def start(self, states: FloatArray, copies: int = 1) -> FloatArray:
        """Return columns (D + 1, copies · B) for states (B, D), all of them once, then again."""
        columns = np.ones((self.size + 1, copies * len(states)), np.float32)
        columns[:-1] = np.tile(states.T, copies)
        return columns

    def step(self, states: FloatArray, actions: IntArray) -> FloatArray:
        """Return every member's next states (M, B, D) of the same states (B, D), for actions (B,)."""
        count = len(states)
        stops = [count * (member + 1) for member in range(self.num_members)]
        columns = self.next_states(self.start(states, self.num_members), np.tile(actions, self.num_members), stops)
        return columns[:-1].reshape(self.size, self.num_members, count).transpose(1, 2, 0)

    @abstractmethod
    def next_states(self, states: FloatArray, actions: IntArray, stops: Sequence[int], first: int = 0) -> FloatArray:
        """Return the next states, columns (D + 1, n).

        Args:
            states: (D + 1, n).
            actions: (n,).
            stops: where the columns of each member in turn end; the last is n.
            first: the member whose columns come first.

        """
