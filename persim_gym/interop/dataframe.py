"""Tables: logs with one row a step, as hospitals and fleets keep them, in pandas, Parquet or CSV; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym.data import Trajectories, check_log
from persim_gym.errors import (
    InvalidArgumentError,
    InvalidDataError,
    MissingFileError,
    PerSimError,
)
from persim_gym.extras import optional
from persim_gym.tasks import Task, get_task, task_names

if TYPE_CHECKING:
    import pandas

GAPS = ("error", "split")
"""What to do where a step is missing: refuse the table, or begin a new episode."""
_ATTRIBUTE = "persim_gym"
_SYNTHETIC = "synthetic"
_RECORDED = {"false", "no", "0", "0.0", "", "none", "nan", "<na>"}
"""What a table may say of a row that is not synthetic, in lower case."""
_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")


def from_dataframe(
    table: pandas.DataFrame | str | Path,
    *,
    observations: Sequence[str] | None = None,
    action: str | Sequence[str] = "action",
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
        table: a data frame, or a .csv, .csv.gz, .parquet or .pq file. Named levels of its index count as columns.
        observations: D columns, numbers, of the state before the action. A table that `to_dataframe` made knows its
            columns (in a Parquet file too): nothing needs naming then, and nothing may be but task and provenance.
        action: a column of whole numbers from 0 on (discrete actions), or a list of A columns of numbers.
        agent: column of who acted: labels of any kind, which become strings.
        single_agent: label of the only agent, for a table without such a column.
        agent_labels: (N,) all labels in the order that the agents' indices shall have; that of their first rows if not
            given.
        episode: column that tells an agent's episodes apart.
        time: column of numbers or of times, by which the order of the rows is checked.
        time_step: difference of ``time`` from row to row: a number, or a `pandas.Timedelta`.
        gaps: where ``time`` goes on by more than a step: "error", or "split" to begin a new episode there; a row
            between two gaps, which then has no next row, is dropped.
        reward: column; rewards are zero without it.
        next_observations: D columns of the state after the action. Without them it is the next row's, and the last row
            of each episode, which has no next, is dropped.
        terminated: column, whether the row reached a terminal state. Without ``next_observations`` no row does that is
            the last of its episode, and so is dropped.
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
    pandas = _import_pandas()
    if gaps not in GAPS:
        raise InvalidArgumentError(f"gaps={gaps!r} must be one of {', '.join(GAPS)}")
    frame, origin = _read(pandas, table, agent, nameless=agent_labels is not None and "" in agent_labels)
    if observations is None:
        named = {
            "action": (action, "action"), "agent": (agent, "agent"), "single_agent": (single_agent, None),
            "agent_labels": (agent_labels, None), "episode": (episode, None), "time": (time, None),
            "time_step": (time_step, 1), "gaps": (gaps, "error"), "reward": (reward, None),
            "next_observations": (next_observations, None), "terminated": (terminated, None),
            "truncated": (truncated, None), "covariates": (covariates, ()),
        }  # fmt: skip
        changed = [name for name, (given, default) in named.items() if not (given is default or given == default)]
        roles = _known_roles(frame, changed)
        return from_dataframe(
            frame,
            task=roles["task"] if task is None else task,
            provenance=roles["provenance"] if provenance is None else provenance,
            **roles["columns"],
        )
    rows = _Rows(frame, agent, single_agent, agent_labels, episode)
    starts = rows.episode_starts(terminated, truncated)
    if time is not None:
        starts = rows.checked_order(starts, time, time_step, split=gaps == "split")
    columns = {
        "agents": rows.agents,
        "observations": _numbers(frame, observations),
        "actions": _whole_numbers(frame, action) if isinstance(action, str) else _numbers(frame, action),
        "next_observations": None if next_observations is None else _numbers(frame, next_observations),
        "rewards": None if reward is None else _numbers(frame, [reward])[:, 0],
        "terminated": None if terminated is None else _flags(frame, terminated),
        "truncated": None if truncated is None else _flags(frame, truncated),
    }
    if gaps == "split" and next_observations is None:
        columns, starts = _without_single_rows(columns, starts)
    log = Trajectories.from_arrays(
        **columns,
        agent_labels=rows.labels,
        episode_starts=starts,
        covariates=rows.constants(covariates) if len(covariates) else None,
        covariate_names=tuple(covariates),
        task=task.name if isinstance(task, Task) else task,
        provenance=_provenance(frame, {**origin, **(provenance or {})}),
    )
    if isinstance(task, Task) or task in task_names():
        check_log(log, get_task(task))
    return log


def to_dataframe(log: Trajectories, *, observation_names: Sequence[str] | None = None) -> pandas.DataFrame:
    """Return a log as a data frame with one row a step; `from_dataframe` gives it back bit for bit.

    The columns are agent, episode, step, the observations' names, action (or action 0, …), reward, the observations'
    names after "next", terminated, truncated, and the covariates. A column "synthetic" marks a synthetic log. For a CSV
    file, which keeps no attributes, ``frame.attrs["persim_gym"]["columns"]`` are the arguments to read it with.

    Args:
        log: the trajectories.
        observation_names: (D,); by default the task's, or "observation 0", ….

    Raises:
        MissingExtraError: pandas is not installed.
        InvalidArgumentError: names that are too few or used twice.

    """
    pandas = _import_pandas()
    names = _observation_names(log, observation_names)
    actions = "action" if log.discrete else [f"action {index}" for index in range(log.actions.shape[1])]
    columns: dict[str, Any] = {
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
        "covariates": list(log.covariate_names) if log.covariates is not None else [],
    }
    lengths = log.episode_lengths
    labels = np.array([*log.agent_labels, None], object)[:-1]  # an object array, however long the labels are
    parts: list[tuple[str, Any]] = [
        ("agent", labels[log.agents]),
        ("episode", np.repeat(np.arange(log.num_episodes), lengths)),
        ("step", np.arange(log.num_transitions) - np.repeat(log.episode_starts, lengths)),
        *zip(names, np.asarray(log.observations).T, strict=True),
        *zip([actions] if isinstance(actions, str) else actions, np.atleast_2d(np.asarray(log.actions).T), strict=True),
        ("reward", np.asarray(log.rewards)),
        *zip(columns["next_observations"], np.asarray(log.next_observations).T, strict=True),
        ("terminated", np.asarray(log.terminated)),
        ("truncated", np.asarray(log.truncated)),
    ]
    if log.covariates is not None:
        parts += zip(log.covariate_names, np.asarray(log.covariates)[log.agents].T, strict=True)
    if log.provenance.get("synthetic"):
        parts.append((_SYNTHETIC, np.full(log.num_transitions, str(log.provenance["synthetic"]))))
    used = [name for name, _ in parts]
    if len(set(used)) < len(used):
        twice = next(name for name in used if used.count(name) > 1)
        raise InvalidArgumentError(f"two columns would be named {twice!r}: give other observation_names")
    frame = pandas.DataFrame(dict(parts))
    frame.attrs[_ATTRIBUTE] = {"columns": columns, "task": log.task, "provenance": dict(log.provenance)}
    return frame


def _import_pandas() -> Any:
    return optional("pandas", "tables")


def _read(pandas: Any, table: Any, agent: str, *, nameless: bool) -> tuple[Any, dict[str, Any]]:
    """Return the frame with rows numbered from 0, and where it comes from.

    In a CSV file an empty cell is a missing agent, unless one is ``nameless``.
    """
    origin: dict[str, Any] = {}
    if isinstance(table, (str, Path)):
        path = Path(table)
        if not path.exists():
            raise MissingFileError(f"there is no file {path}")
        origin = {"table": path.name}
        readers = {".csv": _read_csv, ".csv.gz": _read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
        reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
        if reader is None:
            raise InvalidArgumentError(f"{path} must be a .csv or .parquet file; read others with pandas yourself")
        try:
            table = reader(pandas, path, agent, nameless)
        except PerSimError:
            raise
        except Exception as error:
            raise InvalidDataError(f"{path} cannot be read as a table: {error}") from error
    if not isinstance(table, pandas.DataFrame):
        raise InvalidArgumentError(f"table must be a pandas.DataFrame or a file, got {type(table).__name__}")
    if len(table) == 0:
        raise InvalidDataError("the table has no row")
    attributes = dict(table.attrs)
    named = [name for name in table.index.names if name is not None and name not in table.columns]
    table = table.reset_index(named).reset_index(drop=True)
    table.attrs = attributes
    return table, origin


def _read_csv(pandas: Any, path: Path, agent: str, nameless: bool) -> Any:
    """Read a CSV file as it is written: the label "007" is no number, "NA" is not missing, numbers are exact."""
    # To the last bit, as pandas from 3.1 on reads by itself.
    version = tuple(map(int, pandas.__version__.split(".")[:2]))
    exact = {} if version >= (3, 1) else {"float_precision": "round_trip"}
    header = pandas.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False).iloc[0].tolist()
    names = pandas.read_csv(path, nrows=0).columns  # of two columns of one name the second is called another
    missing = {name: _MISSING for name in names} | {agent: () if nameless else ("",)}
    table = pandas.read_csv(path, dtype={agent: str}, keep_default_na=False, na_values=missing, **exact)
    if not isinstance(table.index, pandas.RangeIndex):
        raise InvalidDataError(
            f"the rows of {path} have more fields than its header has names: name every column, and let no row end "
            "with a comma"
        )
    table.columns = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    return table


def _read_parquet(pandas: Any, path: Path, agent: str, nameless: bool) -> Any:
    optional("pyarrow", "tables")
    return pandas.read_parquet(path)


def _known_roles(frame: Any, named: Sequence[str]) -> dict[str, Any]:
    """Return what `to_dataframe` noted of its table, without agents of whom no row is left."""
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


def _observation_names(log: Trajectories, given: Sequence[str] | None) -> list[str]:
    size = log.observations.shape[1]
    if given is None and log.task in task_names() and get_task(log.task or "").observation_size == size:
        return list(get_task(log.task or "").observation_names)
    names = [f"observation {index}" for index in range(size)] if given is None else list(given)
    if len(names) != size:
        raise InvalidArgumentError(f"observation_names has {len(names)} names for {size} coordinates")
    return names


def _without_single_rows(columns: dict[str, Any], starts: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Drop episodes of a single row, which is no transition where the next observation is the next row's."""
    lengths = np.diff(np.append(starts, len(columns["agents"])))
    kept = np.repeat(lengths > 1, lengths)
    shortened = {name: None if column is None else column[kept] for name, column in columns.items()}
    return shortened, np.append(0, np.cumsum(lengths[lengths > 1])[:-1])


