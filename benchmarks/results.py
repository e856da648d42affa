"""The results files, one a table and scale, and their comparison with the paper's figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import protocol
from cells import Cell, Measured
from measurement_file import RESULTS, MeasurementFile
from protocol import PAPER_METHOD, Scale, Table

from persim_gym.errors import FileFormatError

REFERENCE = Path(__file__).parent / "reference"


@dataclass(frozen=True)
class Row:
    """One line of a results file."""

    table: int
    env: str
    data: str
    method: str
    agent: str
    metric: str
    mean: float
    """Over the seeds."""
    std: float
    """Over the seeds, unbiased; not a number for a single one."""
    seeds: int
    scale: str
    commit: str
    wall_s: float
    """Seconds to come by all seeds and agents of this method and data set from nothing."""


Key = tuple[str, str, str]
"""(env, data, method)."""


def results_file(table: Table, scale: Scale, folder: Path = RESULTS) -> MeasurementFile[Row]:
    """Return a table's results file."""
    path = folder / f"table{table.number}{scale.file_suffix}.csv"
    return MeasurementFile(path, Row, key=("env", "data", "method"), order=_order, versioned=True)


def read(table: Table, scale: Scale, folder: Path = RESULTS) -> list[Row]:
    """Return the rows of a results file, none if there is no file.

    Raises:
        FileFormatError: the file is of another version of the protocol, or not a results file.

    """
    file = results_file(table, scale, folder)
    rows = file.read()
    if any((row.table, row.scale) != (table.number, scale.name) for row in rows):
        raise FileFormatError(f"{file.path} holds rows of another table or scale; move it away and measure again")
    return sorted(rows, key=_order)


def num_seeds(rows: Sequence[Row], key: Key) -> int:
    """Return with how many seeds a method was measured, 0 if it was not."""
    return min((row.seeds for row in rows if (row.env, row.data, row.method) == key), default=0)


def rows_of(cell: Cell, measured: Sequence[Measured]) -> list[Row]:
    """Return the rows of one method and data set, from its seeds' scores."""
    scores: dict[tuple[str, str], list[float]] = {}
    for one in measured:
        for score in one.scores:
            scores.setdefault((score.agent, score.metric), []).append(score.value)
    wall = round(sum(one.wall_s for one in measured), 1)
    return [
        Row(
            cell.table.number, cell.env, cell.data, cell.method, agent, metric, float(np.mean(values)),
            float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
            len(values), cell.scale.name, measured[-1].commit, wall,
        )
        for (agent, metric), values in scores.items()
    ]  # fmt: skip


def paper(table: Table) -> dict[tuple[str, str, str, str, str], tuple[float, float]]:
    """Return the paper's mean and deviation (not a number if not given) by (env, data, method, agent, metric)."""
    figures, unknown = {}, float("nan")
    for line in _reference("observed_reward.csv", table):
        key = (line["env"], line["data"], protocol.LOG, line["agent"], line["metric"])
        figures[key] = float(line["mean"]), unknown
    for line in _reference("prediction_error.csv", table):
        for metric in ("rmse", "r2"):
            key = (line["env"], line["data"], line["method"], line["agent"], metric)
            figures[key] = float(line[metric]), unknown
    for line in [*_reference("average_reward.csv", table), *_reference("augmentation.csv", table)]:
        key = (line["env"], line["data"], line["method"], line["agent"], "return")
        figures[key] = float(line["mean"]), float(line["std"])
    for line in _reference("unseen_agents.csv", table):
        key = (line["env"], line["data"], line["method"], line["agent"])
        if line["metric"] == "rmse":
            figures[(*key, "rmse")] = float(line["value"]), unknown
            figures[(*key, "r2")] = float(line["spread"]), unknown
        else:
            figures[(*key, "return")] = float(line["value"]), float(line["spread"])
    for line in _reference("data_scarcity.csv", table):
        key = (line["env"], line["data"], f"{line['method']}(N={line['n_agents']})", line["agent"], "return")
        figures[key] = float(line["mean"]), float(line["std"])
    return figures


def comparison(table: Table, rows: Sequence[Row]) -> str:
    """Return a Markdown table of our rows beside the paper's, all of them, with the best of ours in bold."""
    figures, best = paper(table), best_of(rows)
    agents = list(dict.fromkeys(row.agent for row in rows))
    lines = [["env", "data", "score", "method", *(f"agent {a}" if a.isdigit() else a for a in agents)]]
    groups = dict.fromkeys((row.env, row.data, metric) for row in rows for metric in table.metrics)
    for env, data, metric in groups:
        group = [row for row in rows if (row.env, row.data, row.metric) == (env, data, metric)]
        for method in dict.fromkeys(row.method for row in group):
            of_agent = {row.agent: row for row in group if row.method == method}
            seeds = next(iter(of_agent.values())).seeds
            label = f"{method} ({seeds} seed{'s' if seeds > 1 else ''})"
            ours = [_our_figure(of_agent[a], best) if a in of_agent else "" for a in agents]
            lines.append([env, data, metric, label, *ours])
        published_here = [key[2] for key in figures if (*key[:2], key[4]) == (env, data, metric)]
        for method in dict.fromkeys([*(PAPER_METHOD[row.method] for row in group), *published_here]):
            theirs = [figures.get((env, data, method, agent, metric)) for agent in agents]
            if any(theirs):
                published = ["" if figure is None else _format(*figure, metric) for figure in theirs]
                lines.append([env, data, metric, f"*paper: {method}*", *published])
    return markdown(lines)


