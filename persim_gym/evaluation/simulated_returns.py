"""What policies would earn, by the agents' simulators alone: for where nobody has the true systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import checked_seed, whole_number
from persim_gym.collection.policies import as_policy, policy_name
from persim_gym.data.labels import AgentIndex, find_listed
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
    terminated: float
    """Part of the episodes that end in a terminal state."""
    unfamiliar: float
    """Part of the steps on which the members disagree by more than on 99 % of the log's rows; not a number of a single
    member or of a baseline's model."""
    episodes: int


_OFTEN = 0.5
"""Part of unfamiliar steps that is warned of: most of them. On the log's own rows it is 0.01 at most. Of 30 patients a
policy that acted as the nearest rows of their log had 0.02 on average and 0.27 at worst; random actions, which were not
those of that log, 0.25 and 0.72."""


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
    learned from the same log may be wrong in all of them. A warning names the agent of whom most steps are unlike the
    log's, if they are half or more: its return is an extrapolation then. `policy_returns` measures in the true
    systems, where there are any.

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
        One row per agent, in the order asked for. An agent whose simulator diverges at once is left out, with a
        warning, and a member in which it does has not a number.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: an argument out of its range, an agent named twice, or nothing that acts.
        InvalidStateError: first states of another shape, not finite, or outside the observation space.
        InvalidActionError: the policy gives an action that the task does not have.
        PerSimError: no episode has a step that is finite.

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
    name = policy_name(policy)
    unfamiliar = _unfamiliar(ensemble, together, device)
    _warn_of_unfamiliar(together.agent_labels, unfamiliar)
    by_member = [
        dict(zip(log.agent_labels, map(np.mean, _by_agent(log, log.episode_returns)), strict=True)) for log in alone
    ]
    lengths, ends = (_by_agent(together, column) for column in (together.episode_lengths, _terminated(together)))
    return [
        SimulatedReturn(
            agent=label,
            policy=name,
            mean=float(returns.mean()),
            std=float(returns.std()),
            members=tuple(float(means.get(label, np.nan)) for means in by_member),
            length=float(lengths[agent].mean()),
            terminated=float(ends[agent].mean()),
            unfamiliar=unfamiliar[agent],
            episodes=len(returns),
        )
        for agent, (label, returns) in enumerate(
            zip(together.agent_labels, _by_agent(together, together.episode_returns), strict=True)
        )
    ]


def _by_agent(log: Trajectories, values: np.ndarray) -> list[np.ndarray]:
    """Return what belongs to the episodes (E,) of a log, agent by agent."""
    order = np.argsort(log.episode_agents, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(log.episode_agents, minlength=log.num_agents))[:-1])


def _terminated(log: Trajectories) -> np.ndarray:
    """Return which episodes (E,) terminate."""
    return np.asarray(log.terminated[log.episode_ends - 1])


def _unfamiliar(ensemble: LearnedDynamics, log: Trajectories, device: str) -> list[float]:
    """Return for each agent of a synthetic log which part of its steps is unfamiliar."""
    limits = ensemble.provenance.get("familiar_disagreement")
    if limits is None or not isinstance(ensemble, Ensemble) or ensemble.num_members < 2:
        return [float("nan")] * log.num_agents
    found = find_listed(log.agent_labels, ensemble.agent_labels)
    simulator = ensemble.simulator(agents=list(map(AgentIndex, found[log.agents])), device=device)
    beyond = (simulator.step(log.observations, log.actions).disagreement > np.asarray(limits)).any(axis=1)
    counts = np.bincount(log.agents, minlength=log.num_agents)
    return (np.bincount(log.agents, beyond, minlength=log.num_agents) / counts).tolist()


def _warn_of_unfamiliar(labels: Sequence[str], shares: list[float]) -> None:
    """Warn of the agent with the largest part of unfamiliar steps, if it is large."""
    worst = int(np.argmax(shares))
    if shares[worst] >= _OFTEN:
        warn_user(
            f"agent {labels[worst]!r} takes {shares[worst]:.0%} of its simulated steps where the members disagree by "
            "more than on 99 % of the log's rows: the policy leaves what the log knows, and its return there is an "
            "extrapolation, however well the members agree on it. See SimulatedReturn.unfamiliar for every agent"
        )
