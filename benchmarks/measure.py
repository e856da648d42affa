"""Measuring one seed of one cell of a table: the data set, the trained ensemble, the score of each test agent."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import augmented
import baseline_methods
import numpy as np
import protocol
import unseen
from protocol import Scale, Table

from persim_gym import (
    Ensemble,
    MPCAgent,
    Trajectories,
    ValueIterationAgent,
    collect,
    fit,
    get_task,
    prediction_error,
    storage,
)
from persim_gym.config import get_config
from persim_gym.errors import FileFormatError, InvalidDataError
from persim_gym.evaluation import run_episodes
from persim_gym.logging_policies import test_policy
from persim_gym.tasks import PlanningObjective
from persim_gym.types import LearnedDynamics, Policy

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
        method = self.method.replace("+", "plus").replace(" ", "")
        return f"table{self.table.number}-{self.env}-{data}-{method}-{self.scale.name}-seed{self.seed}"


@dataclass(frozen=True)
class Score:
    """One number of one agent."""

    agent: str
    metric: str
    value: float


@dataclass(frozen=True)
class Measured:
    """The scores of a cell and where they come from."""

    scores: tuple[Score, ...]
    commit: str
    wall_s: float
    """Seconds it takes to come by them from nothing: collection, training, evaluation."""


def measure(cell: Cell, *, device: str = "auto", cache: Path = CACHE) -> Measured:
    """Return the scores of a cell, measured now or in an earlier run."""
    folder = _folder(cache, cell.env) / "cells"
    if cell.method == protocol.LOG:
        return once(folder / cell.name, lambda: _score_log(cell))
    if cell.data == protocol.NO_DATA:
        return _returns(cell, folder, None, device)
    if cell.method in protocol.SIMULATOR_OF:
        return augmented.measure_augmented(cell, folder, device=device, cache=cache)
    cell = canonical(cell)
    if cell.method in baseline_methods.METHODS:
        return baseline_methods.measure_baseline(cell, folder, device=device, cache=cache)
    config = protocol.config_name(cell.env, protocol.PLAIN.get(cell.method, cell.method))
    scale = protocol.scale_of(cell.scale, cell.method)
    ensemble = trained(cell.env, cell.data, scale, cell.seed, config=config, device=device, cache=cache)
    known = unseen.fraction(cell.method)
    if known is not None:
        kind = "gp" if unseen.base_method(cell.method) in protocol.OURS else "mlp"
        ensemble = unseen.of_unseen_agents(ensemble, known, kind=kind, seed=cell.seed)
    if "rmse" in cell.table.metrics:
        measured = once(folder / cell.name, lambda: score_predictions(cell, ensemble, device))
    else:
        measured = _returns(cell, folder, ensemble, device)
    return with_wall(measured, ensemble)


def canonical(cell: Cell) -> Cell:
    """Return the cell under whose table a measurement is kept, where several tables have it."""
    if cell.table.number == 3 and cell.method not in protocol.SIMULATOR_OF:  # a row of the returns' table as well
        cell = replace(cell, table=protocol.returns_table(cell.env))
    if unseen.agent_count(cell.method) == cell.scale.num_agents:  # all there are: also a row of the returns' table
        cell = replace(cell, table=protocol.returns_table(cell.env), method=unseen.base_method(cell.method))
    return cell


def with_wall(measured: Measured, ensemble: Ensemble) -> Measured:
    """Count the training of the ensemble in."""
    return replace(measured, wall_s=round(measured.wall_s + ensemble.provenance["wall_seconds"], 1))


def logged(env: str, data: str, scale: Scale, seed: int = protocol.DATA_SEED) -> Trajectories:
    """Collect a data set."""
    return collect(env, policy=data, num_agents=scale.num_agents, seed=seed)


def trained(
    env: str,
    data: str,
    scale: Scale,
    seed: int,
    *,
    config: str | None = None,
    first: int | None = None,
    device: str = "auto",
    cache: Path = CACHE,
) -> Ensemble:
    """Return the ensemble learned from a data set, trained now or earlier; interrupted training goes on.

    Without a config it is the paper's; with ``first`` it learns from so many agents only.
    """
    part = "" if first is None else f"-first{first}"
    path = models_folder(cache, env) / f"{config or env}-{data}-{scale.name}{part}-seed{seed}.persim"
    settings = get_config(config or env, env).with_changes(**scale.changes)
    if path.exists():
        ensemble = Ensemble.load(path, task=env)
        if ensemble.config != settings:
            raise FileFormatError(f"{path} was trained with other settings; delete it and what was measured with it")
        return ensemble
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logged(env, data, scale)
    ensemble = fit(
        log if first is None else log.select(range(first)),
        config=settings,
        validation_fraction=0.0,
        seed=seed,
        device=device,
        checkpoint=path,
        progress=sys.stderr.isatty(),
    )
    ensemble.save(path)
    return ensemble


def commit() -> str:
    """Return the version of the code, marked if it is not as committed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def models_folder(cache: Path, env: str) -> Path:
    """Return the folder of an environment's trained models."""
    return _folder(cache, env) / "models"


