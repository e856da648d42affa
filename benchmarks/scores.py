"""Scores of a learned method for the test agents: errors of its predictions, returns of what it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cells import Cell, Score, episodes_of
from methods import METHODS

from persim_gym import get_task, prediction_error
from persim_gym.collection.logging_policies import test_policy
from persim_gym.evaluation.returns import run_episodes
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.tasks import PlanningObjective, System
from persim_gym.types import Policy


def score_predictions(cell: Cell, ensemble: LearnedDynamics, device: str) -> list[Score]:
    """Score the free-running predictions for all test agents."""
    rows = prediction_error(
        ensemble,
        policy=test_policy(cell.env, seed=cell.seed).act,
        episodes=episodes_of(cell),
        seed=cell.seed,
        aggregate=METHODS[cell.method].aggregate,
        device=device,
    )
    return [Score(row.agent, metric, getattr(row, metric)) for row in rows for metric in cell.table.metrics]


def score_episodes(cell: Cell, agent: int, system: System, policy: Policy) -> Score:
    """Score a policy by its mean return in an agent's true system, an episode in each copy, in lockstep."""
    task = get_task(cell.env)
    returns, _ = run_episodes(task, policy, system, np.random.default_rng([cell.seed, agent]))
    return Score(str(agent), "return", float(returns.mean()), tuple(returns.tolist()))


def objective_of(cell: Cell) -> PlanningObjective:
    """Return what a method's planner maximizes: the task's objective, or its reward alone."""
    objective = get_task(cell.env).objective
    if METHODS[cell.method].plain_objective:
        return replace(objective, progress=None, terminated=None)
    return objective
