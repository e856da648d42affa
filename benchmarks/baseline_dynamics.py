"""Measuring other dynamics than PerSim's: CaDM, and the ablation of PerSim's factorization.

They get the same data sets, the same planner with the same objective, and the training that the scale's budgets say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, Measured, Score, by_agent, episodes_of, method_in_file_name, once, with_training
from methods import METHODS, Model, Planner
from models import locked_model, logged, models_folder, other_settings
from scores import objective_of, score_episodes, score_predictions

from persim_gym import MPCAgent, ValueIterationAgent, get_task
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_config import CaDMConfig, get_cadm_config
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.context import ContextModel
from persim_gym.baselines.joint import JointModel, fit_joint
from persim_gym.collection.episodes import run
from persim_gym.collection.policies import as_policy
from persim_gym.config import PerSimConfig, get_config
from persim_gym.types import Policy


def measure_dynamics(cell: Cell, folder: Path, *, device: str, cache: Path) -> Measured:
    """Return the scores of a cell of one of these methods, measured now or in an earlier run."""
    model = _dynamics(cell, device, cache)
    if "rmse" in cell.table.metrics:
        measured = once(cell, folder / cell.name, lambda: score_predictions(cell, model, device))
    else:
        measured = by_agent(cell, folder, lambda agent: _planned_return(cell, model, agent, device))
    return with_training(measured, model)


def _dynamics(cell: Cell, device: str, cache: Path) -> ContextModel:
    """Return the trained dynamics of a cell, which two tables share."""
    method = METHODS[cell.method]
    kind = JointModel if method.model is Model.JOINT else CaDM
    name = f"{method_in_file_name(method.base)}-{cell.env}-{cell.data}-{cell.scale.name}-seed{cell.seed}.{kind.kind}"
    path = models_folder(cache, cell.env) / name
    config: PerSimConfig | CaDMConfig
    if kind is JointModel:
        config = get_config(method.config_name(cell.env), cell.env).with_changes(**cell.scale.changes)
        if method.our_settings:  # with ours, states and changes are standardized, too
            config = config.with_changes(normalize=True)
    else:
        config = get_cadm_config(method.base, cell.env).with_changes(**cell.scale.training(cell.method))
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
    if METHODS[cell.method].planner is Planner.VALUE_ITERATION:
        assert isinstance(model, CaDM), "no other baseline is asked for value iteration"
        policy: Policy = _solved_in_contexts(cell, model, agent, device)
    elif isinstance(model, CaDM):
        # Its networks are the largest, and are asked the most: twenty particles of every candidate.
        policy = CaDMAgent(model, device=device, dtype=torch.bfloat16, **settings)
    else:
        policy = MPCAgent(model.simulator(agent, device=device), **settings)
    task = get_task(cell.env)
    system = task.system(np.tile(task.test_agents[agent], (episodes_of(cell), 1)))
    return score_episodes(cell, agent, system, policy)


_CONTEXTS = 5
"""For value iteration; every context needs a solution of its own."""


class _InParts:
    """Policies of which each acts in a part of the episodes; the state says which in each."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        whose = np.arange(len(observation)) % len(self._policies) if state is None else state
        actions = np.empty(len(observation), np.int64)
        for index, policy in enumerate(self._policies):
            own = whose == index
            if own.any():
                actions[own] = policy.predict(observation[own])[0]
        return actions, whose


def _solved_in_contexts(cell: Cell, model: CaDM, agent: int, device: str) -> _InParts:
    """Return value iteration in the contexts of some episodes of the agent, as they are after as many random steps.

    A context is that of a whole history in the true system. That of the agent's log would be the end of its trajectory,
    which for an agent that arrives is unlike any beginning.
    """
    task, rng = get_task(cell.env), np.random.default_rng([cell.seed, agent, 2])
    random = as_policy("random", task, int(rng.integers(2**31)))
    solved: list[Policy] = []
    for _ in range(_CONTEXTS):
        system = task.system(np.array([task.test_agents[agent]]))
        steps = list(run(task, random, system, rng, steps=model.config.history_length, leave=True))
        states = np.stack([steps[0].observations, *(step.next_observations for step in steps)], axis=1)
        actions = np.stack([step.actions for step in steps], axis=1)
        simulator = model.simulator(agent, device=device).conditioned_on(states, actions)
        solved.append(ValueIterationAgent(simulator, points=cell.scale.grids[cell.env]))
    return _InParts(solved)
