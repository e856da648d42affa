"""What every method does with a log before it learns from it, and what every model keeps of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from persim_gym.config import PerSimConfig
from persim_gym.data.log_and_task import check_log, start_states, with_task_covariates
from persim_gym.data.trajectories import Trajectories, check_is_log
from persim_gym.errors import InvalidArgumentError
from persim_gym.model.ensemble import MAX_INITIAL_OBSERVATIONS
from persim_gym.model.normalizer import Normalizer, varies
from persim_gym.tasks import Task, get_task, is_built_in
from persim_gym.tasks.rules import check_rules
from persim_gym.types import IntArray
from persim_gym.user_warnings import warn_user

_TOLD = 0.01
"""Of its usual change: where changes differ by less, as those of a clock do, little is lost by taking them as alike."""


def prepared(trajectories: Trajectories, task: str | Task | None) -> tuple[Trajectories, Task]:
    """Return a log with the covariates of its task, and that task (`task_of`).

    Raises:
        InvalidArgumentError: no log, or one that names no task where none is given.
        UnknownNameError: there is no such task.
        InvalidDataError: the log does not fit the task, or lacks some of its covariates.

    """
    found = task_of(trajectories, task)
    check_log(trajectories, found)
    return with_task_covariates(trajectories, found), found


def task_of(trajectories: Trajectories, task: str | Task | None) -> Task:
    """Return the task given, else the one that the log names; one of a user's own is tried out first.

    Where a user's own has no names of observations and actions, it gets the log's.
    """
    check_is_log(trajectories)
    named = trajectories.task if task is None else task
    if named is None:
        raise InvalidArgumentError("the log names no task: give task='CartPole', or a Task of your own")
    found = get_task(named)
    built_in = is_built_in(found)  # raises for another task of a built-in one's name, which no file could hold
    check_rules(found)
    return found if built_in else found.named_as(trajectories.given_names)


def warn_of_outcomes(task: Task, method: str) -> None:
    """Warn that a method which learns the dynamics only leaves open what the task leaves to be learned."""
    if task.learned:
        warn_user(
            f"task {task.name} leaves {' and '.join(task.learned)} to be learned, and {method} learns none: the model "
            "can be stepped and its errors measured, but for environments and planners give the task these functions"
        )


def split(count: int, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Return the rows to learn from and a random ``fraction`` to hold out, each in order."""
    held = int(count * fraction)
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def normalizer_of(log: Trajectories, config: PerSimConfig) -> Normalizer:
    """Return the standardization of a log, or none if the configuration wants none."""
    if config.normalize:
        return Normalizer.of(log.observations, log.next_observations)
    return Normalizer.identity(log.observations.shape[1])


def warn_of_rounding(log: Trajectories, task: Task) -> None:
    """Warn of coordinates whose changes differ, but not by more than float32 rounds: what they tell is not learned."""
    states = np.asarray(log.observations, np.float64)
    changes = np.asarray(log.next_observations, np.float64) - states
    deviation, size = changes.std(axis=0), np.abs(changes).mean(axis=0)
    drifts = np.abs(changes.mean(axis=0)) > 4 * deviation / np.sqrt(len(changes))  # what only jitters stays as it is
    for coordinate in np.flatnonzero(~varies(changes, states) & drifts & (deviation > _TOLD * size)):
        warn_user(
            f"{task.observation_names[coordinate]} changes by {size[coordinate]:.3g} on average, and its changes "
            f"differ by {deviation[coordinate]:.3g}, which float32 cannot tell from its rounding of values up to "
            f"{np.abs(states[:, coordinate]).max():.6g}: it is taken to change alike in all rows, whatever the action. "
            "If its changes matter, subtract an offset from it, for each agent its own",
        )


def known_of_agents(log: Trajectories) -> dict[str, Any]:
    """Return what every model keeps of a log, by the names of its fields: who its agents are and where they began."""
    return {
        "agent_labels": log.agent_labels,
        "initial_observations": start_states(log, MAX_INITIAL_OBSERVATIONS),
        "covariates": None if log.covariates is None else np.asarray(log.covariates),
    }
