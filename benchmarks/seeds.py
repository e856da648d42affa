"""Every seed's scores, one file a scale: what the tables' means are of, and what a later run need not measure again.

A line is one number of one agent. Tables that share a measurement share its lines (`cells.canonical`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import results
from cells import Cell, Measured, Score, canonical
from protocol import Scale

from persim_gym.errors import FileFormatError

COLUMNS = ("table", "env", "data", "method", "seed", "agent", "metric", "value", "commit", "wall_s")
_Key = tuple[str, str, str, str, str]


def seeds_file(scale: Scale, folder: Path = results.RESULTS) -> Path:
    """Return the name of a scale's file."""
    return folder / f"seeds{results.suffix(scale)}.csv"


@dataclass(frozen=True)
class Seeds:
    """The scores in one scale's file, read anew at each question: other runs may write there too."""

    scale: Scale
    folder: Path = results.RESULTS

    def get(self, cell: Cell) -> Measured | None:
        """Return what was measured of a cell, None if nothing was."""
        lines = [line for line in self._read() if _key_of(line) == _key(cell)]
        return _measured(lines) if lines else None

    def all_of(self, cell: Cell) -> list[Measured]:
        """Return what was measured of a cell and of those that differ from it by the seed, in the order of seeds."""
        by_seed: dict[int, list[dict[str, str]]] = {}
        for line in self._read():
            if _key_of(line)[:-1] == _key(cell)[:-1]:
                by_seed.setdefault(int(line["seed"]), []).append(line)
        return [_measured(by_seed[seed]) for seed in sorted(by_seed)]

    def put(self, cell: Cell, measured: Measured) -> None:
        """Write down what was measured of a cell."""
        key = _key(cell)
        new = [
            dict(zip(COLUMNS, (*key, one.agent, one.metric, f"{one.value:.6g}", measured.commit,
                               f"{measured.wall_s:g}"), strict=True))
            for one in measured.scores
        ]  # fmt: skip
        kept = [line for line in self._read() if _key_of(line) != key]
        results.write_lines(seeds_file(self.scale, self.folder), COLUMNS, sorted([*kept, *new], key=_order))

    def _read(self) -> list[dict[str, str]]:
        path = seeds_file(self.scale, self.folder)
        lines = results.read_lines(path, COLUMNS)
        try:
            for line in lines:
                int(line["table"]), int(line["seed"]), float(line["value"]), float(line["wall_s"])
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is damaged ({error}); move it away and measure again") from error
        return lines


def _measured(lines: Sequence[dict[str, str]]) -> Measured:
    """Return the scores of one cell's lines."""
    scores = tuple(Score(line["agent"], line["metric"], float(line["value"])) for line in lines)
    return Measured(scores, lines[0]["commit"], float(lines[0]["wall_s"]))


def _key(cell: Cell) -> _Key:
    same = canonical(cell)
    return str(same.table.number), same.env, same.data, same.method, str(same.seed)


def _key_of(line: dict[str, str]) -> _Key:
    return line["table"], line["env"], line["data"], line["method"], line["seed"]


def _order(line: dict[str, str]) -> Sequence[int | str]:
    return int(line["table"]), line["env"], line["data"], line["method"], int(line["seed"])