def best_of(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], float]:
    """Return the best learned mean by (env, data, agent, metric), where several methods are measured."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        if row.data != protocol.NO_DATA:
            groups.setdefault((row.env, row.data, row.agent, row.metric), []).append(row.mean)
    choose = {True: min, False: max}
    return {key: choose[key[3] == "rmse"](means) for key, means in groups.items() if len(means) > 1}


def leaders(table: Table, rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Return in how many cells one of some methods is the best of ours, or within the best's deviation of it.

    Only cells in which a method other than PerSim is measured count; "" if there are none.
    """
    by_key: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.data != protocol.NO_DATA and row.metric == table.metrics[0]:
            by_key.setdefault((row.env, row.data, row.agent), []).append(row)
    contested = [group for group in by_key.values() if any(not protocol.is_persim(row.method) for row in group)]
    first = near = 0
    for group in contested:
        sign = 1 if table.metrics[0] == "rmse" else -1
        winner = min(group, key=lambda row: sign * row.mean)
        distances = [abs(row.mean - winner.mean) for row in group if row.method in methods]
        first += min(distances, default=np.inf) == 0
        near += min(distances, default=np.inf) <= np.nan_to_num(winner.std)
    if not contested:
        return ""
    return (
        f"{' or '.join(methods)}: the best of our figures in {first} of the {len(contested)} cells in which other "
        f"methods are measured, too; the best, or within its standard deviation of it, in {near}."
    )


def not_measured(table: Table, scale: Scale, rows: Sequence[Row]) -> str:
    """Return which rows of a table are missing at a scale, as a sentence; "" if none is."""
    measured = {(row.env, row.data, row.method) for row in rows}
    envs, parts = [env for env in table.envs if env in scale.envs], []
    for method in (*table.learned, *table.true):
        lacking = []
        for env in envs:
            wanted = [data for data in protocol.DATA if method in table.methods(data)]
            missing = [data for data in wanted if (env, data, method) not in measured]
            if missing:
                names = [env] if len(envs) > 1 else []
                lacking.append(" ".join([*names, *([] if missing == wanted else [", ".join(missing)])]))
        if lacking:
            parts.append(f"{method} ({'; '.join(lacking)})" if any(lacking) else method)
    return f"Not measured yet: {'; '.join(parts)}." if parts else ""


def intervals(rows: Sequence[Row]) -> str:
    """Return how wide the 95 % interval of a mean over seeds is, for the numbers of seeds in some rows."""
    counts = sorted({row.seeds for row in rows if row.seeds in _STUDENT})
    parts = [f"{_STUDENT[count] / count**0.5:.2f} standard deviations for {count} seeds" for count in counts]
    return f"95 % confidence interval of a mean (Student's t): ± {', ± '.join(parts)}." if parts else ""


_TOO_LONG = 1e5
"""Figures from which on only the magnitude is printed: a model that diverges."""
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t by number of seeds."""


def _our_figure(row: Row, best: dict[tuple[str, str, str, str], float]) -> str:
    text = _format(row.mean, row.std, row.metric)
    return f"**{text}**" if best.get((row.env, row.data, row.agent, row.metric)) == row.mean else text


def tally(table: Table, rows: Sequence[Row], method: str) -> str:
    """Return in how many cells a method reaches the paper's figure."""
    figures = paper(table)
    metric = table.metrics[0]
    pairs = [
        (row.mean, figures[key])
        for row in rows
        if (row.method, row.metric) == (method, metric)
        and (key := (row.env, row.data, PAPER_METHOD[method], row.agent, metric)) in figures
    ]
    if metric == "rmse":
        half_digit = 0.0005  # the paper prints three decimals
        good = sum(ours <= theirs + half_digit for ours, (theirs, _) in pairs)
        near = sum(ours <= 2 * (theirs + half_digit) for ours, (theirs, _) in pairs)
        return f"{method}: RMSE at or below the paper's in {good} of {len(pairs)} cells, within twice in {near}."
    good = sum(ours >= mean - np.nan_to_num(std) for ours, (mean, std) in pairs)
    return f"{method}: return at or above the paper's mean minus one deviation in {good} of {len(pairs)} cells."


def _order(row: Row) -> tuple[int | str, ...]:
    table = protocol.get_table(row.table)
    methods = list(PAPER_METHOD)
    return (
        table.envs.index(row.env),
        protocol.DATA.index(row.data),
        methods.index(row.method),
        table.metrics.index(row.metric),
        row.agent,
    )


def _reference(name: str, table: Table) -> list[dict[str, str]]:
    with open(REFERENCE / name, newline="") as file:
        return [line for line in csv.DictReader(file) if int(line["table"]) == table.number]


def _format(mean: float, std: float, metric: str) -> str:
    digits = {"rmse": 4, "r2": 3}.get(metric, 1)
    mean_text, std_text = (f"{one:.{digits}f}" if abs(one) < _TOO_LONG else f"{one:.0e}" for one in (mean, std))
    return mean_text if np.isnan(std) else f"{mean_text} ± {std_text}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, the first line its heading, as aligned Markdown."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    ruled = (lines[0], ["-" * width for width in widths], *lines[1:])
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in ruled]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
