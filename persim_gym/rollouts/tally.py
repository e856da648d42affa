"""What rollouts have earned so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from persim_gym.tasks import PlanningObjective
from persim_gym.tasks.rules import TerminationRisk


class Tally:
    """The returns of n rollouts, counted step by step: `PlanningObjective` has the formula.

    Of NumPy arrays and of tensors, whose axes before n are kept. Rollouts that are over can be dropped on the way.
    """

    def __init__(self, objective: PlanningObjective, states: Any, earned: Any) -> None:
        """Begin to count.

        Args:
            objective: what is earned.
            states: (…, n, D) where the rollouts start.
            earned: (…, n) zeros, which become the returns.

        """
        self._objective = objective
        self._library: Any = torch if isinstance(earned, Tensor) else np
        self._earned, self._of_all = earned, earned
        self._furthest = None if objective.progress is None else objective.progress(states)
        self.alive: Any = earned == 0
        """(…, n): which of the rollouts that are followed are not over."""
        self._risk = objective.terminated if isinstance(objective.terminated, TerminationRisk) else None
        self._survival: Any = None if self._risk is None else earned + 1.0
        """(…, n): the probability that they are not, where an end is a risk."""
        self.followed: Any = None
        """(n,): of all rollouts those that are still followed, or None where none was dropped."""
        self.may_drop = objective.terminated is not None and objective.progress is None
        """Whether what is over earns no more. Progress counts to the end of the horizon."""

    def add(self, rewards: Any, reached: Any) -> None:
        """Count the rewards (…, n) of a step that led to states (…, n, D)."""
        objective = self._objective
        if objective.pays_last_step:
            self._earn(rewards)
        if self._risk is not None:
            self._survival = self._survival * (1 - self._risk.probability(reached))
            self.alive &= self._survival != 0  # one that is not a number looks alive: see `returns`
        elif objective.terminated is not None:
            self.alive &= ~objective.terminated(reached)
        if not objective.pays_last_step:
            self._earn(rewards)
        if self._furthest is not None:
            self._furthest = self._library.maximum(self._furthest, self._objective.progress(reached))

    def _earn(self, rewards: Any) -> None:
        weighted = rewards if self._risk is None else self._survival * rewards
        self._earned += self._library.where(self.alive, weighted, 0.0)

    def keep(self, kept: Any) -> None:
        """Follow only some from now on: ``kept`` are indices (k,) into those followed so far; the others are over."""
        if self.followed is None:
            self.followed = kept
        else:
            self._of_all[..., self.followed] = self._earned
            self.followed = self.followed[kept]
        self._earned, self.alive = self._earned[..., kept], self.alive[..., kept]
        if self._risk is not None:
            self._survival = self._survival[..., kept]

    def returns(self, horizon: int, states: Any) -> Any:
        """Return what all rollouts (…, n) earned in so many steps, at the end of which those followed are at states.

        One that got to a state that is not finite is worth NaN: comparisons with NaN are false, so it looks alive and
        well, whatever its rewards are.
        """
        if self._furthest is not None:
            self._earned += horizon * self._furthest
        broken = self.alive & ~self._library.isfinite(states).all(-1)
        earned = self._library.where(broken, np.nan, self._earned)
        if self.followed is None:
            return earned
        self._of_all[..., self.followed] = earned
        return self._of_all
