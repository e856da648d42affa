"""The results files, one a table and scale, and their comparison with the paper's figures."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np
import protocol
from cells import Cell, Measured, versions
from measurement_file import RESULTS, MeasurementFile
from methods import LOG, METHODS, Planner
from protocol import Scale, Table
from seeds import ByRow

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
    """Versions of the code that measured the seeds, separated by spaces."""
    wall_s: float
    """Seconds to come by all seeds and agents of this method and data set from nothing."""


ONE_SEED = "†"
"""Behind the best figure where it is of a single seed, so without an interval."""
SEVERAL_BUDGETS = "‡"
"""Behind the number of a row's seeds, where these were not all trained and tried alike."""
_NO_VALUES: ByRow = MappingProxyType({})
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
    """Return the rows of one method and data set, from its seeds' scores in the table's metrics."""
    scores: dict[tuple[str, str], list[float]] = {}
    for one in measured:
        for score in one.scores:
            scores.setdefault((score.agent, score.metric), []).append(score.value)
    wall = round(sum(one.wall_s for one in measured), 1)
    return [
        Row(
            cell.table.number, cell.env, cell.data, cell.method, agent, metric, float(np.mean(values)),
            float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
            len(values), cell.scale.name, versions(one.commit for one in measured), wall,
        )
        for (agent, metric), values in scores.items()
        if metric in cell.table.metrics
    ]  # fmt: skip


def paper(table: Table) -> dict[tuple[str, str, str, str, str], tuple[float, float]]:
    """Return the paper's mean and deviation (not a number if not given) by (env, data, method, agent, metric)."""
    figures, unknown = {}, float("nan")
    for line in _reference("observed_reward.csv", table):
        key = (line["env"], line["data"], LOG, line["agent"], line["metric"])
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


def comparison(table: Table, rows: Sequence[Row], mixed: Collection[Key] = ()) -> str:
    """Return a Markdown table of our rows beside the paper's, with the best of ours, and what is tied, in bold.

    Rows are marked that are ``mixed``, of seeds of several budgets.
    """
    figures, best = paper(table), best_of(rows)
    agents = list(dict.fromkeys(row.agent for row in rows))
    lines = [["env", "data", "score", "method", *(f"agent {a}" if a.isdigit() else a for a in agents)]]
    groups = dict.fromkeys((row.env, row.data, metric) for row in rows for metric in table.metrics)
    for env, data, metric in groups:
        group = [row for row in rows if (row.env, row.data, row.metric) == (env, data, metric)]
        for method in dict.fromkeys(row.method for row in group):
            of_agent = {row.agent: row for row in group if row.method == method}
            seeds = next(iter(of_agent.values())).seeds
            mark = f" {SEVERAL_BUDGETS}" if (env, data, method) in mixed else ""
            label = f"{method} ({seeds} seed{'s' if seeds > 1 else ''}{mark})"
            ours = [_our_figure(of_agent[a], best) if a in of_agent else "" for a in agents]
            lines.append([env, data, metric, label, *ours])
        published_here = [key[2] for key in figures if (*key[:2], key[4]) == (env, data, metric)]
        for method in dict.fromkeys([*(METHODS[row.method].paper for row in group), *published_here]):
            theirs = [figures.get((env, data, method, agent, metric)) for agent in agents]
            if any(theirs):
                published = ["" if figure is None else _format(*figure, metric) for figure in theirs]
                lines.append([env, data, metric, f"*paper: {method}*", *published])
    return markdown(lines)


def best_of(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], Row]:
    """Return the best learned row by (env, data, agent, metric), where several methods are measured."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row.data != protocol.NO_DATA:
            groups.setdefault((row.env, row.data, row.agent, row.metric), []).append(row)
    return {key: _best(group) for key, group in groups.items() if len(group) > 1}


def tied(one: Row, other: Row) -> bool:
    """Return whether figures of one cell print the same."""
    return _format(one.mean, np.nan, one.metric) == _format(other.mean, np.nan, other.metric)


@dataclass(frozen=True)
class Lead:
    """In how many cells some methods of ours lead."""

    compared: str
    """With which rows, in words."""
    who: str
    cells: int = 0
    """In which they and others are measured."""
    alone: int = 0
    tied: int = 0
    """Cells in which they and others are the best."""
    near: int = 0
    """Cells in which they are the best, or within the best's standard deviation of it."""

    @property
    def texts(self) -> list[str]:
        """A line of a table."""
        return [self.compared, self.who, *map(str, (self.cells, self.alone, self.tied, self.near))]

    def __str__(self) -> str:
        """A sentence."""
        return (
            f"{self.compared}, {self.who}: alone best in {self.alone}, tied at the best in {self.tied}, best or within "
            f"the best's standard deviation of it in {self.near} of {self.cells} cells."
        )


