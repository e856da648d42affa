"""A true system given by its equations of motion, in batched form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from persim_gym.types import FloatArray

Dynamics = Callable[[FloatArray, Any, FloatArray], FloatArray]
"""(observations (B, D), actions (B,), covariates (B, K)) -> next observations (B, D), float64."""


class EquationSystem:
    """B copies of a system whose observation is its whole state (`persim_gym.tasks.System`)."""

    def __init__(
        self,
        dynamics: Dynamics,
        initial_observations: Callable[[np.random.Generator, int], FloatArray],
        covariates: FloatArray,
    ) -> None:
        self._dynamics = dynamics
        self._initial_observations = initial_observations
        self._covariates = covariates
        self._observations: FloatArray = np.full((len(covariates), 0), np.nan)  # none before reset
        self.num_copies = len(covariates)

    def reset(self, rng: np.random.Generator) -> FloatArray:
        self._observations = self._initial_observations(rng, self.num_copies)
        return self._observations

    def set_observations(self, observations: FloatArray) -> None:
        self._observations = np.array(observations, dtype=np.float64)

    def observe(self) -> FloatArray:
        return self._observations

    def step(self, actions: Any) -> FloatArray:
        self._observations = self._dynamics(self._observations, np.asarray(actions), self._covariates)
        return self._observations

    def branch(self, copies: Any) -> EquationSystem:
        branch = EquationSystem(self._dynamics, self._initial_observations, self._covariates[copies])
        branch._observations = self._observations[copies]
        return branch
