"""Every seed's scores, one file a scale: what the tables' means are of, and what a later run need not measure again.

A line is one number of one agent. Tables that share a measurement share its lines (`cells.canonical`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, Measured, Score, canonical, episodes_of
from measurement_file import RESULTS, MeasurementFile
from protocol import Scale, Table, get_table


@dataclass(frozen=True)
class SeedScore:
    """One number of one agent: a line of the file."""

    table: int
    env: str
    data: str
    method: str
    seed: int
    agent: str
    metric: str
    value: float
    episodes: int
    """How many of the agent it is of."""
    commit: str
    wall_s: float
    """Seconds to come by all numbers of this seed from nothing."""
    training: str
    """How much its method was trained, in words; "" where the scale had no budget for it."""
    of_each: str = ""
    """Return of each episode in the order of their first states, separated by spaces; "" where it was not kept."""


@dataclass(frozen=True)
class SeedValue:
    """What is known of one seed of a row and agent in the first metric of its table."""

    mean: float
    episodes: int
    of_each: tuple[float, ...] = ()
    """Of the episodes one by one, () where these are not known."""

    def of_first(self, episodes: int) -> float:
        """Return the mean of the first so many episodes; of all of them, where they are not known one by one."""
        return float(np.mean(self.of_each[:episodes])) if self.of_each else self.mean


ByRow = Mapping[tuple[str, str, str, str], Mapping[int, SeedValue]]
"""(env, data, method, agent) -> seed -> value."""
_METHOD = ("table", "env", "data", "method")
_method_of = attrgetter(*_METHOD)


def seeds_file(scale: Scale, folder: Path = RESULTS) -> MeasurementFile[SeedScore]:
    """Return a scale's file."""
    key = (*_METHOD, "seed")
    path = folder / f"seeds{scale.file_suffix}.csv"
    return MeasurementFile(path, SeedScore, key=key, order=attrgetter(*key), versioned=True)


@dataclass(frozen=True)
class Seeds:
    """The scores in one scale's file, read anew at each question: other runs may write there too."""

    scale: Scale
    folder: Path = RESULTS
    current_only: bool = False
    """Whether scores count as not measured where their method was trained or tried otherwise than it is today."""

    def get(self, cell: Cell) -> Measured | None:
        """Return what was measured of a cell, None if nothing was."""
        return self._by_seed(cell).get(cell.seed)

    def all_of(self, cell: Cell) -> list[Measured]:
        """Return what was measured of a cell and of those that differ from it by the seed, in the order of seeds."""
        return [measured for _, measured in sorted(self._by_seed(cell).items())]

    def put(self, cell: Cell, measured: Measured) -> None:
        """Write down what was measured of a cell."""
        lines = [
            SeedScore(
                *_method_of_cell(cell),
                cell.seed,
                one.agent,
                one.metric,
                one.value,
                episodes_of(cell),
                measured.commit,
                measured.wall_s,
                in_words(self.scale.training(cell.method, cell.env)),
                " ".join(format(value, ".6g") for value in one.of_each),
            )
            for one in measured.scores
        ]
        seeds_file(self.scale, self.folder).replace(lines)

    def _by_seed(self, cell: Cell) -> dict[int, Measured]:
        """Return what was measured of a cell and of those that differ from it by the seed."""
        lines: dict[int, list[SeedScore]] = {}
        for line in seeds_file(self.scale, self.folder).read():
            if _method_of(line) == _method_of_cell(cell) and not (self.current_only and outdated(line, self.scale)):
                lines.setdefault(line.seed, []).append(line)
        return {seed: _measured(of_seed) for seed, of_seed in lines.items()}


def values_of(table: Table, scale: Scale, folder: Path = RESULTS) -> ByRow:
    """Return what is written down of a table's first metric, by seed."""
    found: dict[tuple[Any, ...], dict[str, dict[int, SeedValue]]] = {}
    for line in seeds_file(scale, folder).read():
        if line.metric == table.metrics[0]:
            value = SeedValue(line.value, line.episodes, _of_each(line))
            found.setdefault(_method_of(line), {}).setdefault(line.agent, {})[line.seed] = value
    values: dict[tuple[str, str, str, str], dict[int, SeedValue]] = {}
    for _, env, data, method in found:
        if env in table.envs:
            lines = found.get(_method_of_cell(Cell(table, env, data, method, 0, scale)), {})
            values |= {(env, data, method, agent): seeds for agent, seeds in lines.items()}
    return values


def of_several_budgets(table: Table, scale: Scale, folder: Path = RESULTS) -> set[tuple[str, str, str]]:
    """Return (env, data, method) of the rows of a table whose seeds were not all trained and tried for as long."""
    budgets: dict[tuple[Any, ...], set[tuple[str, int]]] = {}
    for line in seeds_file(scale, folder).read():
        budgets.setdefault(_method_of(line), set()).add((line.training, line.episodes))
    rows = (Cell(table, env, data, method, 0, scale) for _, env, data, method in budgets if env in table.envs)
    return {(cell.env, cell.data, cell.method) for cell in rows if len(budgets.get(_method_of_cell(cell), ())) > 1}


def outdated(line: SeedScore, scale: Scale) -> bool:
    """Return whether a line's method was trained or tried for longer or shorter than it is today."""
    cell = Cell(get_table(line.table), line.env, line.data, line.method, line.seed, scale)
    return (line.training, line.episodes) != (in_words(scale.training(line.method, line.env)), episodes_of(cell))


def in_words(training: Mapping[str, Any]) -> str:
    """Return how much a method is trained, as files and tables have it."""
    texts = {name: f"{value:,}" if isinstance(value, int) else value for name, value in training.items()}
    return ", ".join(f"{name} = {text}" for name, text in texts.items())


def _measured(lines: list[SeedScore]) -> Measured:
    """Return the scores of one cell's lines."""
    scores = tuple(Score(line.agent, line.metric, line.value, _of_each(line)) for line in lines)
    return Measured(scores, lines[0].commit, lines[0].wall_s)


def _of_each(line: SeedScore) -> tuple[float, ...]:
    return tuple(map(float, line.of_each.split()))


def _method_of_cell(cell: Cell) -> tuple[int, str, str, str]:
    same = canonical(cell)
    return same.table.number, same.env, same.data, same.method