def _provenance(frame: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Add the mark of a synthetic log that the table carries."""
    if _SYNTHETIC not in frame.columns:
        return given
    marks = {str(value).lower() for value in frame[_SYNTHETIC].tolist()}
    if marks <= _RECORDED:
        return given
    return {**given, "synthetic": True if marks == {"true"} else "in part"}


def _column(frame: Any, name: str) -> Any:
    if name not in frame.columns:
        raise InvalidDataError(f"the table has no column {name!r}; it has {', '.join(map(repr, frame.columns))}")
    if list(frame.columns).count(name) > 1:
        raise InvalidDataError(f"the table has several columns {name!r}: rename all but one")
    column = frame[name]
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise InvalidDataError(
            f"column {name!r} has no value in row {missing[0]} ({len(missing)} such rows): fill them in or leave the "
            "rows out"
        )
    return column


def _numbers(frame: Any, names: Sequence[str]) -> np.ndarray:
    """Return columns (T, …) of numbers."""
    if isinstance(names, str):
        raise InvalidArgumentError(f"give a list of columns, [{names!r}]")
    columns = []
    for name in names:
        column = _column(frame, name)
        if column.dtype.kind not in "fiub":
            raise InvalidDataError(_no_number(name, column))
        columns.append(column.to_numpy(np.float32 if column.dtype == np.float32 else np.float64))
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0), np.float32)


def _no_number(name: str, column: Any) -> str:
    """Say which value of a column is no number, or that all are, but kept as something else."""
    numbers = _import_pandas().to_numeric(column.astype(str), errors="coerce")
    wrong = np.flatnonzero(numbers.isna().to_numpy())
    if len(wrong) == 0:
        return f"column {name!r} holds numbers as {column.dtype}; make it table[{name!r}].astype(float)"
    return (
        f"column {name!r} holds {column.iloc[int(wrong[0])]!r} in row {wrong[0]}, which is no number; states need one "
        f"column of numbers for each category, actions their numbers, table[{name!r}].astype('category').cat.codes"
    )


def _whole_numbers(frame: Any, name: str) -> np.ndarray:
    """Return a column (T,) of discrete actions."""
    column = _numbers(frame, [name])[:, 0]
    wrong = np.flatnonzero((column != np.floor(column)) | (column < 0) | (column >= 2**31))
    if len(wrong):
        raise InvalidDataError(
            f"column {name!r} holds {column[wrong[0]]} in row {wrong[0]}: discrete actions are whole numbers from 0 "
            f"on; for continuous ones give a list, action=[{name!r}]"
        )
    return column.astype(np.int64)


def _flags(frame: Any, name: str) -> np.ndarray:
    column = _numbers(frame, [name])[:, 0]
    wrong = np.flatnonzero(~np.isin(column, (0, 1)))
    if len(wrong):
        raise InvalidDataError(
            f"column {name!r} holds {column[wrong[0]]:g} in row {wrong[0]}; it must hold true or false, or 1 or 0"
        )
    return column.astype(bool)


class _Rows:
    """Whose the rows are, and where their episodes begin."""

    def __init__(
        self, frame: Any, agent: str, single_agent: str | None, labels: Sequence[str] | None, episode: str | None
    ) -> None:
        self._frame = frame
        if single_agent is not None:
            named = [single_agent] * len(frame)
        elif agent not in frame.columns:
            raise InvalidDataError(
                f"the table has no column {agent!r} of agents; name it with agent=, or give single_agent='its label' "
                f"if all rows are of one agent. It has {', '.join(map(repr, frame.columns))}"
            )
        else:
            named = [str(label) for label in _column(frame, agent).tolist()]
        found = tuple(dict.fromkeys(named))
        self.labels = found if labels is None else tuple(map(str, labels))
        position = {label: index for index, label in enumerate(self.labels)}
        strangers = [label for label in found if label not in position]
        if strangers:
            raise InvalidDataError(f"the table has agent {strangers[0]!r}, which agent_labels lacks")
        idle = sorted(position.keys() - set(found), key=position.__getitem__)
        if idle:
            raise InvalidDataError(f"agent {idle[0]!r} has no transition: leave it out of agent_labels")
        self.agents = np.array([position[label] for label in named], np.int64)
        self._episodes = np.zeros(len(frame), np.int64)
        if episode is not None:
            self._episodes = _import_pandas().factorize(_column(frame, episode))[0]
        self._hint = f"table.sort_values({[name for name in (agent, episode) if name in frame.columns]})"

    def episode_starts(self, terminated: str | None, truncated: str | None) -> np.ndarray:
        """Return the rows (E,) at which episodes begin."""
        keys = np.stack([self.agents, self._episodes], axis=1)
        change = np.ones(len(keys), bool)
        change[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        blocks = keys[change]
        if len(np.unique(blocks, axis=0)) < len(blocks):
            seen: set[tuple[int, ...]] = set()
            for row, key in zip(np.flatnonzero(change), map(tuple, blocks), strict=True):
                if key in seen:
                    raise InvalidDataError(
                        f"row {row} goes on with agent {self.labels[key[0]]!r} after rows of others: the rows of an "
                        f"episode must stand together; sort them first, {self._hint}"
                    )
                seen.add(key)
        for name in (terminated, truncated):
            if name is not None:
                change[1:] |= _flags(self._frame, name)[:-1]
        return np.flatnonzero(change)

    def checked_order(self, starts: np.ndarray, time: str, time_step: Any, *, split: bool) -> np.ndarray:
        """Return the episodes' first rows, after a check that ``time`` goes on step by step within each."""
        column = _column(self._frame, time)
        if column.dtype.kind not in "iufMm":
            raise InvalidDataError(
                f"column {time!r} holds {column.iloc[0]!r}; give numbers or times (pandas.to_datetime)"
            )
        if column.dtype.kind in "Mm" and isinstance(time_step, Real):
            raise InvalidArgumentError(
                f"column {time!r} holds times: give time_step=pandas.Timedelta('1h') or the like"
            )
        try:
            forward = bool(time_step > type(time_step)(0))
        except (TypeError, ValueError):  # no length of time, such as None or a month, which may be of any
            forward = False
        if not forward:
            raise InvalidArgumentError(f"time_step={time_step!r} must be above 0: a number, or a pandas.Timedelta")
        if column.dtype.kind == "u":  # differences of numbers without a sign wrap around
            column = column.astype(np.float64)
        inner = np.ones(len(column), bool)
        inner[starts] = False
        difference = column.diff()
        try:
            steps = (difference / time_step).to_numpy(np.float64)
        except TypeError as error:
            raise InvalidArgumentError(
                f"time_step={time_step!r} does not fit column {time!r}; for times give a pandas.Timedelta"
            ) from error
        steps = np.where(inner, steps, 1.0)
        rounding = 1e-6
        if column.dtype.kind == "f":  # seconds since 1970 tell no more than some ten millionths
            rounding = max(rounding, 4 * float(np.spacing(np.abs(column.to_numpy()).max())) / float(time_step))
        for wrong, message in (
            (steps == 0, "two rows have the same time; drop one of them or take their mean"),
            (steps < 0, f"rows are out of order; sort them first, {self._hint[:-2]}, {time!r}])"),
            (steps < 1 - rounding, f"the step is less than time_step={time_step!r}"),
        ):
            rows = np.flatnonzero(wrong)
            if len(rows):
                raise InvalidDataError(self._jump(time, int(rows[0])) + message)
        gaps = np.flatnonzero(steps > 1 + rounding)
        if len(gaps) and not split:
            raise InvalidDataError(
                f"{self._jump(time, int(gaps[0]))}steps are missing ({len(gaps)} such places); fill them in, or give "
                "gaps='split' to begin a new episode after each"
            )
        return np.union1d(starts, gaps)

    def constants(self, names: Sequence[str]) -> np.ndarray:
        """Return covariates (N, K), which have one value for each agent."""
        values = _numbers(self._frame, names).astype(np.float64)
        first = np.unique(self.agents, return_index=True)[1]
        differs = np.argwhere(values != values[first][self.agents])
        if len(differs):
            row, column = differs[0]
            label = self.labels[self.agents[row]]
            raise InvalidDataError(
                f"covariate {names[column]!r} of agent {label!r} is {values[first][self.agents][row, column]} at first "
                f"and {values[row, column]} in row {row}; a property that changes is an observation"
            )
        return values[first]

    def _jump(self, time: str, row: int) -> str:
        before, after = self._frame[time].iloc[row - 1], self._frame[time].iloc[row]
        return f"{time!r} of agent {self.labels[self.agents[row]]!r} goes from {before} to {after} in row {row}: "
