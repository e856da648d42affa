"""The map between bounds of actions and −1 … 1: what networks learn from and return, whatever the units."""

from __future__ import annotations

from typing import Any

import numpy as np

from persim_gym.types import FloatArray


def scale_actions(actions: np.ndarray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return actions (…, A) within bounds (A,) from −1 to 1, float32; 0 where there is one value only."""
    center, half_width = center_and_half_width(low, high)
    return ((np.asarray(actions, np.float64) - center) / half_width).astype(np.float32)


def unscale_actions(scaled: Any, low: Any, high: Any) -> Any:
    """Return the actions (…, A) within bounds (A,) of scaled ones; all are arrays, or all tensors."""
    return low + 0.5 * (scaled + 1) * (high - low)


def center_and_half_width(low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return those of bounds (A,), float64; half width 1 for a coordinate that has one value only."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    half_width = (high - low) / 2
    return (low + high) / 2, np.where(half_width > 0, half_width, 1.0)
