"""`Normalizer`: mean and scale of states and of their changes, and which coordinates vary at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persim_gym.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Normalizer:
    """Standardization of states and of their changes; zeros and ones when there is none."""

    state_mean: FloatArray
    """(D,)."""
    state_scale: FloatArray
    """(D,)."""
    change_mean: FloatArray
    """(D,)."""
    change_scale: FloatArray
    """(D,); 0 for a coordinate that always changes alike, whose change is its mean whatever a network says."""

    @classmethod
    def identity(cls, size: int) -> Normalizer:
        """Return the normalizer that changes nothing."""
        return cls(np.zeros(size), np.ones(size), np.zeros(size), np.ones(size))

    @classmethod
    def of(cls, observations: FloatArray, next_observations: FloatArray) -> Normalizer:
        """Return mean and unbiased deviation over all transitions (T, D); a constant state keeps scale 1."""
        states = np.asarray(observations, np.float64)
        changes = np.asarray(next_observations, np.float64) - states
        change_scale = np.where(varies(changes, states), deviation_or_one(changes, states), 0.0)
        return cls(states.mean(0), deviation_or_one(states), changes.mean(0), change_scale)

    @property
    def change_divisor(self) -> FloatArray:
        """(D,): what changes are divided by to be standardized."""
        return np.where(self.change_scale > 0, self.change_scale, 1.0)

    def standardized(self, observations: FloatArray, next_observations: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the states and changes (T, D) float64 of transitions, as the model has them."""
        states = np.asarray(observations, np.float64)
        changes = np.asarray(next_observations, np.float64) - states
        return (states - self.state_mean) / self.state_scale, (changes - self.change_mean) / self.change_divisor


def deviation_or_one(values: FloatArray, states: FloatArray | None = None) -> FloatArray:
    """Return the unbiased deviation (D,) of values (T, D), 1 for a coordinate that does not vary (see `varies`)."""
    return np.where(varies(values, states), _deviation(values), 1.0)


def varies(values: FloatArray, states: FloatArray | None = None) -> BoolArray:
    """Return which coordinates (D,) of values (T, D) differ by more than float32 rounds.

    They do not if there is one value that every row may have within its own rounding: that of the value and, if it is
    the change of a state (T, D), of the state before and after it.
    """
    limits = np.finfo(np.float32)
    sizes = np.abs(values) if states is None else np.abs(states) + np.abs(states + values)
    rounding = limits.eps * (sizes + np.abs(values)) + limits.tiny
    return (values - rounding).max(axis=0) > (values + rounding).min(axis=0)


def _deviation(values: FloatArray) -> FloatArray:
    """Return the unbiased deviation (D,) of values (T, D)."""
    return values.std(axis=0, ddof=min(1, len(values) - 1))
