"""The spaces that a task may have, and how they are kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from persim_gym.errors import InvalidArgumentError
from persim_gym.types import BoolArray, FloatArray


def check_spaces(observation_space: Any, action_space: Any) -> None:
    """Raise `InvalidArgumentError` unless a simulator can have these spaces."""
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise InvalidArgumentError(
            f"observation_space={observation_space} must be a gymnasium.spaces.Box with one axis; "
            "gymnasium.spaces.flatten_space makes one of others"
        )
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        if isinstance(space, spaces.Box) and space.dtype.kind != "f":
            raise InvalidArgumentError(
                f"{name}={space} is of {space.dtype}, but simulators predict fractions: give a Box of np.float32"
            )
    vector = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
    if not vector and not (isinstance(action_space, spaces.Discrete) and action_space.start == 0):
        raise InvalidArgumentError(
            f"action_space={action_space} must be a gymnasium.spaces.Discrete that starts at 0, "
            "or a gymnasium.spaces.Box with one axis"
        )
    if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
        raise InvalidArgumentError(
            f"action_space={action_space} must have finite bounds: planners and random actions draw from it"
        )


def as_float32(space: spaces.Discrete | spaces.Box) -> spaces.Discrete | spaces.Box:
    """Return a space whose bounds are float32, as observations and models are; discrete ones as they are."""
    if isinstance(space, spaces.Discrete) or space.dtype == np.float32:
        return space
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def outside(states: FloatArray, space: spaces.Box) -> BoolArray:
    """Return which numbers of states (…, D) leave their space by more than rounding."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    below, above = (1e-6 * np.maximum(1.0, np.where(np.isfinite(bound), abs(bound), 0.0)) for bound in (low, high))
    return (states < low - below) | (states > high + above)


def space_to_json(space: spaces.Discrete | spaces.Box) -> dict[str, Any]:
    """Return what `space_from_json` makes the space of again."""
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n)}
    # JSON has no infinity; its text has.
    return {"low": [repr(float(bound)) for bound in space.low], "high": [repr(float(bound)) for bound in space.high]}


def space_from_json(document: Mapping[str, Any]) -> spaces.Discrete | spaces.Box:
    """Return the space that `space_to_json` wrote."""
    if "n" in document:
        return spaces.Discrete(document["n"])
    low, high = (np.array([float(bound) for bound in document[name]], np.float32) for name in ("low", "high"))
    return spaces.Box(low, high, dtype=np.float32)
