"""Measuring one seed of one cell of a table: the data set, the trained model, the score of each test agent."""

from __future__ import annotations

from pathlib import Path

import augmented
import baseline_dynamics
import learned_policies
import numpy as np
import protocol
import unseen
from cells import CACHE, Cell, Measured, Score, by_agent, cache_folder, canonical, episodes_of, once, with_training
from methods import METHODS, Model, Planner
from models import logged, trained
from scores import objective_of, score_episodes, score_predictions

from persim_gym import Ensemble, MPCAgent, ValueIterationAgent, get_task
from persim_gym.errors import InvalidDataError
from persim_gym.types import Policy


def measure(cell: Cell, *, device: str = "auto", cache: Path = CACHE) -> Measured:
    """Return the scores of a cell, measured now or in an earlier run."""
    folder = cache_folder(cache, cell.env) / "cells"
    method = METHODS[cell.method]
    if method.model is Model.LOG:
        return once(cell, folder / cell.name, lambda: _score_log(cell))
    if method.model is Model.TRUE:
        return by_agent(cell, folder, lambda agent: _score_return(cell, agent, None, device))
    if method.is_augmented:
        return augmented.measure_augmented(cell, folder, device=device, cache=cache)
    cell = canonical(cell)
    method = METHODS[cell.method]
    if method.learner is not None:
        return learned_policies.measure_policy(cell, folder, device=device, cache=cache)
    if not method.is_persim:
        return baseline_dynamics.measure_dynamics(cell, folder, device=device, cache=cache)
    config = method.config_name(cell.env)
    scale = protocol.scale_of(cell.scale, cell.method)
    ensemble = trained(cell.env, cell.data, scale, cell.seed, config=config, device=device, cache=cache)
    if method.fraction is not None:
        kind = "gp" if method.our_settings else "mlp"
        ensemble = unseen.of_unseen_agents(ensemble, method.fraction, kind=kind, seed=cell.seed)
    if "rmse" in cell.table.metrics:
        measured = once(cell, folder / cell.name, lambda: score_predictions(cell, ensemble, device))
    else:
        measured = by_agent(cell, folder, lambda agent: _score_return(cell, agent, ensemble, device))
    return with_training(measured, ensemble)


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


def _score_return(cell: Cell, agent: int, ensemble: Ensemble | None, device: str) -> Score:
    """Score an agent's episodes in its true system, which is also the model that is planned in if there is no other."""
    task = get_task(cell.env)
    covariates = task.test_agents[agent] if ensemble is None else ensemble.agent_covariates(agent)
    system = task.system(np.tile(covariates, (episodes_of(cell), 1)))
    model = system if ensemble is None else ensemble.simulator(agent, device=device)
    if METHODS[cell.method].planner is Planner.VALUE_ITERATION:
        policy: Policy = ValueIterationAgent(model, task=task, points=cell.scale.grids[cell.env])
    else:
        planning_rng = np.random.default_rng([cell.seed, agent, 1])
        policy = MPCAgent(model, task=task, objective=objective_of(cell), seed=planning_rng, **cell.scale.planner)
    return score_episodes(cell, agent, system, policy)
