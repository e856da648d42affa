"""Write the tables of benchmarks/README.md, and in how many cells which methods lead, from the results files.

    python benchmarks/readme.py

What stands outside the marker lines is left as it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cells
import factors
import numpy as np
import plateau
import policy_scale
import policy_values
import protocol
import results
import seeds
import settings
from measurement_file import RESULTS, MeasurementFile
from methods import METHODS, PERSIMS, Planner
from paper import report
from script import script

from persim_gym import files
from persim_gym.baselines.offline_training import PAPER_STEPS
from persim_gym.errors import FileFormatError

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: written by readme.py -->", "<!-- end of tables -->"
SUMMARY = "<!-- leads: written by readme.py -->", "<!-- end of leads -->"


def tables(folder: Path = RESULTS) -> str:
    """Return all tables that have results of full scale, then of the small one, as Markdown."""
    full, small = protocol.get_scale("full"), protocol.get_scale("small")
    measured = [
        (table, scale)
        for scale in (full, small)
        for table in protocol.TABLES.values()
        if results.results_file(table, scale, folder).path.exists()
    ]
    sections = [_section(table, scale, folder) for table, scale in measured]
    own = *_settings(folder), *_policy_scale(folder), *_policy_values(folder), *_plateau(folder)
    rest = (*own, *_factors(folder, (full, small)))
    sections += [_published_twins(), *_thresholds((full, small), folder), _budgets((full, small), folder), *rest]
    return "\n\n".join([_contents(sections), *sections])


def _contents(sections: Sequence[str]) -> str:
    """Return a list of links to the sections, by the names that GitHub gives headings."""
    headings = [section.split("\n", 1)[0].removeprefix("## ") for section in sections]
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return "\n".join(f"* [{heading}](#{anchor})" for heading, anchor in zip(headings, anchors, strict=True))


def leads(folder: Path = RESULTS) -> str:
    """Return in how many cells of Tables 9 and 10 PerSim leads, by planner, and the strongest other method."""
    found, cells, either, by_mpc = [], 0, 0, 0
    solvers: dict[str, dict[str, None]] = {}
    for table in map(protocol.get_table, (9, 10)):
        rows, values = (one(table, protocol.get_scale("full"), folder) for one in (results.read, seeds.values_of))
        found += [[str(table.number), *lead.texts] for lead in results.leads(table, rows, PERSIMS, values)]
        learned = [row for row in rows if row.data != protocol.NO_DATA]
        both = results.lead("", learned, PERSIMS, values)
        for row in learned:
            if not METHODS[row.method].is_persim and METHODS[row.method].acts_by(Planner.VALUE_ITERATION):
                solvers.setdefault(row.method, {})[row.env] = None
        cells, either = cells + both.cells, either + both.near
        by_mpc += results.lead("", learned, ("PerSim", "PerSim+"), values).near
    heading = [
        "table",
        "compared",
        "methods",
        "cells",
        "alone best",
        "tied at the best",
        "best or within its deviation",
    ]
    given = (
        f"of the other systems only these were given: {_and(f'{one} ({_and(envs)})' for one, envs in solvers.items())}"
        if solvers
        else "the other systems were not given"
    )
    return (
        "In Tables 9 and 10 PerSim or PerSim+, by MPC or by value iteration, are the best, or within the best's "
        f"standard deviation of it, in {either} of the {cells} cells; of the two the better on these very returns "
        "counts, where every other system has a single row. By MPC alone, the paper's planner, it is "
        f"{by_mpc}: the others rest on value iteration, which {given}. Two rows are compared by the seeds that both "
        "have and, where they are known one by one, by the episodes, because first states differ, and are the same for "
        "all methods. The strongest other method stands below ours.\n\n"
        f"{results.markdown([heading, *found])}"
    )


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)


def update(text: str, content: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Return a text with what is between two markers replaced."""
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise FileFormatError(f"README.md must hold the lines {begin!r} and {end!r} once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"


def written(text: str) -> str:
    """Return a README with all that is written here brought up to date."""
    return update(update(text, leads(), SUMMARY), tables())


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    files.write_text(README, written(README.read_text()))


def _section(table: protocol.Table, scale: protocol.Scale, folder: Path) -> str:
    rows = results.read(table, scale, folder)
    names = cells.versions(row.commit for row in rows).replace(" ", ", ")
    hours = sum({(row.env, row.data, row.method): row.wall_s for row in rows}.values()) / 3600
    command = f"python benchmarks/paper.py --table {table.number} --scale {scale.name}"
    note = f"`{command}`; version {names}; {hours:.1f} hours of computing."
    return f"## {report(table, scale, folder)}\n\n{note}{_departures(table, scale)}"


def _departures(table: protocol.Table, scale: protocol.Scale) -> str:
    """Return in what a table at a scale is not the paper's, as a sentence to append."""
    if not scale.changes and not scale.planner:
        return ""
    few = any(METHODS[method].num_agents for method in table.learned)  # each row says how many
    settings: dict[str, object] = {} if few else {"agents": scale.num_agents}
    if table.metrics == ("return",):
        settings |= {"episodes": scale.return_episodes, "episodes of policies": scale.policy_episodes}
        settings |= scale.planner
    settings |= scale.changes
    return f" Not the paper's scale: {', '.join(f'{name} = {value}' for name, value in settings.items())}."


def _published_twins() -> str:
    """Return in how many cells the paper's MOReL equals its CQL, which no two such methods do by chance."""
    twins = {"MOReL-P": "CQL-P", "MOReL-A": "CQL-A"}
    parts = []
    for kind, data in (("pure-eps", protocol.DATA[1:3]), ("pure and random", (protocol.DATA[0], protocol.DATA[3]))):
        pairs = [
            (mean, figures[env, one, twins[method], agent, metric][0])
            for figures in (results.paper(protocol.get_table(number)) for number in (9, 10))
            for (env, one, method, agent, metric), (mean, _) in figures.items()
            if method in twins and one in data
        ]
        near = sum(abs(morel - cql) <= 0.01 * abs(cql) for morel, cql in pairs)
        parts.append(f"{near} of {len(pairs)} cells of the {kind} data")
    return (
        "## The paper's MOReL rows\n\n"
        "In Tables 9 and 10 the published return of MOReL is within 1 % of that of CQL with the same suffix in "
        f"{' and in '.join(parts)}; cells in which both never reach the goal (−500) are among them."
    )


def _thresholds(scales: Sequence[protocol.Scale], folder: Path) -> list[str]:
    """Return which thresholds MOReL has chosen, and how often its policies halt in the end."""
    found: dict[tuple[str, ...], dict[int, dict[str, dict[str, float]]]] = {}
    for scale in scales:
        for line in seeds.seeds_file(scale, folder).read():
            if line.metric in protocol.CHOICES:
                policies = found.setdefault((scale.name, line.env, line.data, line.method), {})
                policies.setdefault(line.seed, {}).setdefault(line.agent, {})[line.metric] = line.value
    if not found:
        return []
    lines = [
        [*key, str(seed), *(f"{one['threshold_scale']:g} ({one['halted']:.2f})" for one in policies.values())]
        for key, by_seed in found.items()
        for seed, policies in by_seed.items()
    ]
    width = max(map(len, lines)) - 5
    heading = ["scale", "env", "data", "method", "seed", *(f"agent {agent}" for agent in range(width))]
    table = results.markdown([heading, *(line + [""] * (len(heading) - len(line)) for line in lines)])
    return [
        "## MOReL's thresholds\n\n"
        "c, the threshold in units of the log's largest discrepancy, and in parentheses the part of the learned "
        f"policy's episodes in the pessimistic MDP that end by halting; of MOReL-P there is one policy.\n\n{table}"
    ]


def _budgets(scales: Sequence[protocol.Scale], folder: Path) -> str:
    """Return how much each method is trained, and which rows were trained otherwise."""
    lines = [
        [scale.name, method, seeds.in_words(training)] for scale in scales for method, training in scale.budgets.items()
    ]
    lines += [
        [scale.name, f"{method}, {env}", seeds.in_words(scale.training(method, env))]
        for scale in scales
        for env, budgets in scale.env_budgets.items()
        for method in budgets
    ]
    table = results.markdown([["scale", "method", "training"], *lines])
    texts = [
        "## Training budgets",
        f"What is not named is the method's own default. The paper trains BCQ for {PAPER_STEPS:,} steps, and says "
        "nothing of CQL's.",
        table,
    ]
    others = [
        [scale.name, str(table), env, method, training, str(episodes), ", ".join(data), ", ".join(map(str, numbers))]
        for scale in scales
        for (table, env, method, training, episodes, numbers), data in _measured_otherwise(scale, folder).items()
    ]
    if others:
        heading = ["scale", "table", "env", "method", "training", "episodes", "data", "seeds"]
        texts += ["Measured under an earlier budget:", results.markdown([heading, *others])]
    unknown = [
        [scale.name, str(table.number), env, method, ", ".join(data)]
        for scale in scales
        for table in protocol.TABLES.values()
        for (env, method), data in _unrecorded(table, scale, folder).items()
    ]
    if unknown:
        heading = ["scale", "table", "env", "method", "data"]
        texts += [
            "Of some rows not all seeds are in `seeds.csv`, and so it is not recorded how long these were trained; the "
            "remarks above say it where it is known to be otherwise than today:",
            results.markdown([heading, *unknown]),
        ]
    return "\n\n".join(texts)


def _measured_otherwise(
    scale: protocol.Scale, folder: Path
) -> dict[tuple[int, str, str, str, int, tuple[int, ...]], list[str]]:
    """Return the data sets by (table, env, method, training, episodes, seeds), where these are not those of today."""
    found: dict[tuple[int, str, str, str, int, str], set[int]] = {}
    for line in seeds.seeds_file(scale, folder).read():
        if seeds.outdated(line, scale):
            row = line.table, line.env, line.method, line.training, line.episodes, line.data
            found.setdefault(row, set()).add(line.seed)
    grouped: dict[tuple[int, str, str, str, int, tuple[int, ...]], list[str]] = {}
    for (*row, data), numbers in sorted(found.items()):
        grouped.setdefault((*row, tuple(sorted(numbers))), []).append(data)
    return grouped


def _unrecorded(table: protocol.Table, scale: protocol.Scale, folder: Path) -> dict[tuple[str, str], list[str]]:
    """Return the data sets by (env, method) of a table's rows that have a budget, but not the scores of each seed."""
    known, found = seeds.values_of(table, scale, folder), {}
    for row in results.read(table, scale, folder):
        recorded = known.get((row.env, row.data, row.method, row.agent), {})
        if row.method in scale.budgets and row.metric == table.metrics[0] and len(recorded) < row.seeds:
            found.setdefault((row.env, row.method), {})[row.data] = None
    return {key: list(data) for key, data in found.items()}


def _settings(folder: Path) -> list[str]:
    """Return the errors that settings leave on unseen parts of the log, the least of each log first."""
    errors: dict[tuple[str, ...], list[float]] = {}
    for line in settings.results_file(folder).read():
        errors.setdefault((line.env, line.data, str(line.num_agents), line.variant), []).append(line.median)
    if not errors:
        return []
    means = {key: float(np.mean(values)) for key, values in errors.items()}
    lines = []
    for key in sorted(errors, key=lambda key: (key[:3], means[key])):
        deviation = f" ± {np.std(errors[key], ddof=1):.2g}" if len(errors[key]) > 1 else ""
        lines.append([*key, f"{means[key]:.3g}{deviation}", str(len(errors[key]))])
    table = results.markdown([["env", "data", "agents", "settings", "error", "seeds"], *lines])
    return [
        "## Settings, by their error on unseen parts of the log\n\nTrained on the first 70 % of every trajectory, run "
        "freely along the rest: the median member's error in standard deviations of the coordinates, mean ± standard "
        f"deviation over seeds (`settings.py`).\n\n{table}"
    ]


def _policy_scale(folder: Path) -> list[str]:
    """Return the spread of the test policies' trajectories beside the authors'."""
    return _as_written(
        policy_scale.results_file(folder),
        "## How far the test policies' trajectories spread\n\nThe error of predicting an episode's own mean, and what "
        "the paper's RMSE and R² say of it (`policy_scale.py`).",
    )


def _policy_values(folder: Path) -> list[str]:
    """Return what policies earn in the shipped simulators and in the true systems."""
    return _as_written(
        policy_values.results_file(folder),
        "## What policies earn in the shipped simulators\n\nAnd in the true systems of the same agents, from the same "
        "first states: means over the agents, of the absolute difference too; Spearman's rank correlation over the "
        "agents; and the standard deviation over the ensemble's members (`policy_values.py`).",
    )


def _as_written(file: MeasurementFile[Any], introduction: str) -> list[str]:
    """Return a results file as a table below its heading, nothing if there is no file."""
    rows = file.read()
    return [f"{introduction}\n\n{results.markdown([file.columns, *map(file.texts, rows)])}"] if rows else []


def _plateau(folder: Path) -> list[str]:
    """Return the learning curves of the methods that are trained for fewer steps than the paper's."""
    points = plateau.results_file(folder).read()
    if not points:
        return []
    lines = [
        [
            one.env,
            one.data,
            one.method,
            str(one.agent),
            str(one.seed),
            f"{one.steps:,}",
            f"{one.mean:.1f} ± {one.std:.1f}",
        ]
        for one in points
    ]
    table = results.markdown([["env", "data", "method", "agent", "seed", "gradient steps", "return"], *lines])
    return [f"## Learning curves\n\n± is over 100 episodes.\n\n{table}"]


def _factors(folder: Path, scales: Sequence[protocol.Scale]) -> list[str]:
    lines = [
        [row.env, row.data, row.covariate, row.regressor, row.scale, f"{row.r2:.3f}"]
        for scale in scales
        for row in factors.results_file(scale, folder).read()
    ]
    if not lines:
        return []
    table = results.markdown([["env", "data", "covariate", "regression from factors", "scale", "R²"], *lines])
    pictures = "\n".join(f"![{path.stem}](results/{path.name})" for path in sorted(folder.glob("factors-*-pca*.png")))
    return [f"## What the agent factors know of the hidden covariates\n\n{table}\n\n{pictures}".rstrip()]


if __name__ == "__main__":
    raise SystemExit(main())
