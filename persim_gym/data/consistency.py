"""Whether the fields of a log fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from persim_gym.arguments import first_repeated
from persim_gym.data.columns import COLUMNS
from persim_gym.data.episode_bounds import check_starts
from persim_gym.data.validation import check_agent_indices, check_finite
from persim_gym.errors import InvalidDataError

if TYPE_CHECKING:
    from persim_gym.data.trajectories import Trajectories


def check_consistent(log: Trajectories) -> None:
    """Raise `InvalidDataError` if a log's columns, agents, episodes or names do not fit together, or are not finite."""
    _check_columns(log)
    if not isinstance(log.task, str | None):
        raise InvalidDataError(f"task={log.task!r} must be a Task or the name of one")
    _check_names("observation_names", log.observation_names, log.observations.shape[1])
    _check_names("action_names", log.action_names, 1 if log.discrete else log.actions.shape[1])
    _check_agents(log)
    _check_covariates(log)
    _check_episodes(log)


def _check_columns(log: Trajectories) -> None:
    for name in COLUMNS:
        column = getattr(log, name)
        if len(column) != log.num_transitions:
            raise InvalidDataError(f"{name} has {len(column)} rows, agents has {log.num_transitions}")
        if column.dtype.kind == "f":
            check_finite(name, column)
    if log.next_observations.shape != log.observations.shape:
        raise InvalidDataError(
            f"next_observations have shape {log.next_observations.shape}, observations {log.observations.shape}"
        )


def _check_names(what: str, names: Sequence[str], count: int) -> None:
    """Raise `InvalidDataError` for names that are no different texts, one for each column; there may be none."""
    different = len(names) == count and first_repeated(names) is None
    if names and not (different and all(isinstance(one, str) for one in names)):
        raise InvalidDataError(f"{what}={tuple(names)!r} must be {count} different text{'s' if count > 1 else ''}")


def _check_agents(log: Trajectories) -> None:
    labels = log.agent_labels
    if (twice := first_repeated(labels)) is not None:
        raise InvalidDataError(f"agent label {twice!r} is used twice")
    check_agent_indices(log.agents, log.num_agents)
    idle = np.flatnonzero(np.bincount(log.agents, minlength=log.num_agents) == 0)
    if len(idle):
        raise InvalidDataError(
            f"agent {labels[idle[0]]!r} has no transition ({len(idle)} such agents): "
            "leave such agents out of the log and of agent_labels"
        )


def _check_covariates(log: Trajectories) -> None:
    if log.covariates is None:
        return
    expected = (log.num_agents, len(log.covariate_names))
    if log.covariates.shape != expected:
        raise InvalidDataError(f"covariates have shape {log.covariates.shape}, expected (agents, names) = {expected}")
    check_finite("covariates", log.covariates)


def _check_episodes(log: Trajectories) -> None:
    starts = log.episode_starts
    check_starts(starts, log.num_transitions)
    change = np.flatnonzero(np.diff(log.agents)) + 1
    stray = change[~np.isin(change, starts)]
    if len(stray):
        raise InvalidDataError(f"the agent changes within an episode, at row {stray[0]}")
    inner = np.ones(log.num_transitions, bool)
    inner[log.episode_ends - 1] = False
    late = np.flatnonzero(inner & (log.terminated | log.truncated))
    if len(late):
        raise InvalidDataError(
            f"row {late[0]} is terminated or truncated, yet its episode goes on; begin a new episode after it"
        )
