"""Logs joined into one, in which agents of the same label are the same agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.data.columns import COLUMNS
from persim_gym.data.provenance import joint_provenance
from persim_gym.errors import InvalidDataError
from persim_gym.types import FloatArray

if TYPE_CHECKING:
    from persim_gym.data.trajectories import Trajectories


def joined_fields(logs: Sequence[Trajectories]) -> dict[str, Any]:
    """Return what the join of one or more logs, their rows in this order, has in other fields than the first of them.

    Raises:
        InvalidDataError: logs of different tasks, shapes, kinds of actions, names or covariates.

    """
    for log in logs[1:]:
        _check_same_kind(logs[0], log)
    labels = tuple(dict.fromkeys(label for log in logs for label in log.agent_labels))
    position = {label: index for index, label in enumerate(labels)}
    joined = {name: np.concatenate([getattr(log, name) for log in logs]) for name in COLUMNS}
    joined["agents"] = np.concatenate(
        [np.array([position[label] for label in log.agent_labels], np.int32)[log.agents] for log in logs]
    )
    offsets = np.cumsum([0, *(log.num_transitions for log in logs[:-1])])
    starts = [log.episode_starts + offset for log, offset in zip(logs, offsets, strict=True)]
    return {
        **joined,
        "episode_starts": np.concatenate(starts),
        "agent_labels": labels,
        "covariates": _join_covariates(logs, labels),
        **joint_names([log.given_names for log in logs]),
        "provenance": joint_provenance([log.provenance for log in logs], always=True),
    }


def _check_same_kind(first: Trajectories, log: Trajectories) -> None:
    for what, one, other in (
        ("tasks", first.task, log.task),
        ("observation sizes", first.observations.shape[1], log.observations.shape[1]),
        ("kinds of actions", first.actions.shape[1:], log.actions.shape[1:]),
    ):
        if one != other:
            raise InvalidDataError(f"logs of different {what} cannot be joined: {one} and {other}")
    one, other = (log.covariate_names if log.covariates is not None else () for log in (first, log))
    if set(one) != set(other):
        raise InvalidDataError(
            f"logs of different covariates cannot be joined: {one} and {other}; leave them out of each, "
            "dataclasses.replace(log, covariates=None, covariate_names=()), or add what is missing"
        )


def joint_names(given_names: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Return the names of observations and actions of what is joined, some of which may lack them.

    Raises:
        InvalidDataError: two have different ones.

    """
    found = {}
    for what in dict.fromkeys(what for names in given_names for what in names):
        given = list(dict.fromkeys(tuple(some) for names in given_names if (some := names.get(what))))
        if len(given) > 1:
            raise InvalidDataError(
                f"logs of different {what} cannot be joined: {given[0]} and {given[1]}; if they are the same, in the "
                f"same order, rename one, dataclasses.replace(log, {what}={given[0]})"
            )
        found[what] = given[0] if given else ()
    return found


def _join_covariates(logs: Sequence[Trajectories], labels: Sequence[str]) -> FloatArray | None:
    """Return covariates (N, K) in the order of the first log's names."""
    known: dict[str, FloatArray] = {}
    for log in logs:
        if log.covariates is None:
            return None
        places = [log.covariate_names.index(name) for name in logs[0].covariate_names]
        for label, row in zip(log.agent_labels, log.covariates[:, places], strict=True):
            if label in known and not np.array_equal(known[label], row):
                raise InvalidDataError(
                    f"agent {label!r} has covariates {known[label].tolist()} in one log and {row.tolist()} in another; "
                    "give different agents different labels"
                )
            known[label] = row
    return np.stack([known[label] for label in labels])
