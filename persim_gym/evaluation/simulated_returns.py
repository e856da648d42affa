"""What policies would earn, by the agents' simulators alone: for where nobody has the true systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import checked_seed, whole_number
from persim_gym.collection.policies import as_policy
from persim_gym.data.labels import AgentIndex
from persim_gym.data.trajectories import Trajectories
from persim_gym.generation import generate
from persim_gym.model.dynamics import LearnedDynamics, check_is_ensemble
from persim_gym.model.ensemble import Ensemble
from persim_gym.terminal import ProgressBar
from persim_gym.types import FloatArray, Policy
from persim_gym.user_warnings import warn_user


@dataclass(frozen=True)
class SimulatedReturn:
    """Return of a policy in one agent's simulator."""

    agent: str
    policy: str
    mean: float
    std: float
    """Standard deviation over the episodes."""
    members: tuple[float, ...]
    """(M,): the mean of episodes from the same first states in each member alone; () of a baseline's model."""
    length: float
    """Mean number of steps."""
    episodes: int


def simulated_policy_returns(
    ensemble: LearnedDynamics,
    policy: str | Policy | Callable[[FloatArray], Any],
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    starts: str | FloatArray = "log",
    max_episode_steps: int | None = None,
    aggregate: str = "mean",
    device: str = "cpu",
    progress: bool = False,
) -> list[SimulatedReturn]:
    """Measure the return of a policy in the agents' simulators, and in each member alone.

    Policies that are measured with the same seed begin in the same states, so their difference is less noisy than
    either. How far the members' returns lie apart is a hint of what the log leaves open, not a bound: what all members
    learned from the same log may be wrong in all of them. `policy_returns` measures in the true systems, where there
    are any.

    Args:
        ensemble: the simulators.
        policy: "random", an object with `predict`, or a function of observations (B, D).
        agents: list of indices or labels, each agent once; by default all.
        episodes: number of episodes per agent.
        seed: seed of the first states, of random actions, and of ends where termination was learned.
        starts: first states, as `generate` takes them: "log", "spread", "task", or the states themselves.
        max_episode_steps: time limit; the task's if not given.
        aggregate: "mean" or "median" over the members.
        device: device to simulate on.
        progress: whether to show a bar.

    Returns:
        One row per agent, in the order asked for.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: an argument out of its range, an agent named twice, or nothing that acts.
        InvalidStateError: first states of another shape, not finite, or outside the observation space.
        InvalidActionError: the policy gives an action that the task does not have.
        PerSimError: no episode of an agent has a step that is finite.

    """
    check_is_ensemble(ensemble)
    as_policy(policy, ensemble.task)  # a planner, by name, would be another policy in each member
    settings: dict[str, Any] = {
        "agents": list(map(AgentIndex, range(ensemble.num_agents))) if agents is None else agents,
        "episodes_per_agent": whole_number("episodes", episodes),
        "policy": policy,
        "starts": starts,
        "max_episode_steps": max_episode_steps,
        "seed": checked_seed(seed),
        "device": device,
        "progress": False,
    }
    models: list[LearnedDynamics] = [ensemble]
    if isinstance(ensemble, Ensemble):
        models += [ensemble.with_members([member]) for member in range(ensemble.num_members)]
    with ProgressBar("simulated returns", len(models), progress) as bar:
        logs = []
        for model in models:
            logs.append(generate(model, aggregate=aggregate, **settings))
            bar.advance()
    together, *alone = logs
    cut = sum(log.provenance["episodes_cut"] for log in logs)
    if cut:
        warn_user(f"{cut} episodes were cut where a simulator diverges; their returns are those up to there")
    name = policy if isinstance(policy, str) else type(policy).__name__
    return [
        SimulatedReturn(
            agent=label,
            policy=name,
            mean=float(returns.mean()),
            std=float(returns.std()),
            members=tuple(float(_returns_of(log, agent).mean()) for log in alone),
            length=float(together.episode_lengths[together.episode_agents == agent].mean()),
            episodes=len(returns),
        )
        for agent, label in enumerate(together.agent_labels)
        for returns in [_returns_of(together, agent)]
    ]


def _returns_of(log: Trajectories, agent: int) -> np.ndarray:
    return log.episode_returns[log.episode_agents == agent]
