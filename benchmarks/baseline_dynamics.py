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
from cells import Cell, Measured, Score, by_agent, episodes_of, locked_file, method_in_file_name, once, with_training
from methods import METHODS, Model, Planner
from models import logged, models_folder, other_settings
from scores import objective_of, score_episodes, score_predictions

from persim_gym import MPCAgent, ValueIterationAgent, get_task
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_config import CaDMConfig, get_cadm_config
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.context import ContextModel
from persim_gym.baselines.joint import JointModel, fit_joint
from persim_gym.config import PerSimConfig, get_config
from persim_gym.devices import resolve_device
from persim_gym.types import Policy

_TOLERANCE = 1e-2
"""Of value iteration that is done many times an episode, ten times the usual."""


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
        config = get_cadm_config(method.base, cell.env).with_changes(**cell.scale.training(cell.method, cell.env))
    with locked_file(path):
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
    """Score the same planners as PerSim's, but that CaDM's context follows each episode."""
    rng = np.random.default_rng([cell.seed, agent, 1])
    settings: dict[str, Any] = {"objective": objective_of(cell), "seed": rng, **cell.scale.planner}
    if METHODS[cell.method].planner is Planner.VALUE_ITERATION:
        assert isinstance(model, CaDM), "no other baseline is asked for value iteration"
        policy: Policy = _SolvedAlong(model, device, cell.scale.context_grids[cell.env])
    elif isinstance(model, CaDM):
        # Its networks are the largest, and are asked the most: twenty particles of every candidate.
        policy = CaDMAgent(model, device=device, dtype=torch.bfloat16, **settings)
    else:
        policy = MPCAgent(model.simulator(agent, device=device), **settings)
    task = get_task(cell.env)
    system = task.system(np.tile(task.test_agents[agent], (episodes_of(cell), 1)))
    return score_episodes(cell, agent, system, policy)


class _SolvedAlong:
    """Value iteration in a CaDM whose context follows the running episode: solved again, for each, every few steps.

    A history is filled by as many transitions; in between, the context is the one that was solved in.
    """

    takes_running = MPCAgent.takes_running

    def __init__(self, model: CaDM, device: str, points: Sequence[int]) -> None:
        self._model, self._device, self._points = model, resolve_device(device), points

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True,
        running: Any = None,
    ) -> tuple[np.ndarray, Any]:  # fmt: skip
        """Act in E episodes that begin together, (E, D); those that are over, by ``running`` (E,), just wait."""
        count = len(observation)
        if state is None:
            history, solved, step = self._model.new_histories(count), [None] * count, 0
        else:
            history, solved, step, before, actions = state
            history = history.after(before, actions, observation)
        actions = np.zeros(count, np.int64)
        for episode in np.flatnonzero(np.ones(count, bool) if running is None else running):
            if step % self._model.config.history_length == 0:
                simulator = self._model.simulator_of(history.values[[episode]], device=self._device)
                solved[episode] = ValueIterationAgent(simulator, points=self._points, tolerance=_TOLERANCE)
            actions[episode] = solved[episode].predict(observation[[episode]])[0][0]
        return actions, (history, solved, step + 1, observation.copy(), actions.copy())
