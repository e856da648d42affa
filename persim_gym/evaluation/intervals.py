"""The widths of predictive intervals, in standard deviations of a forecast, along the horizon."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from persim_gym.arguments import finite_number
from persim_gym.errors import InvalidArgumentError
from persim_gym.model.ensemble import Ensemble
from persim_gym.types import FloatArray, IntArray

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the intervals that calibration measures."""
RANGES = (1, 5, 20)
"""Last steps of the ranges of the horizon that have widths of their own; the last range has no end."""


def half_widths(ensemble: Ensemble, level: float) -> FloatArray:
    """Return half widths (ranges, D) of an interval, in standard deviations."""
    if not 0 < finite_number("level", level) < 1:
        raise InvalidArgumentError(f"level {level} must be above 0 and below 1")
    if ensemble.calibration is None:
        width = NormalDist().inv_cdf((1 + level) / 2)
        return np.full((len(RANGES) + 1, ensemble.task.observation_size), width)
    if level not in LEVELS:
        raise InvalidArgumentError(f"level {level} is not calibrated; levels are {', '.join(map(str, LEVELS))}")
    return np.asarray(ensemble.calibration)[LEVELS.index(level)]


def range_of(horizon: int) -> IntArray:
    """Return the range of the horizon (H,) that each step is in."""
    return np.searchsorted(RANGES, np.arange(1, horizon + 1))
