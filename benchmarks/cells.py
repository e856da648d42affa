"""Cells of the paper's tables, and where what was measured of them is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import protocol
from filelock import BaseFileLock, FileLock, Timeout
from methods import METHODS, Model
from protocol import Scale, Table

from persim_gym import files, get_task
from persim_gym.baselines.learned_policy import LearnedPolicy
from persim_gym.model.dynamics import LearnedDynamics

CACHE = Path(__file__).parent / ".cache"


@dataclass(frozen=True)
class Cell:
    """One method on one data set of one environment, for one seed: a score of each agent."""

    table: Table
    env: str
    data: str
    method: str
    seed: int
    scale: Scale

    @property
    def name(self) -> str:
        """A file name."""
        data = "true" if self.data == protocol.NO_DATA else self.data
        method = method_in_file_name(self.method)
        return f"table{self.table.number}-{self.env}-{data}-{method}-{self.scale.name}-seed{self.seed}"


def method_in_file_name(method: str) -> str:
    """Return a method's name as names of files have it."""
    return method.replace("+", "plus").replace(" ", "")


@dataclass(frozen=True)
class Score:
    """One number of one agent."""

    agent: str
    metric: str
    value: float
    of_each: tuple[float, ...] = ()
    """Return of each episode, in order, where the value is their mean; () where these are not known."""


@dataclass(frozen=True)
class Measured:
    """The scores of a cell and where they come from."""

    scores: tuple[Score, ...]
    commit: str
    """Versions of the code, separated by spaces."""
    wall_s: float
    """Seconds it takes to come by them from nothing: collection, training, evaluation."""


def canonical(cell: Cell) -> Cell:
    """Return the cell under whose table a measurement is kept, where several tables have it."""
    method = METHODS[cell.method]
    if cell.table.number == 3 and not method.is_augmented:  # a row of the returns' table as well
        cell = replace(cell, table=protocol.returns_table(cell.env))
    if method.num_agents == cell.scale.num_agents:  # all there are: also a row of the returns' table
        cell = replace(cell, table=protocol.returns_table(cell.env), method=method.base)
    return cell


def episodes_of(cell: Cell) -> int:
    """Return how many episodes of an agent a cell's scores are of."""
    cell = canonical(cell)
    table, scale, method = cell.table, cell.scale, METHODS[cell.method]
    if method.model is Model.LOG:
        return 1
    if "rmse" in table.metrics:
        return scale.prediction_episodes
    if method.learner is not None:
        return scale.policy_episodes
    wanted = scale.method_episodes.get(cell.method, scale.return_episodes)
    return min(wanted, table.max_episodes or wanted)


def budget(cell: Cell) -> dict[str, Any]:
    """Return how much a cell's method is trained and tried, as JSON has it."""
    scale = cell.scale
    found = {
        "training": {**scale.changes, **scale.training(cell.method, cell.env)},
        "agents": protocol.scale_of(scale, cell.method).num_agents,
        "episodes": episodes_of(cell),
        "planner": scale.planner,
        "grid": (scale.context_grids if METHODS[cell.method].solves_contexts else scale.grids).get(cell.env),
    }
    return json.loads(json.dumps(found))


def once(cell: Cell, path: Path, compute: Callable[[], list[Score]], *, wait: bool = True) -> Measured:
    """Return what is kept in a file of that name and of the cell's budget, or compute and keep it.

    A file from before budgets were kept is taken for one of today's.

    Raises:
        filelock.Timeout: another process computes it, and it is not to be waited for.

    """
    path, asked = path.with_name(f"{path.name}.json"), budget(cell)
    with locked_file(path, blocking=wait):
        kept = _kept(path, asked)
        if kept is not None:
            return kept
        start, version = time.perf_counter(), commit()
        scores = tuple(compute())
        measured = Measured(scores, version, round(time.perf_counter() - start, 1))
        files.write_text(path, json.dumps(asdict(measured) | {"budget": asked}, indent=1))
    text = ", ".join(f"agent {score.agent} {score.metric} {score.value:.5g}" for score in scores)
    print(f"{path.stem}: {text} ({measured.wall_s:.0f} s)", file=sys.stderr, flush=True)
    return measured


def _kept(path: Path, asked: Mapping[str, Any]) -> Measured | None:
    """Return what a file keeps of a budget."""
    document = json.loads(path.read_text()) if path.exists() else None
    if document is None or document.get("budget", asked) != asked:
        return None
    scores = (Score(**score | {"of_each": tuple(score.get("of_each", ()))}) for score in document["scores"])
    return Measured(tuple(scores), document["commit"], document["wall_s"])


def by_agent(cell: Cell, folder: Path, compute: Callable[[int], Score]) -> Measured:
    """Return the scores of all test agents; each agent is kept by itself, for one may take hours.

    Processes that measure the same cell divide the agents: those that another one has are come back to.
    """

    def part(agent: int, *, wait: bool) -> Measured:
        return once(cell, folder / f"{cell.name}-agent{agent}", lambda: [compute(agent)], wait=wait)

    agents = range(len(get_task(cell.env).test_agents))
    for agent in agents:
        with suppress(Timeout):
            part(agent, wait=False)
    parts = [part(agent, wait=True) for agent in agents]
    scores = tuple(score for part in parts for score in part.scores)
    return Measured(scores, versions(part.commit for part in parts), sum(part.wall_s for part in parts))


def locked_file(path: Path, *, blocking: bool = True) -> BaseFileLock:
    """Return the lock of a file, to hold while what it keeps is made: another process then waits and finds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"), blocking=blocking)


def with_training(measured: Measured, model: LearnedDynamics | LearnedPolicy) -> Measured:
    """Count the training of a model or policy in."""
    return replace(measured, wall_s=round(measured.wall_s + model.provenance["wall_seconds"], 1))


@cache
def commit() -> str:
    """Return the version of the code when this was first asked for, marked if it is not as committed.

    Scripts ask when they start, for that is the code they run, whatever the working tree holds hours later.
    """
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def versions(commits: Iterable[str]) -> str:
    """Return every version that some measurements name, once each, separated by spaces."""
    return " ".join(dict.fromkeys(version for commit in commits for version in commit.split()))


def cache_folder(cache: Path, env: str) -> Path:
    """Return the folder of an environment, one for each version of its protocol."""
    return cache / f"protocol{protocol.PROTOCOL[env]}"
