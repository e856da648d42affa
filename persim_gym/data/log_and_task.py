"""A log and a task: whether they fit, covariates by name, states to begin in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persim_gym.data.trajectories import Trajectories, check_is_log
from persim_gym.data.within_spaces import check_actions, check_within
from persim_gym.errors import InvalidDataError
from persim_gym.tasks import Task
from persim_gym.types import FloatArray, IntArray
from persim_gym.user_warnings import warn_user


def check_log(log: Trajectories, task: Task, *, rows: IntArray | None = None) -> None:
    """Raise `InvalidDataError` if a log's observations or actions are not the task's, or outside its spaces.

    The message numbers the log's rows, or says what ``rows`` (T,) has for them. Raises what `check_is_log` does, too.
    """
    check_is_log(log)
    if log.observations.shape[1] != task.observation_size:
        raise InvalidDataError(
            f"the log has {log.observations.shape[1]} observation coordinates, task {task.name} has "
            f"{task.observation_size}: {', '.join(task.observation_names)}"
        )
    if log.discrete != task.discrete:
        kinds = {True: "discrete (integers)", False: "continuous"}
        raise InvalidDataError(
            f"the log's actions are {kinds[log.discrete]}, task {task.name}'s {kinds[task.discrete]}"
        )
    for what, names in log.given_names.items():
        check_order(what, names, getattr(task, what), task.name)
    check_actions(log.actions, task.action_space, rows=rows)
    for name in ("observations", "next_observations"):
        check_within(
            name, getattr(log, name), task.observation_space, task.observation_names,
            lambda row: log.agent_labels[log.agents[row]],
        )  # fmt: skip


def check_order(what: str, names: Sequence[Any], known: Sequence[str], task_name: str) -> None:
    """Raise `InvalidDataError` if the name of a column is that of another column of a task."""
    names, known = list(names), list(known)
    if len(names) != len(known) or names == known:
        return
    if set(names) == set(known):
        raise InvalidDataError(f"{what}={names} are those of task {task_name} in another order: give {what}={known}")
    moved = [place for place, name in enumerate(names) if name in known and known[place] != name]
    if moved:
        name = names[moved[0]]
        raise InvalidDataError(
            f"{what}={names} has {name!r} in place {moved[0]}, where task {task_name} has {known[moved[0]]!r}: its "
            f"{what} are {known}; give them in this order"
        )


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
        warn_user(
            f"task {task.name} has no covariate {extra[0]!r}, so that of the log is left out; to keep it, make the "
            f"task with covariates=(persim_gym.tasks.Covariate({extra[0]!r}, {low:g}, {high:g}, {middle:g}), …), "
            "which are name, low, high and default",
        )
    if missing or not wanted:
        return replace(log, covariates=None, covariate_names=())
    places = [names.index(name) for name in wanted]
    return replace(log, covariates=np.asarray(log.covariates)[:, places], covariate_names=wanted)


def start_states(log: Trajectories, most: int) -> FloatArray:
    """Return the first observations of the log's episodes, or so many of them, evenly spaced, where there are more."""
    first = log.initial_observations
    return first if len(first) <= most else first[np.linspace(0, len(first) - 1, most).astype(np.int64)]
