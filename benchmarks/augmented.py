"""Table 3: offline learners that have one recorded trajectory of an agent and five synthetic ones.

For each test agent: five trajectories in its simulator by whole plans (`persim_gym.generate`), or by value iteration
where the method's name says so, joined to the agent's own recorded one; BCQ or CQL learns from the six. The simulators
are learned from the random log of all 500 agents.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import learned_policies
from cells import Cell, Measured, Score, by_agent, with_training
from methods import METHODS, Planner
from models import logged, trained

from persim_gym import Ensemble, Trajectories, generate
from persim_gym.types import Policy

SYNTHETIC_EPISODES = 5


def measure_augmented(cell: Cell, folder: Path, *, device: str, cache: Path) -> Measured:
    """Return the scores of a cell of one of these methods, measured now or in an earlier run; training included."""
    ensemble = simulators(cell, device=device, cache=cache)
    log = logged(cell.env, cell.data, cell.scale)
    measured = by_agent(cell, folder, lambda agent: _score(cell, ensemble, log, agent, device))
    return with_training(measured, ensemble)


def simulators(cell: Cell, *, device: str, cache: Path) -> Ensemble:
    """Return the ensemble that a method's synthetic trajectories come from, trained now or earlier."""
    config = METHODS[cell.method].config_name(cell.env)
    return trained(cell.env, cell.data, cell.scale, cell.seed, config=config, device=device, cache=cache)


def _score(cell: Cell, ensemble: Ensemble, log: Trajectories, agent: int, device: str) -> Score:
    """Score what is learned from an agent's six trajectories; nothing of the true system enters the selection."""
    settings: dict[str, Any] = {}
    if METHODS[cell.method].selected:
        settings["select"] = lambda policy: simulated_return(ensemble, policy, agent, cell.scale.policy_episodes)
    six = six_trajectories(cell, ensemble, log, agent)
    return learned_policies.score_policy(cell, six, agent, device, **settings)


def simulated_return(ensemble: Ensemble, policy: Policy, agent: int, episodes: int) -> float:
    """Return a policy's mean return in an agent's simulator, from the same first states of the log at every call."""
    return float(generate(ensemble, [agent], episodes, policy, progress=False).episode_returns.mean())


def six_trajectories(cell: Cell, ensemble: Ensemble, log: Trajectories, agent: int) -> Trajectories:
    """Return an agent's recorded trajectory and five synthetic ones."""
    method = METHODS[cell.method]
    how: dict[str, Any] = {"policy": "plan", **cell.scale.planner}
    if method.planner is Planner.VALUE_ITERATION:
        how = {"policy": "value_iteration", "points": cell.scale.grids.get(cell.env)}
    if method.selected:
        how["starts"] = "spread"
    synthetic = generate(ensemble, [agent], SYNTHETIC_EPISODES, seed=cell.seed, progress=sys.stderr.isatty(), **how)
    return Trajectories.concatenate([log.select([agent]), synthetic])