def leads(table: Table, rows: Sequence[Row], methods: Sequence[str], values: ByRow = _NO_VALUES) -> list[Lead]:
    """Return where some methods, all of the factorized model, lead, and after them the strongest other one.

    Episodes have first states that are harder or easier for everybody, each seed its own, in the same order for all
    methods: two rows are compared by the seeds that both have, and of a seed by the episodes that both have, as far as
    their ``values`` are known.

    Where plans by MPC stand beside those by value iteration or beside learned policies, the methods of either planner
    are compared with one another first, and then by planner with all rows.
    """
    rows = [row for row in rows if row.data != protocol.NO_DATA and row.metric == table.metrics[0]]
    planners = (Planner.MPC, Planner.VALUE_ITERATION)
    by_mpc, by_grid = ([one for one in methods if METHODS[one].acts_by(planner)] for planner in planners)
    planned, solved = ([row for row in rows if METHODS[row.method].acts_by(planner)] for planner in planners)
    if not by_mpc or len(planned) == len(rows):
        asked = [("All rows", rows, [methods])]
    else:
        asked = [
            ("Rows that plan by MPC", planned, [by_mpc]),
            ("Rows of value iteration", solved, [by_grid]),
            ("All rows", rows, [by_mpc, by_grid]),
        ]
    found = []
    for compared, group, ours in asked:
        others = dict.fromkeys(row.method for row in group if not METHODS[row.method].is_persim)
        rivals = [lead(compared, group, [other], values) for other in others]
        if rivals:
            found += [lead(compared, group, some, values) for some in ours if some]
            found.append(max(rivals, key=lambda lead: (lead.near, lead.alone, lead.tied)))
    return [lead for lead in found if lead.cells]


def lead(compared: str, rows: Sequence[Row], methods: Sequence[str], values: ByRow = _NO_VALUES) -> Lead:
    """Count cells in which the best row of one family's methods leads those of all others; ``values`` as in `leads`."""
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.env, row.data, row.agent), []).append(row)
    family = METHODS[methods[0]].family
    count = alone = both = near = 0
    for group in cells.values():
        ours = [row for row in group if row.method in methods]
        theirs = [row for row in group if METHODS[row.method].family != family]
        if ours and theirs:
            own = _best(ours)
            ahead, strongest = max(((_ahead(rival, own, values), rival) for rival in theirs), key=itemgetter(0))
            count += 1
            alone += ahead < 0
            both += ahead == 0
            near += ahead <= np.nan_to_num(strongest.std)
    return Lead(compared, " or ".join(methods), count, alone, both, near)


def _ahead(one: Row, other: Row, values: ByRow) -> float:
    """Return by how much a row is better than another of its cell on the episodes of both; 0 where it prints the same.

    Where they have no seed in common, or not all are known, their means over all they have are compared.
    """
    by_seed = [values.get((row.env, row.data, row.method, row.agent), {}) for row in (one, other)]
    common = by_seed[0].keys() & by_seed[1].keys()
    means = [one.mean, other.mean]
    if common and [len(known) for known in by_seed] == [one.seeds, other.seeds]:
        episodes = {seed: min(known[seed].episodes for known in by_seed) for seed in sorted(common)}
        means = [float(np.mean([known[seed].of_first(n) for seed, n in episodes.items()])) for known in by_seed]
    if len({_format(mean, np.nan, one.metric) for mean in means}) == 1:
        return 0.0
    return means[1] - means[0] if one.metric == "rmse" else means[0] - means[1]


def _best(rows: Sequence[Row]) -> Row:
    return (min if rows[0].metric == "rmse" else max)(rows, key=lambda row: row.mean)


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
    texts = [f"95 % confidence interval of a mean (Student's t): ± {', ± '.join(parts)}."] if parts else []
    best = best_of(rows)
    if any(_our_figure(row, best).endswith(ONE_SEED) for row in rows):
        texts.append(f"{ONE_SEED}: of one seed, so without an interval.")
    return " ".join(texts)


_TOO_LONG = 1e3
"""Errors from which on three digits are printed, of the deviation, too: of a model that diverges."""
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t by number of seeds."""


def _our_figure(row: Row, best: dict[tuple[str, str, str, str], Row]) -> str:
    text, leader = _format(row.mean, row.std, row.metric), best.get((row.env, row.data, row.agent, row.metric))
    if leader is None or not tied(row, leader):
        return text
    return f"**{text}**" if row.seeds > 1 else f"**{text}** {ONE_SEED}"


def tally(table: Table, rows: Sequence[Row], method: str) -> str:
    """Return in how many cells a method reaches the paper's figure."""
    figures = paper(table)
    metric = table.metrics[0]
    pairs = [
        (row.mean, figures[key])
        for row in rows
        if (row.method, row.metric) == (method, metric)
        and (key := (row.env, row.data, METHODS[method].paper, row.agent, metric)) in figures
    ]
    if metric == "rmse":
        half_digit = 0.0005  # the paper prints three decimals
        good = sum(ours <= theirs + half_digit for ours, (theirs, _) in pairs)
        near = sum(ours <= 2 * (theirs + half_digit) for ours, (theirs, _) in pairs)
        cells = f"{good} of {len(pairs)} cells, within twice in {near}"
        return f"{method}: RMSE at or below the paper's, to its three decimals, in {cells}."
    good = sum(ours >= mean - np.nan_to_num(std) for ours, (mean, std) in pairs)
    return f"{method}: return at or above the paper's mean minus one deviation in {good} of {len(pairs)} cells."


def _order(row: Row) -> tuple[int | str, ...]:
    table = protocol.get_table(row.table)
    methods = list(METHODS)
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
    fixed = metric not in ("rmse", "r2") or max(abs(mean), abs(std)) < _TOO_LONG
    mean_text, std_text = (f"{one:.{digits}f}" if fixed else f"{one:.3g}" for one in (mean, std))
    return mean_text if np.isnan(std) else f"{mean_text} ± {std_text}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, the first line its heading, as aligned Markdown."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    ruled = (lines[0], ["-" * width for width in widths], *lines[1:])
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in ruled]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
