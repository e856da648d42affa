"""Reproduce a table of the paper, or a part of it, and print our figures beside the published ones.

    python benchmarks/paper.py --table 6 --data random --seeds 3 --scale full

Writes benchmarks/results/table6.csv after every finished method, and each finished seed to results/seeds.csv there.
What is in these files is not measured again, but with --again what was trained for longer or shorter than it is today,
or tried for more or fewer episodes, or has no line in seeds.csv, is. An interrupted run loses at most the model or the
agent in work, and the same command goes on: trained ensembles and finished agents are kept in benchmarks/.cache, which
all tables share. With --jobs 8, eight models are trained and measured at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import protocol
import results
from cells import CACHE, Cell
from measure import measure
from measurement_file import RESULTS, locked
from methods import LOG, METHODS
from parallel import measure_in_processes
from protocol import Scale, Table
from script import script
from seeds import Seeds, of_several_budgets, values_of

from persim_gym.errors import InvalidArgumentError, PerSimError


@dataclass(frozen=True)
class Part:
    """What of a table is to be measured."""

    table: Table
    scale: Scale
    data: Sequence[str]
    """Names of data sets, "-" for the methods that plan in the true system."""
    methods: Sequence[str] | None = None
    """All if not given."""
    envs: Sequence[str] | None = None
    """All if not given."""
    seeds: int = 3
    first_seed: int = 0
    """Number of the first; a row is of all seeds of it that are written down, these and others."""
    again: bool = False
    """Whether seeds of an earlier budget are measured again."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InvalidArgumentError(f"seeds={self.seeds} must be at least 1")
        if self.first_seed < 0:
            raise InvalidArgumentError(f"first_seed={self.first_seed} must be at least 0")
        _check_names("method", self.methods, (*self.table.learned, *self.table.true))
        _check_names("environment", self.envs, self.table.envs)

    def rows(self) -> dict[results.Key, list[Cell]]:
        """Return the cells, a seed each, of every row."""
        envs = [env for env in self.envs or self.table.envs if env in self.scale.envs]
        if not envs:
            raise InvalidArgumentError(
                f"scale {self.scale.name!r} is for {', '.join(self.scale.envs)}, table {self.table.number} is of "
                f"{', '.join(self.table.envs)}: choose another scale"
            )
        keys = [
            (env, data, method)
            for env in envs
            for data in self.data
            for method in self.table.methods(protocol.check_data(self.table, data))
            if self.methods is None or method in self.methods
        ]
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return {key: [Cell(self.table, *key, seed, self.scale) for seed in seeds] for key in keys}


def reproduce(
    part: Part, *, device: str = "auto", jobs: int = 1, folder: Path = RESULTS, cache: Path = CACHE
) -> list[str]:
    """Measure what of a part of a table is not measured yet, and write it down.

    Args:
        part: of the table.
        device: to train, predict and plan on.
        jobs: how many processes measure at once.
        folder: of the results file.
        cache: of trained ensembles and finished seeds.

    Returns:
        What could not be measured, and why; a line each.

    """
    if jobs < 1:
        raise InvalidArgumentError(f"jobs={jobs} must be at least 1")
    seeds = Seeds(part.scale, folder, current_only=part.again)
    rows = _unfinished(part, seeds)
    failed: dict[str, str] = {}
    if jobs > 1:
        failed = _measure_together(rows.values(), seeds, jobs=jobs, device=device, cache=cache)
    problems = []
    for key, cells in rows.items():
        try:
            for cell in cells:
                if cell.name in failed:
                    raise PerSimError(failed[cell.name])
                if seeds.get(cell) is None:
                    seeds.put(cell, measure(cell, device=device, cache=cache))
            _write_row(cells[0], seeds)
        except PerSimError as error:
            problems.append(f"{' · '.join(key)}: {error}")
    return problems


def _unfinished(part: Part, seeds: Seeds) -> dict[results.Key, list[Cell]]:
    """Return the rows that are of fewer seeds than asked for, or lack one of those asked for.

    Of a row whose seeds are not all written down one by one nobody knows which it lacks: it is finished, unless seeds
    are asked for by number.
    """
    written = results.read(part.table, part.scale, seeds.folder)

    def finished(key: results.Key, cells: Sequence[Cell]) -> bool:
        known = results.num_seeds(written, key)
        if known < part.seeds:
            return False
        if all(seeds.get(cell) is not None for cell in cells):
            return True
        return part.first_seed == 0 and not part.again and len(seeds.all_of(cells[0])) < known

    return {key: cells for key, cells in part.rows().items() if not finished(key, cells)}


