"""The table of a log, which says itself what its columns are, for `persim_gym.from_dataframe` to read it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.arguments import first_repeated
from persim_gym.data.trajectories import Trajectories, check_is_log
from persim_gym.errors import InvalidArgumentError
from persim_gym.interop.table_files import import_pandas
from persim_gym.tasks import get_task, task_names
from persim_gym.tasks.names import usual_names

if TYPE_CHECKING:
    import pandas

_ATTRIBUTE = "persim_gym"
_SYNTHETIC = "synthetic"
_OWN_COLUMNS = ("agent", "episode", "step", "reward", "terminated", "truncated", _SYNTHETIC)
_RECORDED = {"false", "no", "0", "0.0", "", "none", "nan", "<na>"}
"""What a table may say of a row that is not synthetic, in lower case."""


def to_dataframe(log: Trajectories, *, observation_names: Sequence[str] | None = None) -> pandas.DataFrame:
    """Return a log as a data frame with one row a step; `from_dataframe` gives it back bit for bit.

    The columns are agent, episode, step, the names of observations and actions, reward, the observations' names after
    "next", terminated, truncated, and the covariates. A column "synthetic" marks a synthetic log. A name that is taken
    becomes "observation step", "action step" or "covariate step". For a CSV file, which keeps no attributes,
    ``frame.attrs["persim_gym"]["columns"]`` are the arguments to read it with.

    Args:
        log: the trajectories.
        observation_names: (D,); by default those of the log or of its task, or "observation 0", …. The actions' are
            found alike, and are otherwise "action", or "action 0", ….

    Raises:
        MissingExtraError: pandas is not installed.
        InvalidArgumentError: names that are too few or used twice.

    """
    pandas = import_pandas()
    check_is_log(log)
    names, moves, covariates = _names(log, observation_names)
    actions = moves[0] if log.discrete else moves
    roles: dict[str, Any] = {
        "observations": names,
        "action": actions,
        "agent": "agent",
        "agent_labels": list(log.agent_labels),
        "episode": "episode",
        "time": "step",
        "reward": "reward",
        "next_observations": [f"next {name}" for name in names],
        "terminated": "terminated",
        "truncated": "truncated",
        "covariates": covariates,
    }
    parts = _parts(log, roles, moves)
    if (twice := first_repeated(name for name, _ in parts)) is not None:
        raise InvalidArgumentError(f"two columns would be named {twice!r}: give other observation_names")
    frame = pandas.DataFrame(dict(parts))
    own = {**log.given_names, "covariate_names": log.covariate_names}
    if observation_names is not None:
        own["observation_names"] = tuple(names)
    frame.attrs[_ATTRIBUTE] = {
        "columns": roles,
        "names": {what: list(one) for what, one in own.items()},
        "task": log.task,
        "provenance": dict(log.provenance),
    }
    return frame


def _parts(log: Trajectories, roles: dict[str, Any], moves: list[str]) -> list[tuple[str, Any]]:
    """Return the columns (T,) of a log's table with their names, in order; ``moves`` are the actions' names."""
    lengths = log.episode_lengths
    labels = np.array([*log.agent_labels, None], object)[:-1]  # an object array, however long the labels are
    parts: list[tuple[str, Any]] = [
        ("agent", labels[log.agents]),
        ("episode", np.repeat(np.arange(log.num_episodes), lengths)),
        ("step", np.arange(log.num_transitions) - np.repeat(log.episode_starts, lengths)),
        *zip(roles["observations"], np.asarray(log.observations).T, strict=True),
        *zip(moves, np.atleast_2d(np.asarray(log.actions).T), strict=True),
        ("reward", np.asarray(log.rewards)),
        *zip(roles["next_observations"], np.asarray(log.next_observations).T, strict=True),
        ("terminated", np.asarray(log.terminated)),
        ("truncated", np.asarray(log.truncated)),
    ]
    if log.covariates is not None:
        parts += zip(roles["covariates"], np.asarray(log.covariates)[log.agents].T, strict=True)
    if log.provenance.get("synthetic"):
        parts.append((_SYNTHETIC, np.full(log.num_transitions, str(log.provenance["synthetic"]))))
    return parts


def _names(log: Trajectories, given: Sequence[str] | None) -> tuple[list[str], list[str], list[str]]:
    """Return the names of observations, actions and covariates, whoever has them; a name that is taken says whose."""
    size = log.observations.shape[1]
    usual = usual_names(size, None if log.discrete else log.actions.shape[1])
    found = {what: list(names) for what, names in usual.items()}
    known = get_task(log.task or "").given_names if log.task in task_names() else {}
    asked = {"observation_names": [] if given is None else list(given)}
    if given is not None and len(given) != size:
        raise InvalidArgumentError(f"observation_names has {len(given)} names for {size} coordinates")
    for names in (known, log.given_names, asked):
        found |= {what: list(own) for what, own in names.items() if len(own) == len(found[what])}
    covariates = [] if log.covariates is None else list(log.covariate_names)
    taken = {*_OWN_COLUMNS, *covariates}
    states, moves = found["observation_names"], found["action_names"]
    if given is None:
        states = [f"observation {one}" if one in taken else one for one in states]
    moves = [f"action {one}" if one in taken else one for one in moves]
    others = {*_OWN_COLUMNS, *states, *(f"next {one}" for one in states), *moves}
    return states, moves, [f"covariate {one}" if one in others else one for one in covariates]


def own_roles(frame: Any, named: Sequence[str]) -> dict[str, Any]:
    """Return what `to_dataframe` noted of its table, without agents of whom no row is left.

    Args:
        frame: the table.
        named: arguments of `persim_gym.from_dataframe` that were given, of those that such a table answers itself.

    Raises:
        InvalidArgumentError: it noted nothing of this table, or arguments were given.

    """
    known = frame.attrs.get(_ATTRIBUTE)
    if known is None:
        raise InvalidArgumentError("say which columns are the state: observations=['heart rate', …]")
    if named:
        raise InvalidArgumentError(
            f"{named[0]}= is given without observations=: the table names its columns itself; to read it otherwise, "
            "name the observations, too"
        )
    columns = known["columns"]
    there = set(frame[columns["agent"]].astype(str)) if columns["agent"] in frame.columns else set()
    labels = [label for label in columns["agent_labels"] if label in there]
    return {**known, "columns": {**columns, "agent_labels": labels}}


def marked_provenance(frame: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Add the mark of a synthetic log that the table carries."""
    if _SYNTHETIC not in frame.columns:
        return given
    marks = {str(value).lower() for value in frame[_SYNTHETIC].tolist()}
    if marks <= _RECORDED:
        return given
    return {**given, "synthetic": True if marks == {"true"} else "in part"}
