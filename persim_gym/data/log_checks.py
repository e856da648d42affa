"""Before something learns from a log: its covariates by name, what it cannot teach, states to begin in."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidDataError
from persim_gym.tasks import Task
from persim_gym.types import BoolArray, FloatArray, IntArray

_FAR, _LEAST_JUMPS, _RARER = 0.75, 3, 10
"""A jump is a change by 3/4 of a coordinate's range; a wrapping coordinate makes some, and ten times fewer changes of
1/4 to 3/4 of the range."""


def with_task_covariates(log: Trajectories, task: Task) -> Trajectories:
    """Return the log with the covariates of a task, in the task's order.

    Warns of covariates that the task does not have; they are left out.

    Raises:
        InvalidDataError: the log has some of the task's covariates, but not all.

    """
    names, wanted = log.covariate_names, task.covariate_names
    if log.covariates is None or names == wanted:
        return log
    missing = [name for name in wanted if name not in names]
    if missing and len(missing) < len(wanted):
        raise InvalidDataError(
            f"the log has the covariates {', '.join(names)}, task {task.name} has {', '.join(wanted)}: "
            f"{missing[0]!r} is missing; add it to the log, or leave all of them out"
        )
    extra = [name for name in names if name not in wanted]
    if extra:
        values = log.covariates[:, names.index(extra[0])]
        low, high, middle = values.min(), values.max(), np.median(values)
        warnings.warn(
            f"task {task.name} has no covariate {extra[0]!r}, so that of the log is left out; to keep it, make the "
            f"task with covariates=(persim_gym.tasks.Covariate({extra[0]!r}, {low:g}, {high:g}, {middle:g}), …), which "
            "are name, low, high and default",
            RuntimeWarning,
            stacklevel=3,
        )
    if missing or not wanted:
        return replace(log, covariates=None, covariate_names=())
    places = [names.index(name) for name in wanted]
    return replace(log, covariates=np.asarray(log.covariates)[:, places], covariate_names=wanted)


def untried_actions(log: Trajectories, task: Task) -> list[int]:
    """Return the actions that no row has, or, if actions are continuous, the coordinates that never vary; warn of them.

    What they do can only be extrapolated.
    """
    actions = np.asarray(log.actions)
    if task.discrete:
        untried = np.flatnonzero(np.bincount(actions, minlength=task.action_size) == 0).tolist()
        what = f"no row of the log has action {', '.join(map(str, untried))}"
    else:
        untried = np.flatnonzero(np.ptp(actions, axis=0) == 0).tolist()
        what = f"action coordinate {', '.join(map(str, untried))} never varies in the log"
    if untried:
        warnings.warn(
            f"{what}: what simulators and planners do with it is made up; give the task only actions that were tried",
            RuntimeWarning,
            stacklevel=3,
        )
    return untried


def warn_of_terminal_flags(log: Trajectories, task: Task) -> None:
    """Warn of rows whose terminal flag is not what the task's own rule says of their next state.

    Simulators and planners follow the rule, values learned from a log its flags. Nothing is said where the rule is left
    to be learned, nor of a log without any flag, which is a log that was given none.
    """
    flagged = np.asarray(log.terminated, bool)
    if "terminated" in task.learned or not flagged.any():
        return
    rows = _contradictory(flagged, np.asarray(log.next_observations, np.float64), task)
    early, late = rows[flagged[rows]], rows[~flagged[rows]]
    parts = []
    if len(early):
        parts.append(
            f"row {early[0]} is flagged as terminated, but the rule says no of its next state (such rows: "
            f"{len(early)}; if time limits ended these episodes, flag them as truncated instead)"
        )
    if len(late):
        parts.append(f"row {late[0]} is not flagged, but the rule says yes (such rows: {len(late)})")
    if parts:
        warnings.warn(
            f"the log's terminal flags are not what the termination rule of task {task.name} says: {'; '.join(parts)}. "
            "Simulators follow the rule, BCQ and CQL the flags",
            RuntimeWarning,
            stacklevel=3,
        )


def _contradictory(flagged: BoolArray, next_observations: FloatArray, task: Task) -> IntArray:
    """Return the rows that a task's rule contradicts, even if their states (T, D) were rounded to float32."""
    rows = np.flatnonzero(np.asarray(task.terminated(next_observations), bool) != flagged)
    size = next_observations.shape[1]
    for change in (np.ones(size), -np.ones(size), *np.eye(size), *-np.eye(size)):
        states = next_observations[rows]
        near = states + change * np.spacing(np.abs(states).astype(np.float32))
        rows = rows[np.asarray(task.terminated(near), bool) != flagged[rows]]
    return rows


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


def start_states(log: Trajectories, most: int) -> FloatArray:
    """Return the first observations of the log's episodes, or so many of them, evenly spaced, where there are more."""
    first = log.initial_observations
    return first if len(first) <= most else first[np.linspace(0, len(first) - 1, most).astype(np.int64)]
