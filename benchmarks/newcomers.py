"""Agents that an ensemble has not seen: the ensemble, their logs, and the first transitions of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import protocol
from methods import METHODS
from models import trained

from persim_gym import Ensemble, Trajectories, collect, get_task


def persim_plus(
    env: str, data: str, scale: protocol.Scale, seed: int, *, first: int | None = None, device: str, cache: Path
) -> Ensemble:
    """Return "PerSim+", trained on the first agents of a log, all if not said how many."""
    config = METHODS["PerSim+"].config_name(env)
    return trained(env, data, scale, seed, config=config, first=first, device=device, cache=cache)


def population(env: str, data: str, count: int, seed: int) -> Trajectories:
    """Log one trajectory of each of ``count`` agents with covariates drawn from the task's ranges."""
    task = get_task(env)
    low = [covariate.low for covariate in task.covariates]
    high = [covariate.high for covariate in task.covariates]
    covariates = np.random.default_rng([seed, 3]).uniform(low, high, size=(count, len(low)))
    return collect(env, policy=data, covariates=covariates, seed=seed)


def first_transitions(log: Trajectories, count: int | None = None) -> Trajectories:
    """Return the first transitions of each agent, or the first half of them, under new names: "newcomer 0", ….

    The log has one episode of each agent.
    """
    lengths = log.episode_lengths
    counts = np.maximum(lengths // 2, 1) if count is None else np.minimum(lengths, count)
    rows = np.concatenate([start + np.arange(n) for start, n in zip(log.episode_starts, counts, strict=True)])
    return Trajectories.from_arrays(
        agents=log.agents[rows],
        agent_labels=[f"newcomer {agent}" for agent in range(log.num_agents)],
        observations=log.observations[rows],
        actions=log.actions[rows],
        next_observations=log.next_observations[rows],
        covariates=log.covariates,
        covariate_names=log.covariate_names,
        task=log.task,
    )
