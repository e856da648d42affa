"""Measuring the other systems of the paper: CaDM, MOReL, BCQ, CQL, and the ablations of PerSim.

They get the same data sets, the same planner with the same objective, and the training that the scale's budgets say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import torch
from cells import Cell, Measured, Score, by_agent, once, with_training
from models import locked_model, logged, models_folder, other_settings
from scores import episodes_of, objective_of, score_episodes, score_predictions

from persim_gym import MPCAgent, Trajectories, ValueIterationAgent, get_task
from persim_gym.baselines.bcq import fit_bcq
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_config import CaDMConfig, get_cadm_config
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.context import ContextModel
from persim_gym.baselines.cql import fit_cql
from persim_gym.baselines.joint import JointModel, fit_joint
from persim_gym.baselines.morel import fit_morel
from persim_gym.config import PerSimConfig, get_config
from persim_gym.types import Policy

POLICIES = (*protocol.POLICIES, *protocol.MOREL_SAMPLED)
METHODS = (*protocol.CADM, *protocol.CADM_VI, *POLICIES, protocol.JOINT, protocol.VANILLA_CADM_PLAIN)
FITS: dict[str, Callable[..., Policy]] = {"BCQ": fit_bcq, "CQL": fit_cql, "MOReL": fit_morel}


def measure_baseline(cell: Cell, folder: Path, *, device: str, cache: Path) -> Measured:
    """Return the scores of a cell of one of these methods, measured now or in an earlier run."""
    if cell.method in POLICIES:
        return _measure_policy(cell, folder, device)
    model = _dynamics(cell, device, cache)
    if "rmse" in cell.table.metrics:
        measured = once(cell, folder / cell.name, lambda: score_predictions(cell, model, device))
    else:
        measured = by_agent(cell, folder, lambda agent: _planned_return(cell, model, agent, device))
    return with_training(measured, model)


def _dynamics(cell: Cell, device: str, cache: Path) -> ContextModel:
    """Return the trained dynamics of a cell, which two tables share."""
    method = protocol.VARIANT_OF.get(cell.method, cell.method)
    kind = JointModel if method == protocol.JOINT else CaDM
    letters = "".join(filter(str.isalnum, method))
    name = f"{letters}-{cell.env}-{cell.data}-{cell.scale.name}-seed{cell.seed}.{kind.kind}"
    path = models_folder(cache, cell.env) / name
    config: PerSimConfig | CaDMConfig
    if kind is JointModel:
        config = get_config(cell.env, cell.env).with_changes(**cell.scale.changes)
    else:
        config = get_cadm_config(method, cell.env).with_changes(**cell.scale.training(method))
    with locked_model(path):
        if path.exists():
            model: ContextModel = kind.load(path)
            if model.config != config:
                raise other_settings(path)
            return model
        log = logged(cell.env, cell.data, cell.scale)
        settings: dict[str, Any] = {
            "seed": cell.seed,
            "device": device,
            "checkpoint": path,
            "progress": sys.stderr.isatty(),
        }
        if isinstance(config, PerSimConfig):
            model = fit_joint(log, config=config, **settings)
        else:
            model = fit_cadm(log, config=config, **settings)
        model.save(path)
    return model


def _planned_return(cell: Cell, model: ContextModel, agent: int, device: str) -> Score:
    """Score the same planners as PerSim's; in MPC, CaDM's context follows each episode."""
    rng = np.random.default_rng([cell.seed, agent, 1])
    settings: dict[str, Any] = {"objective": objective_of(cell), "seed": rng, **cell.scale.planner}
    if cell.method in protocol.VALUE_ITERATION:
        policy: Policy = ValueIterationAgent(model.simulator(agent, device=device), points=cell.scale.grids[cell.env])
    elif isinstance(model, CaDM):
        # Its networks are the largest, and are asked the most: twenty particles of every candidate.
        policy = CaDMAgent(model, device=device, dtype=torch.bfloat16, **settings)
    else:
        policy = MPCAgent(model.simulator(agent, device=device), **settings)
    return _score(cell, policy, agent, episodes_of(cell))


def _measure_policy(cell: Cell, folder: Path, device: str) -> Measured:
    """Train one policy for all agents (-P) or one for each (-A), and score it."""
    method = protocol.VARIANT_OF.get(cell.method, cell.method)
    fit = learner(method)
    log = logged(cell.env, cell.data, cell.scale)
    settings = {"seed": cell.seed, "progress": sys.stderr.isatty(), **cell.scale.training(method)}
    if fit is not fit_morel:
        settings["device"] = device

    def returns(policy: Policy, agent: int) -> Score:
        acting = policy if method == cell.method else _Sampling(policy)
        return _score(cell, acting, agent, cell.scale.policy_episodes)

    if method.endswith("-A"):
        return by_agent(cell, folder, lambda agent: returns(fit(log, agent=agent, **settings), agent))

    def everyones() -> list[Score]:
        policy = fit(log, **settings)
        return [returns(policy, agent) for agent in range(len(get_task(cell.env).test_agents))]

    return once(cell, folder / cell.name, everyones)


class _Sampling:
    """A policy whose actions are drawn, whatever is asked for."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """Return drawn actions."""
        return self._policy.predict(observation, state, episode_start, deterministic=False)


def score_policy(cell: Cell, log: Trajectories, agent: int, device: str, **settings: Any) -> Score:
    """Train BCQ or CQL, whichever the cell's method names, on all of a log, and score it for an agent."""
    settings |= {"seed": cell.seed, "progress": sys.stderr.isatty(), **cell.scale.training(cell.method)}
    return _score(cell, learner(cell.method)(log, device=device, **settings), agent, cell.scale.policy_episodes)


def learner(method: str) -> Callable[..., Policy]:
    """Return what trains the policy of a method, whose name contains that of BCQ, CQL or MOReL."""
    (name,) = (name for name in FITS if name in method)
    return FITS[name]


def _score(cell: Cell, policy: Policy, agent: int, episodes: int) -> Score:
    task = get_task(cell.env)
    return score_episodes(cell, agent, task.system(np.tile(task.test_agents[agent], (episodes, 1))), policy)
