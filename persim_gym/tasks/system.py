"""What a task's true system and its pictures must be able to do."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from persim_gym.types import FloatArray


class System(Protocol):
    """B copies of a true system, each with its own covariates, stepped together. Not a Gymnasium environment."""

    num_copies: int

    def reset(self, rng: np.random.Generator) -> FloatArray:
        """Put every copy into an initial state; observations (B, D) float64."""
        ...

    def set_observations(self, observations: FloatArray) -> None:
        """Put the copies into the states that show the observations (B, D)."""
        ...

    def observe(self) -> FloatArray:
        """Return the current observations (B, D) float64."""
        ...

    def step(self, actions: Any) -> FloatArray:
        """Apply actions (B,) or (B, A); next observations (B, D) float64."""
        ...

    def branch(self, copies: Any) -> System:
        """Return an independent system whose i-th copy is an exact duplicate of copy ``copies[i]`` of this one."""
        ...


class Renderer(Protocol):
    """Draws a state."""

    def draw(self, observation: FloatArray) -> Any:
        """Draw the observation (D,): an image (height, width, 3) uint8, or None when shown on the screen."""
        ...

    def close(self) -> None:
        """Release the window or the graphics context."""
        ...
