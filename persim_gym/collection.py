"""Collecting a log: one trajectory of each of many agents in their true systems, all stepped together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.data import Trajectories
from persim_gym.errors import InvalidArgumentError
from persim_gym.logging_policies import logging_policy
from persim_gym.policies import as_policy, rows_of_state
from persim_gym.tasks import Task, get_task
from persim_gym.types import FloatArray, Policy


def collect(
    task: str | Task,
    *,
    policy: str | Policy | Callable[[FloatArray], Any] = "random",
    num_agents: int | None = None,
    seed: int = 0,
    covariates: FloatArray | None = None,
) -> Trajectories:
    """Record one trajectory of each agent in its true system.

    Args:
        task: the task or its name.
        policy: one of the paper's four, "pure", "pure-eps-20", "pure-eps-40" or "random"
            (`persim_gym.logging_policies`), an object with Stable-Baselines3's `predict`, or a function from
            observations (B, D) to actions. It sees all agents that still run, and nothing of their covariates.
        num_agents: N, 500 if not given. The first agents are the task's test agents, the others are drawn from the
            covariates' ranges.
        seed: of the agents, the initial states and the random actions.
        covariates: (N, K) of the agents, instead of drawn ones.

    Returns:
        N trajectories, with covariates, of at most the task's time limit each.

    """
    task = get_task(task)
    seed = whole_number("seed", seed, least=0)
    agent_seed, start_seed, action_seed = np.random.SeedSequence(seed).spawn(3)
    if covariates is None:
        count = 500 if num_agents is None else whole_number("num_agents", num_agents)
        covariates = task.sample_covariates(np.random.default_rng(agent_seed), count)
    covariates = task.check_covariates(covariates)
    if num_agents is not None and num_agents != len(covariates):
        raise InvalidArgumentError(f"num_agents={num_agents}, but covariates are of {len(covariates)}: leave one out")
    exploration_seed = int(action_seed.generate_state(1)[0])
    if isinstance(policy, str):
        actor = logging_policy(policy, task, covariates, seed=exploration_seed)
    else:
        actor = as_policy(policy, task, exploration_seed)
    steps = _run(task, actor, covariates, np.random.default_rng(start_seed))
    name = policy if isinstance(policy, str) else type(policy).__name__
    return Trajectories.from_arrays(
        **steps,
        agent_labels=[str(agent) for agent in range(len(covariates))],
        covariates=covariates,
        covariate_names=task.covariate_names,
        task=task.name,
        provenance={"policy": name, "seed": seed},
    )


def _run(task: Task, policy: Policy, covariates: FloatArray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Step all agents until each has finished; columns of `Trajectories`, agent after agent."""
    running = np.arange(len(covariates))
    system = task.system(covariates)
    observations = system.reset(rng)
    state, first = None, True
    records: list[tuple[np.ndarray, ...]] = []
    for step in range(1, task.max_episode_steps + 1):
        actions, state = policy.predict(
            observations.astype(np.float32), state, np.full(len(running), first), deterministic=True
        )
        actions, first = task.executed(actions, len(running)), False
        next_observations = system.step(actions)
        terminated = np.asarray(task.terminated(next_observations), bool)
        truncated = ~terminated & (step == task.max_episode_steps)
        rewards = task.reward(observations, actions, next_observations)
        records.append((running, observations, actions, rewards, next_observations, terminated, truncated))
        going = np.flatnonzero(~terminated)
        if len(going) == 0:
            break
        observations = next_observations
        if len(going) < len(running):
            running, observations = running[going], observations[going]
            system = system.branch(going)
            state = rows_of_state(state, going)
    return in_episode_order(records)


def in_episode_order(records: list[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    """Return columns from records of steps, one of all that still ran: those of the first number first, in time order.

    A record is (numbers (B,) of who ran, observations, actions, rewards, next observations, terminated, truncated); the
    numbers come back as the column "agents".
    """
    names = ("agents", "observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    columns = {name: np.concatenate(column) for name, column in zip(names, zip(*records, strict=True), strict=True)}
    order = np.argsort(columns["agents"], kind="stable")
    return {name: column[order] for name, column in columns.items()}
