"""Reproduce a table of the paper, or a part of it, and print our figures beside the published ones.

    python benchmarks/paper.py --table 6 --data random --seeds 3 --scale full

Writes benchmarks/results/table6.csv after every finished method, and each finished seed to results/seeds.csv there.
What is in these files is not measured again. An interrupted run goes on: trained ensembles and finished agents are kept
in benchmarks/.cache, which all tables share. With --jobs 8, eight models are trained and measured at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import protocol
import results
from cells import CACHE, Cell
from measure import measure
from measurement_file import RESULTS
from parallel import measure_in_processes
from protocol import Scale, Table
from seeds import Seeds

from persim_gym.baselines.bcq import PAPER_STEPS
from persim_gym.errors import InvalidArgumentError, PerSimError


def reproduce(
    table: Table,
    scale: Scale,
    *,
    data: Sequence[str],
    methods: Sequence[str] | None = None,
    envs: Sequence[str] | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    device: str = "auto",
    jobs: int = 1,
    folder: Path = RESULTS,
    cache: Path = CACHE,
) -> list[str]:
    """Measure what of a table is not measured yet, and write it down.

    Args:
        table: of the paper.
        scale: of the experiment.
        data: names of data sets, "-" for the methods that plan in the true system.
        methods: only these; all if not given.
        envs: only these of the table's environments; all if not given.
        seeds: how many.
        first_seed: number of the first; a row is of all seeds of it that are written down, these and others.
        device: to train, predict and plan on.
        jobs: how many processes measure at once.
        folder: of the results file.
        cache: of trained ensembles and finished seeds.

    Returns:
        What could not be measured, and why; a line each.

    """
    for name, count in (("seeds", seeds), ("jobs", jobs)):
        if count < 1:
            raise InvalidArgumentError(f"{name}={count} must be at least 1")
    if first_seed < 0:
        raise InvalidArgumentError(f"first_seed={first_seed} must be at least 0")
    _check_names("method", methods, (*table.learned, *table.true))
    _check_names("environment", envs, table.envs)
    chosen = [env for env in envs or table.envs if env in scale.envs]
    if not chosen:
        raise InvalidArgumentError(
            f"scale {scale.name!r} is for {', '.join(scale.envs)}, table {table.number} is of {', '.join(table.envs)}: "
            "choose another scale"
        )
    rows, problems = results.read(table, scale, folder), []
    seeds_measured = Seeds(scale, folder)
    wanted = [
        (env, one, method)
        for env in chosen
        for one in data
        for method in table.methods(protocol.check_data(table, one))
        if methods is None or method in methods
    ]
    unfinished: dict[results.Key, list[Cell]] = {}
    for key in wanted:
        asked = [Cell(table, *key, seed, scale) for seed in range(first_seed, first_seed + seeds)]
        missing = first_seed > 0 and any(seeds_measured.get(cell) is None for cell in asked)
        if missing or results.num_seeds(rows, key) < seeds:
            unfinished[key] = asked
    failed: dict[str, str] = {}
    if jobs > 1:
        new = [cell for cells in unfinished.values() for cell in cells if seeds_measured.get(cell) is None]
        for cell, found in measure_in_processes(new, jobs, device=device, cache=cache):
            if isinstance(found, str):
                failed[cell.name] = found
            else:
                seeds_measured.put(cell, found)
    for key, cells in unfinished.items():
        reasons = [failed[cell.name] for cell in cells if cell.name in failed]
        if reasons:
            problems.append(f"{' · '.join(key)}: {reasons[0]}")
            continue
        try:
            for cell in cells:
                if seeds_measured.get(cell) is None:
                    seeds_measured.put(cell, measure(cell, device=device, cache=cache))
        except PerSimError as error:
            problems.append(f"{' · '.join(key)}: {error}")
            continue
        measured, known = seeds_measured.all_of(cells[0]), results.num_seeds(rows, key)
        if len(measured) < known:
            problems.append(
                f"{' · '.join(key)}: the row has {known} seeds whose scores are not written down each, and would have "
                f"{len(measured)}; measure it with --seeds {known + 1}"
            )
            continue
        results.results_file(table, scale, folder).replace(results.rows_of(cells[0], measured))
    return problems


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
    tallies = [results.tally(table, rows, method) for method in table.learned if {method} & measured - {protocol.LOG}]
    ours = [one for one in (*protocol.PERSIMS, *protocol.SIMULATOR_OF) if one in measured]
    if len(measured & set(table.learned)) > 1 and ours:
        tallies.append(results.leaders(table, rows, ours))
    more = (
        results.not_measured(table, scale, rows), _gradient_steps(table, scale, measured), results.intervals(rows)
    )  # fmt: skip
    facts = [fact for fact in (*tallies, *more) if fact]
    return "\n\n".join([text, results.comparison(table, rows), *facts])


def _gradient_steps(table: Table, scale: Scale, measured: Collection[str]) -> str:
    """Return how long the offline learners of a table were trained, "" if there are none."""
    budgets = {method: scale.budgets.get(method, {}) for method in table.learned if method in measured}
    steps = [f"{method} {budget['steps']:,}" for method, budget in budgets.items() if "steps" in budget]
    return f"Gradient steps, of the paper's {PAPER_STEPS:,}: {', '.join(steps)}." if steps else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, required=True, help=", ".join(map(str, protocol.TABLES)))
    parser.add_argument("--data", nargs="+", help=f"{', '.join(protocol.DATA)} (the true system); default: all")
    parser.add_argument("--method", nargs="+", help="only these methods")
    parser.add_argument("--env", nargs="+", help="only these environments")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="number of the first")
    parser.add_argument("--scale", default="full", help=", ".join(protocol.SCALES))
    parser.add_argument("--device", default="auto", help="a torch device")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes measure at once")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of trained ensembles and finished seeds")
    given = parser.parse_args(arguments)
    try:
        table, scale = protocol.get_table(given.table), protocol.get_scale(given.scale)
        everything = [data for data in protocol.DATA if table.methods(data)]
        problems = reproduce(
            table,
            scale,
            data=given.data or everything,
            methods=given.method,
            envs=given.env,
            seeds=given.seeds,
            first_seed=given.first_seed,
            device=given.device,
            jobs=given.jobs,
            folder=given.results,
            cache=given.cache,
        )
        print(report(table, scale, given.results))
    except PerSimError as error:
        parser.error(str(error))
    for problem in problems:
        print(f"not measured: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
