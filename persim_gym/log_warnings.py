"""What a log that is valid may still not be able to teach: warnings of `fit`."""

from __future__ import annotations

import warnings

import numpy as np

from persim_gym.data import Trajectories
from persim_gym.tasks import Task
from persim_gym.types import BoolArray, FloatArray

_FAR, _LEAST_JUMPS, _RARER = 0.75, 3, 10
"""A jump is a change by 3/4 of a coordinate's range; a wrapping coordinate makes some, and ten times fewer changes of
1/4 to 3/4 of the range."""


def warn_of_unseen_actions(log: Trajectories, task: Task) -> None:
    """Warn of actions that no row has: what they do is whatever the initial weights say."""
    if not task.discrete:
        return
    missing = np.setdiff1d(np.arange(task.action_size), log.actions)
    if len(missing):
        warnings.warn(
            f"no row of the log has action {', '.join(map(str, missing[:10]))}{', …' if len(missing) > 10 else ''} "
            f"({len(missing)} of {task.action_size}): what the simulators say of it is arbitrary: do not plan with it",
            RuntimeWarning,
            stacklevel=3,
        )


def warn_of_jumps(log: Trajectories, task: Task) -> None:
    """Warn of coordinates that wrap around, as an angle does: the model would have to learn the jumps."""
    counts, wrapping = jumping(np.asarray(log.observations), np.asarray(log.next_observations))
    for coordinate in np.flatnonzero(wrapping):
        name = task.observation_names[coordinate]
        warnings.warn(
            f"{name} jumps by about its whole range in {counts[coordinate]} rows and moves little in the others. "
            "If it wraps around, as an angle or the time of day does, give its sine and cosine instead",
            RuntimeWarning,
            stacklevel=3,
        )


def jumping(observations: FloatArray, next_observations: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Return the number of jumps (D,), and which coordinates (D,) seem to wrap around.

    Such a coordinate has also been in the middle of its range at least as often as it has jumped, which a flag has not.

    Args:
        observations: (T, D).
        next_observations: (T, D).

    """
    low = np.minimum(observations.min(0), next_observations.min(0))
    high = np.maximum(observations.max(0), next_observations.max(0))
    width = np.maximum(high - low, np.finfo(np.float32).tiny)
    sizes = np.abs(next_observations - observations) / width
    jumps = (sizes > _FAR).sum(0)
    between = ((sizes > 1 - _FAR) & (sizes <= _FAR)).sum(0)
    middle = (np.abs(observations - (low + high) / 2) < width / 4).sum(0)
    return jumps, (jumps >= _LEAST_JUMPS) & (jumps > _RARER * between) & (middle >= jumps)
