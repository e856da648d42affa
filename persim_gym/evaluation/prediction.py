"""How good a simulator is: its prediction error along a test policy's trajectories in the true system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import checked_seed, whole_number
from persim_gym.collection.episodes import run
from persim_gym.collection.policies import action_seed, as_policy
from persim_gym.errors import PerSimError
from persim_gym.evaluation.agents import GivenCovariates, measured_agents, true_covariates
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.tasks import Task
from persim_gym.terminal import ProgressBar
from persim_gym.types import BoolArray, FloatArray, Policy

BURN_IN = 9
"""The free-running prediction starts at this index of the trajectory."""
HORIZON = 51
"""Scored steps: the indices 10 … 60 of the trajectory (the paper speaks of 50; its code scores 51)."""
_MAX_REDRAWS = 100


@dataclass(frozen=True)
class PredictionError:
    """Error of free-running predictions for one agent (Tables 6–8 of the paper)."""

    agent: str
    covariates: tuple[float, ...]
    rmse: float
    """Mean over the episodes of the root mean squared error over coordinates and scored steps, in raw units."""
    rmse_std: float
    """Standard deviation over the episodes."""
    rmse_median: float
    r2: float
    """Median over the episodes of the variance-weighted R²."""
    episodes: int
    redrawn: int
    """Episodes that ended before anything could be scored and were drawn again."""


def prediction_error(
    ensemble: LearnedDynamics,
    *,
    policy: str | Policy | Callable[[FloatArray], Any],
    agents: Sequence[int | str] | None = None,
    episodes: int = 200,
    seed: int = 0,
    aggregate: str = "mean",
    covariates: GivenCovariates | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> list[PredictionError]:
    """Measure the error of 51-step predictions along trajectories of a test policy in the true system.

    The policy acts on true observations. Each member runs freely from the true state at index 9, with the recorded
    actions; the prediction is the aggregate of the members' trajectories. What comes after the end of an episode is
    not scored; an episode that ends before index 12 is drawn again.

    Args:
        ensemble: model to be measured.
        policy: "random", an object with `predict`, or a function of observations (B, D).
        agents: list of indices or labels, each agent once; by default those like the task's test agents, or else all.
        episodes: number of episodes per agent.
        seed: seed of the initial states and random actions; each agent has its own of them, by its index.
        aggregate: "mean" (as in the paper) or "median" over the members.
        covariates: the agents' covariates by label, where the ensemble does not know them: {name: value}, or (K,) in
            the task's order.
        device: device to predict on.
        progress: whether to show a bar.

    Returns:
        One row per agent, in the order asked for.

    Raises:
        UnknownNameError: there is no such agent or covariate.
        InvalidArgumentError: an argument out of its range, an agent named twice, covariates that are not known or
            incomplete, or nothing that acts.
        InvalidActionError: the policy gives an action that the task does not have.
        PerSimError: the task has no true system, or nearly all episodes end before they can be scored.

    """
    task = ensemble.task
    episodes, seed = whole_number("episodes", episodes), checked_seed(seed)
    chosen = measured_agents(ensemble, agents)
    rows = []
    with ProgressBar("prediction error", len(chosen), progress) as bar:
        for agent in chosen:
            label = ensemble.agent_labels[agent]
            known = true_covariates(ensemble, agent, covariates)
            actor = as_policy(policy, task, action_seed(seed, agent))
            rng = np.random.default_rng([seed, agent])
            states, actions, valid, redrawn = _test_trajectories(task, actor, known, episodes, rng)
            simulator = ensemble.simulator(agent, aggregate=aggregate, device=device)
            simulator = simulator.conditioned_on(states[:, : BURN_IN + 1], actions[:, :BURN_IN])
            predicted = simulator.combine(simulator.rollout(states[:, BURN_IN], actions[:, BURN_IN:]))
            rmse, r2 = trajectory_scores(states[:, BURN_IN + 1 :], predicted, valid[:, BURN_IN + 1 :])
            rows.append(
                PredictionError(
                    agent=label,
                    covariates=tuple(known.tolist()),
                    rmse=float(rmse.mean()),
                    rmse_std=float(rmse.std()),
                    rmse_median=float(np.median(rmse)),
                    r2=float(np.median(r2)),
                    episodes=episodes,
                    redrawn=redrawn,
                )
            )
            bar.advance(f"agent {label}: RMSE {rows[-1].rmse:.4g}")
    return rows


def mean_predictor_errors(
    task: Task,
    *,
    policy: str | Policy | Callable[[FloatArray], Any],
    covariates: Sequence[Sequence[float]] | None = None,
    episodes: int = 200,
    seed: int = 0,
) -> list[float]:
    """Return the error, per agent, that `prediction_error` would give a prediction of each episode's own mean.

    R² is 0 there, so this is the scale on which errors are large or small. It depends on the test policy alone: two
    policies under which it is the same are equally hard to predict.

    Args:
        task: whose true systems are run.
        policy: "random", an object with `predict`, or a function of observations (B, D).
        covariates: (agents, K); by default the test agents'.
        episodes: number of episodes per agent.
        seed: seed of the initial states and random actions.

    """
    episodes, seed = whole_number("episodes", episodes), checked_seed(seed)
    actor, errors = as_policy(policy, task, action_seed(seed)), []
    for agent, known in enumerate(task.test_agents if covariates is None else covariates):
        rng = np.random.default_rng([seed, agent])
        states, _, valid, _ = _test_trajectories(task, actor, np.asarray(known, np.float64), episodes, rng)
        true, valid = states[:, BURN_IN + 1 :], valid[:, BURN_IN + 1 :]
        mean = np.stack([rows[scored].mean(axis=0) for rows, scored in zip(true, valid, strict=True)])
        rmse, _ = trajectory_scores(true, np.broadcast_to(mean[:, None], true.shape), valid)
        errors.append(float(rmse.mean()))
    return errors


def trajectory_scores(true: FloatArray, predicted: FloatArray, valid: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return RMSE (B,) and variance-weighted R² (B,) of predicted trajectories (B, H, D), where ``valid`` (B, H)."""
    weight = valid[:, :, None].astype(np.float64)
    count = weight.sum(axis=1)
    predicted = np.where(valid[:, :, None], predicted, true)  # zero times infinity is not zero
    squared = (weight * (true - np.asarray(predicted, np.float64)) ** 2).sum(axis=1)
    mean = (weight * true).sum(axis=1) / count
    variation = (weight * (true - mean[:, None]) ** 2).sum(axis=1)
    rmse = np.sqrt(squared.sum(axis=1) / (count[:, 0] * true.shape[2]))
    return rmse, 1.0 - squared.sum(axis=1) / variation.sum(axis=1)


