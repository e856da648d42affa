"""How the return of BCQ and CQL grows with their gradient steps, where the paper's 550,000 are too many to run.

    python benchmarks/plateau.py --env MountainCar --data pure --method BCQ-A CQL-A --agent 0 --steps 6000 --every 1000

Replaces these methods' rows in results/plateau.csv: the mean return of 100 episodes in the agent's true system. How
many steps suffice is to be read from agents that no table reports, 5 and above.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import augmented
import baseline_methods
import numpy as np
import protocol
from cells import CACHE, Cell
from models import logged
from results import RESULTS

from persim_gym import Trajectories, get_task, storage
from persim_gym.returns import run_episodes
from persim_gym.types import Policy

COLUMNS = ("env", "data", "method", "agent", "seed", "steps", "mean", "std", "scale")
METHODS = (
    protocol.BCQ_P,
    protocol.BCQ_A,
    protocol.CQL_P,
    protocol.CQL_A,
    *(method for method in protocol.SIMULATOR_OF if method not in protocol.SELECTED),  # those choose their own end
)
FILE = "plateau.csv"


def curve(cell: Cell, agent: int, *, steps: int, every: int, cache: Path) -> list[tuple[str, ...]]:
    """Return a row after every so many gradient steps."""
    task, scale, seed = get_task(cell.env), cell.scale, cell.seed
    everyones = logged(cell.env, cell.data, scale)
    rows = []

    def watch(policy: Policy, done: int) -> None:
        system = task.system(np.tile(everyones.covariates[agent], (scale.policy_episodes, 1)))
        returns, _ = run_episodes(task, policy, system, np.random.default_rng([seed, agent]))
        figures = (f"{returns.mean():.6g}", f"{returns.std():.6g}")
        rows.append((cell.env, cell.data, cell.method, str(agent), str(seed), str(done), *figures, scale.name))
        print(" ".join(rows[-1]), flush=True)

    baseline_methods.learner(cell.method)(
        _learned_from(cell, everyones, agent, cache), steps=steps, seed=seed, progress=False,
        callback=watch, callback_every=every,
    )  # fmt: skip
    return rows


def _learned_from(cell: Cell, everyones: Trajectories, agent: int, cache: Path) -> Trajectories:
    """Return the part of a log that a method learns from, with synthetic trajectories if it is to have any."""
    if cell.method in protocol.SIMULATOR_OF:
        ensemble = augmented.simulators(cell, device="cpu", cache=cache)
        return augmented.six_trajectories(cell, ensemble, everyones, agent)
    return everyones.select([agent]) if cell.method.endswith("-A") else everyones


def read(folder: Path = RESULTS) -> list[tuple[str, ...]]:
    """Return the rows measured so far."""
    path = folder / FILE
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [tuple(line[name] for name in COLUMNS) for line in csv.DictReader(file)]


def write(rows: Sequence[tuple[str, ...]], folder: Path = RESULTS) -> None:
    """Write the file as a whole."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    storage.write_text(folder / FILE, text.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, choices=protocol.PROTOCOL)
    parser.add_argument("--data", required=True, choices=protocol.LOGGING_POLICIES)
    parser.add_argument("--method", nargs="+", choices=METHODS, required=True)
    parser.add_argument("--agent", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="gradient steps between two points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", default="full", choices=protocol.SCALES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args(arguments)
    scale = protocol.get_scale(given.scale)
    for method in given.method:
        cell = Cell(protocol.TABLES[3], given.env, given.data, method, given.seed, scale)
        new = curve(cell, given.agent, steps=given.steps, every=given.every, cache=given.cache)
        kept = [row for row in read(given.results) if (*row[:5], row[-1]) != (*new[0][:5], new[0][-1])]
        write([*kept, *new], given.results)


if __name__ == "__main__":
    main()
