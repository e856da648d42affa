"""Collecting a log: one trajectory of each of many agents in their true systems, all stepped together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from persim_gym.arguments import checked_seed, whole_number
from persim_gym.collection.episodes import in_episode_order, run
from persim_gym.collection.logging_policies import logging_policy
from persim_gym.collection.policies import as_policy, policy_name
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidArgumentError
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

    Recorded and rewarded are the actions carried out: continuous ones within their bounds, whatever the policy gave.

    Args:
        task: the task or its name.
        policy: one of the paper's four, "pure", "pure-eps-20", "pure-eps-40" or "random"
            (`persim_gym.collection.logging_policies`), an object with Stable-Baselines3's `predict`
            (`persim_gym.types.Policy`), or a function from observations (B, D) to actions. It sees all agents that
            still run, and nothing of their covariates.
        num_agents: N, 500 if not given. The first agents are the task's test agents, the others are drawn from the
            covariates' ranges.
        seed: of the agents, the initial states and the random actions.
        covariates: (N, K) of the agents, instead of drawn ones.

    Returns:
        N trajectories, with covariates, of at most the task's time limit each.

    Raises:
        UnknownNameError: there is no such task or logging policy.
        InvalidArgumentError: a number out of its range, covariates that do not fit the task, or nothing that acts.
        InvalidActionError: the policy gives an action that the task does not have.
        PerSimError: the task has no true system, or no logging policies.

    """
    task = get_task(task)
    seed = checked_seed(seed)
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
    columns = _record(task, actor, covariates, np.random.default_rng(start_seed))
    name = policy_name(policy)
    return Trajectories.from_arrays(
        **columns,
        agent_labels=[str(agent) for agent in range(len(covariates))],
        covariates=covariates,
        covariate_names=task.covariate_names,
        task=task.name,
        **task.given_names,
        provenance={"policy": name, "seed": seed},
    )


def _record(task: Task, policy: Policy, covariates: FloatArray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Let all agents act until each has finished; columns of `Trajectories`, agent after agent."""
    steps = enumerate(run(task, policy, task.system(covariates), rng, leave=True), start=1)
    return in_episode_order([step.record(task, at_limit=number == task.max_episode_steps) for number, step in steps])
