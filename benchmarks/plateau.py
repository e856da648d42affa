"""How the return of BCQ and CQL grows with their gradient steps, where they are fewer than the paper's 550,000.

    python benchmarks/plateau.py --env MountainCar --data random --method CQL-A CQL-P --agents 8 65 --steps 30000 \
        --every 2000

Replaces these methods' rows in results/plateau.csv: the mean return of 100 episodes in the agent's true system. How
many steps suffice is to be read from agents that no table reports, 5 and above. What else the scale's budgets say of a
method, such as how often its target network is replaced, is as in the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import augmented
import learned_policies
import numpy as np
import protocol
from cells import CACHE, Cell
from measurement_file import RESULTS, MeasurementFile
from methods import METHODS, Learner
from models import logged
from script import check_at_least, script

from persim_gym import Trajectories, get_task
from persim_gym.errors import InvalidArgumentError
from persim_gym.evaluation.returns import run_episodes
from persim_gym.types import Policy

LEARNING = tuple(
    name
    for name, method in METHODS.items()
    if method.learner in (Learner.BCQ, Learner.CQL) and not method.selected  # those choose their own end
)


@dataclass(frozen=True)
class Point:
    """The return after some gradient steps: a line of the results file."""

    env: str
    data: str
    method: str
    agent: int
    seed: int
    steps: int
    mean: float
    """Over the episodes."""
    std: float
    scale: str


def curves(cell: Cell, agents: Sequence[int], *, steps: int, every: int, cache: Path) -> list[Point]:
    """Return a point of each agent after every so many gradient steps."""
    trainings = [[agent] for agent in agents] if METHODS[cell.method].own_data else [agents]
    return [point for some in trainings for point in _curve(cell, some, steps=steps, every=every, cache=cache)]


def _curve(cell: Cell, agents: Sequence[int], *, steps: int, every: int, cache: Path) -> list[Point]:
    """Return the points of a single training, that of the first agent if it is not everyone's."""
    task, scale, seed = get_task(cell.env), cell.scale, cell.seed
    everyones = logged(cell.env, cell.data, scale)
    points = []

    def watch(policy: Policy, done: int) -> None:
        for agent in agents:
            system = task.system(np.tile(everyones.covariates[agent], (scale.policy_episodes, 1)))
            returns, _ = run_episodes(task, policy, system, np.random.default_rng([seed, agent]))
            mean, std = float(returns.mean()), float(returns.std())
            points.append(Point(cell.env, cell.data, cell.method, agent, seed, done, mean, std, scale.name))
            print(points[-1], flush=True)

    settings = {**scale.training(cell.method, cell.env), "steps": steps, "callback": watch, "callback_every": every}
    learn = learned_policies.learner(cell.method)
    learn(_learned_from(cell, everyones, agents[0], cache), seed=seed, progress=False, **settings)
    return points


def _learned_from(cell: Cell, everyones: Trajectories, agent: int, cache: Path) -> Trajectories:
    """Return the part of a log that a method learns from, with synthetic trajectories if it is to have any."""
    method = METHODS[cell.method]
    if method.is_augmented:
        ensemble = augmented.simulators(cell, device="cpu", cache=cache)
        return augmented.six_trajectories(cell, ensemble, everyones, agent)
    return everyones.select([agent]) if method.own_data else everyones


def results_file(folder: Path = RESULTS) -> MeasurementFile[Point]:
    """Return the file of all curves."""
    return MeasurementFile(folder / "plateau.csv", Point, key=("env", "data", "method", "agent", "seed", "scale"))


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, choices=protocol.PROTOCOL)
    parser.add_argument("--data", required=True, choices=protocol.LOGGING_POLICIES)
    parser.add_argument("--method", nargs="+", choices=LEARNING, required=True)
    parser.add_argument("--agents", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="gradient steps between two points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", default="full", choices=protocol.SCALES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args(arguments)
    scale = protocol.get_scale(given.scale)
    check_at_least(1, steps=given.steps, every=given.every)
    check_at_least(0, seed=given.seed)
    for agent in given.agents:
        check_at_least(0, agent=agent)
        if agent >= scale.num_agents:
            raise InvalidArgumentError(f"agent={agent} must be less than {scale.num_agents}, the agents of the log")
    for method in given.method:
        cell = Cell(protocol.TABLES[3], given.env, given.data, method, given.seed, scale)
        points = curves(cell, given.agents, steps=given.steps, every=given.every, cache=given.cache)
        results_file(given.results).replace(points)


if __name__ == "__main__":
    raise SystemExit(main())
