"""How the return of BCQ and CQL grows with their gradient steps, where the paper's 550,000 are too many to run.

    python benchmarks/plateau.py --env MountainCar --data pure --method BCQ-A CQL-A --agent 0 --steps 6000 --every 1000

Replaces these methods' rows in results/plateau.csv: the mean return of 100 episodes in the agent's true system.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import protocol
from baseline_methods import FITS
from measure import logged
from results import RESULTS

from persim_gym import get_task, storage
from persim_gym.evaluation import run_episodes
from persim_gym.types import Policy

COLUMNS = ("env", "data", "method", "agent", "seed", "steps", "mean", "std", "scale")
METHODS = (protocol.BCQ_P, protocol.BCQ_A, protocol.CQL_P, protocol.CQL_A)
FILE = "plateau.csv"


def curve(
    env: str, data: str, method: str, agent: int, *, steps: int, every: int, seed: int, scale: protocol.Scale
) -> list[tuple[str, ...]]:
    """Return a row after every so many gradient steps."""
    name, _, variant = method.partition("-")
    task = get_task(env)
    rows = []

    def watch(policy: Policy, done: int) -> None:
        system = task.system(np.tile(task.test_agents[agent], (scale.policy_episodes, 1)))
        returns, _ = run_episodes(task, policy, system, np.random.default_rng([seed, agent]))
        figures = (f"{returns.mean():.6g}", f"{returns.std():.6g}")
        rows.append((env, data, method, str(agent), str(seed), str(done), *figures, scale.name))
        print(" ".join(rows[-1]), flush=True)

    FITS[name](
        logged(env, data, scale), agent=agent if variant == "A" else None, steps=steps, seed=seed, progress=False,
        callback=watch, callback_every=every,
    )  # fmt: skip
    return rows


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
    parser.add_argument("--env", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", nargs="+", choices=METHODS, required=True)
    parser.add_argument("--agent", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="gradient steps between two points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", default="full")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    scale = protocol.get_scale(given.scale)
    for method in given.method:
        new = curve(
            given.env, given.data, method, given.agent,
            steps=given.steps, every=given.every, seed=given.seed, scale=scale,
        )  # fmt: skip
        kept = [row for row in read(given.results) if row[:5] != new[0][:5]]
        write([*kept, *new], given.results)


if __name__ == "__main__":
    main()
