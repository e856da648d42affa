"""What policies and planners earn in the agents' true systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import checked_seed, whole_number
from persim_gym.collection.episodes import run
from persim_gym.collection.policies import action_seed, as_policy, policy_name
from persim_gym.evaluation.agents import GivenCovariates, measured_agents, true_covariates
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.planning import MPCAgent, ValueIterationAgent
from persim_gym.tasks import System, Task
from persim_gym.terminal import ProgressBar
from persim_gym.types import FloatArray, Policy


@dataclass(frozen=True)
class AverageReturn:
    """Return of a policy in one agent's true system (Tables 9–11 of the paper)."""

    agent: str
    covariates: tuple[float, ...]
    policy: str
    mean: float
    std: float
    """Standard deviation over the episodes."""
    length: float
    """Mean number of steps."""
    episodes: int


def mpc_returns(
    ensemble: LearnedDynamics,
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: GivenCovariates | None = None,
    aggregate: str = "mean",
    device: str = "cpu",
    progress: bool = False,
    **planner: Any,
) -> list[AverageReturn]:
    """Measure the return of MPC that plans in the simulator and acts in the true system, episodes in lockstep.

    The other measurements of returns have the same arguments, but for the settings, and the same results and errors.

    Args:
        ensemble: model whose agents are measured.
        agents: list of indices or labels, each agent once; by default those like the task's test agents, or else all.
        episodes: number of episodes per agent.
        seed: seed of the initial states, and of all that the policy or planner draws. Each agent has its own of
            them, by its index in the ensemble: among other agents it may begin elsewhere.
        covariates: the agents' covariates by label, where the ensemble does not know them: {name: value}, or (K,) in
            the task's order.
        aggregate: "mean" (as in the paper) or "median" over the members.
        device: device to plan on.
        progress: whether to show a bar.
        **planner: settings of `persim_gym.MPCAgent`.

    Returns:
        One row per agent, in the order asked for.

    Raises:
        UnknownNameError: there is no such agent or covariate.
        InvalidArgumentError: an argument out of its range, an agent named twice, covariates that are not known or
            incomplete, a setting that the planner does not have, or nothing that acts.
        InvalidActionError: the policy gives an action that the task does not have.
        NonFiniteReturnError: all candidates of a plan diverge.
        PerSimError: the task has no true system.

    """

    def make(agent: int, _: System, rng: np.random.Generator) -> Policy:
        return MPCAgent(ensemble.simulator(agent, aggregate=aggregate, device=device), seed=rng, **planner)

    return _returns(ensemble, make, "MPC in the simulator", agents, episodes, seed, covariates, progress)


def value_iteration_returns(
    ensemble: LearnedDynamics,
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: GivenCovariates | None = None,
    aggregate: str = "mean",
    device: str = "cpu",
    progress: bool = False,
    **settings: Any,
) -> list[AverageReturn]:
    """Measure the return of value iteration that plans in the simulator and acts in the true system.

    The settings are those of `persim_gym.ValueIterationAgent`. The other arguments, what is returned, and the errors
    are those of `mpc_returns`.
    """

    def make(agent: int, _: System, rng: np.random.Generator) -> Policy:
        return ValueIterationAgent(ensemble.simulator(agent, aggregate=aggregate, device=device), **settings)

    return _returns(ensemble, make, "value iteration in the simulator", agents, episodes, seed, covariates, progress)


def policy_returns(
    ensemble: LearnedDynamics,
    policy: str | Policy | Callable[[FloatArray], Any],
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: GivenCovariates | None = None,
    progress: bool = False,
) -> list[AverageReturn]:
    """Measure the return of any policy in the true systems of an ensemble's agents.

    ``policy`` is "random", an object with `predict`, or a function of observations (B, D). The other arguments, what is
    returned, and the errors are those of `mpc_returns`.
    """
    name = policy_name(policy)

    def make(agent: int, _: System, rng: np.random.Generator) -> Policy:
        return as_policy(policy, ensemble.task, action_seed(seed, agent))

    return _returns(ensemble, make, name, agents, episodes, seed, covariates, progress)


def true_mpc_returns(
    ensemble: LearnedDynamics,
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: GivenCovariates | None = None,
    progress: bool = False,
    **planner: Any,
) -> list[AverageReturn]:
    """Measure the return of MPC that plans in the true system: what it would reach with a perfect simulator.

    Arguments, what is returned, and the errors are those of `mpc_returns`.
    """

    def make(_: int, system: System, rng: np.random.Generator) -> Policy:
        return MPCAgent(system, task=ensemble.task, seed=rng, **planner)

    return _returns(ensemble, make, "MPC in the true system", agents, episodes, seed, covariates, progress)


def run_episodes(
    task: Task, policy: Policy, system: System, rng: np.random.Generator, on_step: Callable[[], None] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Run one episode in every copy of a true system, in lockstep; return returns (B,) and lengths (B,)."""
    returns, lengths = np.zeros(system.num_copies), np.zeros(system.num_copies)
    for step in run(task, policy, system, rng):
        # A copy whose episode is over is stepped on, and may come to where the reward is no number.
        returns += np.where(step.running, step.rewards(task), 0.0)
        lengths += step.running
        if on_step is not None:
            on_step()
        if not step.going_on.any():
            break
    return returns, lengths


def _returns(
    ensemble: LearnedDynamics,
    make_policy: Callable[[int, System, np.random.Generator], Policy],
    name: str,
    agents: Sequence[int | str] | None,
    episodes: int,
    seed: int,
    covariates: GivenCovariates | None,
    progress: bool,
) -> list[AverageReturn]:
    """Measure, agent after agent, the policy made for an agent's index, its true system and a generator."""
    task = ensemble.task
    episodes, seed = whole_number("episodes", episodes), checked_seed(seed)
    chosen = measured_agents(ensemble, agents)
    rows = []
    with ProgressBar(name, len(chosen) * task.max_episode_steps, progress) as bar:
        for count, agent in enumerate(chosen):
            known = true_covariates(ensemble, agent, covariates)
            system = task.system(np.tile(known, (episodes, 1)))
            policy = make_policy(agent, system, np.random.default_rng([seed, agent, 1]))
            rng = np.random.default_rng([seed, agent])
            returns, lengths = run_episodes(task, policy, system, rng, bar.advance)
            label = ensemble.agent_labels[agent]
            rows.append(
                AverageReturn(
                    agent=label,
                    covariates=tuple(known.tolist()),
                    policy=name,
                    mean=float(returns.mean()),
                    std=float(returns.std()),
                    length=float(lengths.mean()),
                    episodes=episodes,
                )
            )
            bar.complete((count + 1) * task.max_episode_steps, f"agent {label}: return {returns.mean():.1f}")
    return rows