def _folder(cache: Path, env: str) -> Path:
    return cache / f"protocol{protocol.PROTOCOL[env]}"


def once(path: Path, compute: Callable[[], list[Score]]) -> Measured:
    """Return what is kept in a file of that name, or compute and keep it."""
    path = path.with_name(f"{path.name}.json")
    if path.exists():
        document = json.loads(path.read_text())
        scores = tuple(Score(**score) for score in document["scores"])
        return Measured(scores, document["commit"], document["wall_s"])
    start = time.perf_counter()
    scores = tuple(compute())
    measured = Measured(scores, commit(), round(time.perf_counter() - start, 1))
    storage.write_text(path, json.dumps(asdict(measured), indent=1))
    text = ", ".join(f"agent {score.agent} {score.metric} {score.value:.5g}" for score in scores)
    print(f"{path.stem}: {text} ({measured.wall_s:.0f} s)", file=sys.stderr, flush=True)
    return measured


def _score_log(cell: Cell) -> list[Score]:
    """Score the trajectories as they were logged (Table 5); here the seed is that of the data."""
    log = logged(cell.env, cell.data, cell.scale, cell.seed)
    agents = range(min(len(get_task(cell.env).test_agents), log.num_agents))
    if not np.array_equal(log.episode_agents, np.arange(log.num_agents)):
        raise InvalidDataError("the paper's data sets have one trajectory of each agent")
    scores = [Score(str(agent), "return", float(log.episode_returns[agent])) for agent in agents]
    return [
        *scores,
        Score("mean", "return", float(log.episode_returns.mean())),
        Score("mean", "length", float(log.episode_lengths.mean())),
    ]


def score_predictions(cell: Cell, ensemble: LearnedDynamics, device: str) -> list[Score]:
    """Score the free-running predictions for all test agents."""
    rows = prediction_error(
        ensemble,
        policy=test_policy(cell.env, seed=cell.seed),
        episodes=cell.scale.prediction_episodes,
        seed=cell.seed,
        aggregate="median" if cell.method == protocol.PERSIM_MEDIAN else "mean",
        device=device,
    )
    return [Score(row.agent, metric, getattr(row, metric)) for row in rows for metric in cell.table.metrics]


def _returns(cell: Cell, folder: Path, ensemble: Ensemble | None, device: str) -> Measured:
    """Return the returns of all test agents; each agent is kept by itself, for one may take hours."""
    agents = range(len(get_task(cell.env).test_agents))
    parts = [
        once(folder / f"{cell.name}-agent{agent}", lambda agent=agent: [_score_return(cell, agent, ensemble, device)])
        for agent in agents
    ]
    scores = tuple(score for part in parts for score in part.scores)
    return Measured(scores, parts[-1].commit, sum(part.wall_s for part in parts))


def episodes_of(cell: Cell) -> int:
    """Return how many episodes of an agent a planner's return is the mean of."""
    wanted = cell.scale.method_episodes.get(cell.method, cell.scale.return_episodes)
    return min(wanted, cell.table.max_episodes or wanted)


def objective_of(cell: Cell) -> PlanningObjective:
    """Return what a method's planner maximizes: the task's objective, or its reward alone."""
    objective = get_task(cell.env).planning_objective
    if cell.method not in protocol.PLAIN:
        return objective
    return replace(objective, progress=None, terminated=None)


def _score_return(cell: Cell, agent: int, ensemble: Ensemble | None, device: str) -> Score:
    """Score the episodes of one agent, in lockstep in its true system, which is also the model if there is no other."""
    task = get_task(cell.env)
    episodes = episodes_of(cell)
    covariates = task.test_agents[agent] if ensemble is None else ensemble.agent_covariates(agent)
    system = task.system(np.tile(covariates, (episodes, 1)))
    model = system if ensemble is None else ensemble.simulator(agent, device=device)
    if unseen.base_method(cell.method) in protocol.VALUE_ITERATION:
        policy: Policy = ValueIterationAgent(model, task=task, points=cell.scale.grids[cell.env])
    else:
        planning_rng = np.random.default_rng([cell.seed, agent, 1])
        policy = MPCAgent(model, task=task, objective=objective_of(cell), seed=planning_rng, **cell.scale.planner)
    returns, _ = run_episodes(task, policy, system, np.random.default_rng([cell.seed, agent]))
    return Score(str(agent), "return", float(returns.mean()))
