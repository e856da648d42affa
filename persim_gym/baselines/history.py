"""The last transitions of running episodes: what CaDM computes its context from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from persim_gym.errors import InvalidStateError
from persim_gym.tasks import Task
from persim_gym.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class History:
    """The last K transitions of B episodes: changes of state, and actions; oldest first, then zeros."""

    values: FloatArray
    """(B, K·(D + A)) float32."""
    counts: IntArray
    """(B,): how many of the K places are filled."""
    num_actions: int
    """A of discrete actions, which are stored one-hot; 0 for continuous ones."""
    width: int
    """D + A."""
    action_scaling: tuple[FloatArray, FloatArray] | None
    """Mean and scale (A,) of continuous actions."""
    change_scale: FloatArray | None = None
    """(D,): what changes of state are divided by; None for raw ones."""

    @classmethod
    def empty(
        cls,
        task: Task,
        length: int,
        count: int,
        action_scaling: tuple[FloatArray, FloatArray] | None,
        change_scale: FloatArray | None = None,
    ) -> History:
        """Return the histories of B episodes that begin."""
        width = task.observation_size + task.action_size
        values = np.zeros((count, length * width), np.float32)
        num_actions = task.action_size if task.discrete else 0
        return cls(values, np.zeros(count, np.int64), num_actions, width, action_scaling, change_scale)

    def after(self, observations: FloatArray, actions: Any, next_observations: FloatArray) -> History:
        """Return the histories one transition later; the oldest goes where all places are filled."""
        if self.num_actions:
            moves = np.eye(self.num_actions, dtype=np.float32)[np.asarray(actions)]
        else:
            mean, scale = self.action_scaling or (np.zeros(1), np.ones(1))
            moves = (np.asarray(actions) - mean) / scale
        changes = np.subtract(next_observations, observations)
        if self.change_scale is not None:
            changes = changes / self.change_scale
        latest = np.concatenate([changes, moves], axis=1)
        places = self.values.reshape(len(self.values), -1, self.width).copy()
        length, rows = places.shape[1], np.arange(len(places))
        full = self.counts == length
        places[full] = np.roll(places[full], -1, axis=1)
        places[rows, np.where(full, length - 1, self.counts)] = latest
        return replace(self, values=places.reshape(self.values.shape), counts=np.minimum(self.counts + 1, length))

    def restarted(self, begun: BoolArray) -> History:
        """Return the histories with those of episodes that begin (B,) emptied."""
        return replace(
            self,
            values=np.where(begun[:, None], np.float32(0), self.values),
            counts=np.where(begun, 0, self.counts),
        )


def check_history(observations: Any, actions: Any, task: Task) -> tuple[FloatArray, np.ndarray]:
    """Return the beginnings of B episodes, observations (B, T + 1, D) and actions (B, T) or (B, T, A), checked.

    Raises:
        InvalidStateError: observations of another shape or not finite, or not as many actions as they need.
        InvalidActionError: actions that the task does not have.

    """
    states, moves = task.check_observations(observations, "B", "T + 1", least=1, finite=True), np.asarray(actions)
    expected = (len(states), states.shape[1] - 1, *task.action_shape)
    if moves.shape != expected:
        raise InvalidStateError(f"{states.shape[1]} observations need actions of shape {expected}, got {moves.shape}")
    return states, task.executed(moves, *expected[:2]) if moves.size else moves
