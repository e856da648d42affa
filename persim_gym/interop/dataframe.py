"""Tables with one row a step, as hospitals and fleets keep them, in pandas, Parquet or CSV, made into logs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persim_gym.arguments import one_of
from persim_gym.data.log_and_task import check_log, check_order
from persim_gym.data.provenance import checked_provenance
from persim_gym.data.trajectories import Trajectories
from persim_gym.data.within_spaces import check_within
from persim_gym.errors import InvalidArgumentError, InvalidDataError
from persim_gym.interop.own_table import marked_provenance, own_roles
from persim_gym.interop.table_clock import Clock
from persim_gym.interop.table_columns import flags, numbers, one_column, whole_numbers
from persim_gym.interop.table_files import import_pandas, read_table
from persim_gym.interop.table_rows import TableRows
from persim_gym.interop.table_successors import check_successors
from persim_gym.tasks import Task, get_task, task_names

GAPS = ("error", "split")
"""What to do where a step is missing: refuse the table, or begin a new episode."""


def from_dataframe(
    table: Any,
    *,
    observations: Sequence[str] | None = None,
    action: Any = "action",
    agent: str = "agent",
    single_agent: str | None = None,
    agent_labels: Sequence[str] | None = None,
    episode: str | None = None,
    time: str | None = None,
    time_step: Any = 1,
    gaps: str = "error",
    reward: str | None = None,
    next_observations: Sequence[str] | None = None,
    terminated: str | None = None,
    truncated: str | None = None,
    covariates: Sequence[str] = (),
    task: str | Task | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Trajectories:
    """Make trajectories from a table with one row a step, its columns named by the user.

    The rows of an episode stand together and in time order. An episode is what one agent did, up to a row that is
    terminated or truncated, or, with ``episode``, what has one value there.

    Args:
        table: a data frame, of pandas or with a `to_pandas()`, as those of polars and pyarrow have, or a .csv, .csv.gz,
            .parquet or .pq file. Named levels of its index count as columns.
        observations: D columns, numbers, of the state before the action; the log keeps their names. A table that
            `to_dataframe` made knows its columns (in a Parquet file too): nothing needs naming then; only gaps, task
            and provenance may be given.
        action: a column of whole numbers from 0 on (discrete actions), or a list of A columns of numbers. The name of
            a column may be a number or a tuple.
        agent: column of who acted: labels of any kind, which become strings.
        single_agent: label of the only agent, for a table without such a column.
        agent_labels: (N,) all labels in the order that the agents' indices shall have; that of their first rows if not
            given.
        episode: column that tells an agent's episodes apart.
        time: column of numbers or of times, by which the order of the rows is checked. Times may be text such as
            "2026-01-31 08:00" (ISO 8601).
        time_step: difference of ``time`` from row to row: a number or, for times, a `pandas.Timedelta` or "12h".
        gaps: where ``time`` goes on by more than a step: "error", or "split" to begin a new episode there; a row
            between two gaps, which then has no next row, is dropped.
        reward: column; rewards are zero without it.
        next_observations: D columns of the state after the action. Without them it is the next row's, and the last row
            of each episode, which has no next, is dropped, and may lack action, reward, terminated and truncated.
        terminated: column, whether the row reached a terminal state. Without ``next_observations`` the row after it
            holds that state, and must be the last of the agent or, for agents with several episodes, of the
            ``episode``.
        truncated: column, whether the episode was cut after the row; the last rows of episodes if not given.
        covariates: columns of known properties of the agents, with one value for each agent.
        task: what it is a log of.
        provenance: anything JSON can hold that says where the log comes from; by default the file's name.

    Raises:
        MissingExtraError: pandas is not installed.
        MissingFileError: there is no such file.
        InvalidDataError: columns that are missing or hold no numbers, rows out of order, missing steps, an agent with
            two values of a covariate, or values outside the task.

    """
    given = dict(locals())
    pandas = import_pandas()
    one_of("gaps", gaps, GAPS)
    frame, origin = read_table(pandas, table, agent, nameless=agent_labels is not None and "" in agent_labels)
    if observations is None:
        return _from_own_table(frame, given)
    for role in ("agent", "episode", "time", "reward", "terminated", "truncated"):
        one_column(frame, role, given[role])
    discrete = _is_column(frame, action)
    actions = [action] if discrete else list(action)
    _check_actions(action, actions, observations)
    rows = TableRows(frame, agent, single_agent, agent_labels, episode, time)
    clock = None if time is None else Clock(frame, time, time_step)
    with_last = next_observations is None
    starts = rows.episode_starts(terminated, truncated, clock, split=gaps == "split", with_last=with_last)
    spare = _last_of_episodes(starts, len(frame)) if with_last else None  # rows that may lack what is not a state
    columns: dict[str, Any] = {
        "agents": rows.agents,
        "observations": numbers(frame, observations),
        "actions": whole_numbers(frame, action, spare) if discrete else numbers(frame, actions, spare),
        "next_observations": None if next_observations is None else numbers(frame, next_observations),
        "rewards": None if reward is None else numbers(frame, [reward], spare)[:, 0],
        "terminated": None if terminated is None else flags(frame, terminated, spare),
        "truncated": None if truncated is None else flags(frame, truncated, spare),
    }
    known = get_task(task) if isinstance(task, Task) or task in task_names() else None
    if known is not None:
        _check_states(columns["observations"], observations, known)
    kept = np.arange(len(frame))  # the table's rows that the columns hold
    if next_observations is not None:
        check_successors(columns["observations"], columns["next_observations"], starts, observations, next_observations)
    elif gaps == "split":
        kept, starts = _without_single_rows(starts, len(frame))
        columns = {name: None if column is None else column[kept] for name, column in columns.items()}
    log = Trajectories.from_arrays(
        **columns,
        agent_labels=rows.labels,
        episode_starts=starts,
        covariates=rows.constants(covariates) if len(covariates) else None,
        covariate_names=tuple(covariates),
        task=task.name if isinstance(task, Task) else task,
        observation_names=_texts(observations),
        action_names=_texts(actions),
        provenance=marked_provenance(frame, {**origin, **checked_provenance(provenance)}),
    )
    if known is not None:
        check_log(log, known, rows=kept[~_last_of_episodes(starts, len(kept))] if with_last else kept)
    return log


_ROLES = {
    name: parameter.default
    for name, parameter in inspect.signature(from_dataframe).parameters.items()
    if name not in ("table", "observations", "gaps", "task", "provenance")
}
"""What a table that `to_dataframe` made says itself, and the defaults of these arguments."""


def _from_own_table(frame: Any, given: Mapping[str, Any]) -> Trajectories:
    """Return the log of a table that `to_dataframe` made and that says itself what its columns are.

    Args:
        frame: the table.
        given: all arguments of `from_dataframe`, of which only gaps, task and provenance may be other than by default.

    """
    changed = [name for name, default in _ROLES.items() if given[name] is not default and given[name] != default]
    own = own_roles(frame, changed)
    log = from_dataframe(
        frame,
        gaps=given["gaps"],
        task=own["task"] if given["task"] is None else given["task"],
        provenance=own["provenance"] if given["provenance"] is None else given["provenance"],
        **own["columns"],
    )
    return replace(log, **{what: tuple(names) for what, names in own.get("names", {}).items()})


def _is_column(frame: Any, action: Any) -> bool:
    """Whether this names one column, by a number or a tuple, too, as tables without a header or with levels do."""
    one = isinstance(action, str) or not isinstance(action, Iterable)
    return one or (isinstance(action, tuple) and action in frame.columns.tolist())


def _check_actions(given: Any, actions: Sequence[Any], observations: Sequence[Any]) -> None:
    """Raise `InvalidArgumentError` if no column was ``given`` for the actions, or one that is an observation, too."""
    if not actions:
        raise InvalidArgumentError(f"action={given!r} must be a column, or a list of one or more")
    both = [] if isinstance(observations, str) else [name for name in actions if name in observations]
    if both:
        raise InvalidArgumentError(
            f"column {both[0]!r} is an action and an observation: the state is what was known before the action"
        )


def _check_states(states: np.ndarray, names: Sequence[Any], task: Task) -> None:
    """Raise `InvalidDataError` if columns (T, D) are a task's in another order, or outside its space.

    The messages have the table's own rows and columns, which those of the log's check have not. How many columns a task
    has is left to that.
    """
    if len(names) == task.observation_size:
        check_order("observations", names, task.observation_names, task.name)
        check_within("the table", states, task.observation_space, names)


def _texts(columns: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of columns, () where some are no texts."""
    names = tuple(columns)
    return names if all(isinstance(name, str) for name in names) else ()


def _last_of_episodes(starts: np.ndarray, count: int) -> np.ndarray:
    """Return which of so many rows (T,) are the last ones of their episodes, which begin at rows (E,)."""
    last = np.zeros(count, bool)
    last[np.append(starts[1:], count) - 1] = True
    return last


def _without_single_rows(starts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Leave out episodes of a single row, which is no transition where the next observation is the next row's.

    Args:
        starts: (E,) rows at which episodes begin.
        count: the number of rows.

    Returns:
        The rows kept, and which of these begin the episodes that are left.

    """
    lengths = np.diff(np.append(starts, count))
    kept = np.flatnonzero(np.repeat(lengths > 1, lengths))
    if len(kept) == 0:
        raise InvalidDataError(
            "every row is an episode of its own, without a next row: look at time= and time_step=, or give "
            "next_observations"
        )
    return kept, np.append(0, np.cumsum(lengths[lengths > 1])[:-1])