def _measure_together(
    rows: Iterable[Sequence[Cell]], seeds: Seeds, *, jobs: int, device: str, cache: Path
) -> dict[str, str]:
    """Measure and write down the seeds that are missing, in processes; return why some could not be, by cell's name."""
    failed = {}
    missing = [cell for cells in rows for cell in cells if seeds.get(cell) is None]
    for cell, found in measure_in_processes(missing, jobs, device=device, cache=cache):
        if isinstance(found, str):
            failed[cell.name] = found
        else:
            seeds.put(cell, found)
    return failed


def _write_row(cell: Cell, seeds: Seeds) -> None:
    """Write down the row that a cell is of, from all its seeds; nobody else adds a seed meanwhile.

    Raises:
        PerSimError: the row is of more seeds than have their scores written down.

    """
    with locked(seeds.folder):
        measured = seeds.all_of(cell)
        written = results.read(cell.table, cell.scale, seeds.folder)
        known = results.num_seeds(written, (cell.env, cell.data, cell.method))
        if len(measured) < known:
            raise PerSimError(
                f"the row has {known} seeds whose scores are not written down each, and would have {len(measured)}; "
                f"measure it with --seeds {known + 1}"
            )
        results.results_file(cell.table, cell.scale, seeds.folder).replace(results.rows_of(cell, measured))


def _check_names(what: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InvalidArgumentError(f"no {what} {unknown[0]!r} in this table; there are {', '.join(known)}")


def report(table: Table, scale: Scale, folder: Path = RESULTS) -> str:
    """Return our rows beside the paper's, as text."""
    rows = results.read(table, scale, folder)
    text = f"Table {table.number}: {table.title} (scale {scale.name})"
    if not rows:
        return f"{text}\nnothing measured yet"
    measured = {row.method for row in rows}
    tallies = [results.tally(table, rows, method) for method in table.learned if method in measured - {LOG}]
    ours = [name for name, one in METHODS.items() if name in measured and one.is_persim and not one.variant_of]
    tallies += map(str, results.leads(table, rows, ours, values_of(table, scale, folder)))
    mixed = {(row.env, row.data, row.method) for row in rows} & of_several_budgets(table, scale, folder)
    note = f'{results.SEVERAL_BUDGETS}: its seeds were not all trained, or tried, alike ("Training budgets").'
    more = results.not_measured(table, scale, rows), results.intervals(rows), note if mixed else ""
    facts = [fact for fact in (*tallies, *more) if fact]
    return "\n\n".join([text, results.comparison(table, rows, mixed), *facts])


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, required=True, help=", ".join(map(str, protocol.TABLES)))
    parser.add_argument("--data", nargs="+", help=f"{', '.join(protocol.DATA)} (the true system); default: all")
    parser.add_argument("--method", nargs="+", help="only these methods, by their names in the table: 'PerSim+ + VI'")
    parser.add_argument("--env", nargs="+", help="only these environments")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="number of the first")
    parser.add_argument("--again", action="store_true", help="measure again what is of an earlier budget")
    parser.add_argument(
        "--scale",
        default="full",
        help="full (the paper's), small (HalfCheetah only), quick (to try it: figures mean nothing)",
    )
    parser.add_argument("--device", default="auto", help="a torch device")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes measure at once")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of trained ensembles and finished seeds")
    given = parser.parse_args(arguments)
    table, scale = protocol.get_table(given.table), protocol.get_scale(given.scale)
    everything = [data for data in protocol.DATA if table.methods(data)]
    part = Part(
        table,
        scale,
        data=given.data or everything,
        methods=given.method,
        envs=given.env,
        seeds=given.seeds,
        first_seed=given.first_seed,
        again=given.again,
    )
    problems = reproduce(part, device=given.device, jobs=given.jobs, folder=given.results, cache=given.cache)
    print(report(table, scale, given.results))
    for problem in problems:
        print(f"not measured: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