def _test_trajectories(
    task: Task, policy: Policy, covariates: FloatArray, episodes: int, rng: np.random.Generator
) -> tuple[FloatArray, np.ndarray, BoolArray, int]:
    """Return states (B, 61, D), actions (B, 60), which states are before or at the end (B, 61), and the redraws."""
    kept: list[tuple[np.ndarray, ...]] = []
    found = redrawn = 0
    for _ in range(_MAX_REDRAWS):
        batch = _run_test_episodes(task, policy, covariates, episodes - found, rng)
        enough = batch[2][:, BURN_IN + 3]
        redrawn += int((~enough).sum())
        kept.append(tuple(column[enough] for column in batch))
        found += int(enough.sum())
        if found == episodes:
            states, actions, valid = (np.concatenate(columns) for columns in zip(*kept, strict=True))
            return states, actions, valid, redrawn
    raise PerSimError(
        f"with this policy nearly all episodes of the agent with covariates {covariates.tolist()} end before step "
        f"{BURN_IN + 3}, where scoring begins; give a policy that lasts longer"
    )


def _run_test_episodes(
    task: Task, policy: Policy, covariates: FloatArray, episodes: int, rng: np.random.Generator
) -> tuple[FloatArray, np.ndarray, BoolArray]:
    system = task.system(np.tile(covariates, (episodes, 1)))
    steps = list(run(task, policy, system, rng, steps=BURN_IN + HORIZON))
    states = [*(step.observations for step in steps), steps[-1].next_observations]
    valid = [np.ones(episodes, bool), *(step.running for step in steps)]
    return np.stack(states, axis=1), np.stack([step.actions for step in steps], axis=1), np.stack(valid, axis=1)
