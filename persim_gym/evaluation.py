"""How good a simulator is: prediction error along a test policy's trajectories, and returns in the true system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.errors import PerSimError
from persim_gym.labels import find_agents
from persim_gym.planning import MPCAgent, ValueIterationAgent
from persim_gym.policies import as_policy
from persim_gym.tasks import System, Task
from persim_gym.terminal import ProgressBar
from persim_gym.types import BoolArray, FloatArray, LearnedDynamics, Policy

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


def prediction_error(
    ensemble: LearnedDynamics,
    *,
    policy: str | Policy | Callable[[FloatArray], Any],
    agents: Sequence[int | str] | None = None,
    episodes: int = 200,
    seed: int = 0,
    aggregate: str = "mean",
    covariates: Mapping[str, Sequence[float]] | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> list[PredictionError]:
    """Measure the error of 51-step predictions along trajectories of a test policy in the true system.

    The policy acts on true observations. Each member runs freely from the true state at index 9, with the recorded
    actions; the prediction is the aggregate of the members' trajectories. What comes after the end of an episode is
    not scored; an episode that ends before index 12 is drawn again.

    Args:
        ensemble: to be measured.
        policy: "random", an object with `predict`, or a function of observations (B, D).
        agents: indices or labels; by default the task's test agents.
        episodes: an agent.
        seed: of initial states and random actions.
        aggregate: "mean" (as in the paper) or "median" over the members.
        covariates: label -> covariates (K,) where the ensemble does not know them.
        device: to predict on.
        progress: whether to show a bar.

    """
    task = ensemble.task
    episodes, seed = whole_number("episodes", episodes), whole_number("seed", seed, least=0)
    chosen = _agents(ensemble, agents)
    rows = []
    with ProgressBar("prediction error", len(chosen), progress) as bar:
        for agent in chosen:
            label = ensemble.agent_labels[agent]
            known = _covariates_of(ensemble, agent, covariates)
            actor = as_policy(policy, task, seed)
            rng = np.random.default_rng([seed, agent])
            states, actions, valid, redrawn = _test_trajectories(task, actor, known, episodes, rng)
            simulator = ensemble.simulator(agent, aggregate=aggregate, device=device)
            simulator = simulator.conditioned_on(states[:, : BURN_IN + 1], actions[:, :BURN_IN])
            predicted = simulator.combine(simulator.rollout(states[:, BURN_IN], actions[:, BURN_IN:]))
            rmse, r2 = trajectory_scores(states[:, BURN_IN + 1 :], predicted, valid[:, BURN_IN + 1 :])
            rows.append(
                PredictionError(
                    label,
                    tuple(known.tolist()),
                    float(rmse.mean()),
                    float(rmse.std()),
                    float(np.median(rmse)),
                    float(np.median(r2)),
                    episodes,
                    redrawn,
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
    """Return the error that `prediction_error` would give a prediction of each episode's own mean, an agent each.

    R² is 0 there, so this is the scale on which errors are large or small. It depends on the test policy alone: two
    policies under which it is the same are equally hard to predict.

    Args:
        task: whose true systems are run.
        policy: "random", an object with `predict`, or a function of observations (B, D).
        covariates: (agents, K); by default the test agents'.
        episodes: an agent.
        seed: of initial states and random actions.

    """
    episodes = whole_number("episodes", episodes)
    actor, errors = as_policy(policy, task, seed), []
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


def mpc_returns(
    ensemble: LearnedDynamics,
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: Mapping[str, Sequence[float]] | None = None,
    device: str = "cpu",
    progress: bool = False,
    **planner: Any,
) -> list[AverageReturn]:
    """Measure the return of MPC that plans in the simulator and acts in the true system, episodes in lockstep.

    Args:
        ensemble: to plan in.
        agents: indices or labels; by default the task's test agents.
        episodes: an agent.
        seed: of initial states and candidates.
        covariates: label -> covariates (K,) where the ensemble does not know them.
        device: to plan on.
        progress: whether to show a bar.
        **planner: settings of `persim_gym.MPCAgent`.

    """

    def make(agent: int, _: System) -> Policy:
        simulator = ensemble.simulator(agent, device=device)
        return MPCAgent(simulator, seed=np.random.default_rng([seed, agent, 1]), **planner)

    return _returns(ensemble, make, "MPC in the simulator", agents, episodes, seed, covariates, progress)


def value_iteration_returns(
    ensemble: LearnedDynamics,
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: Mapping[str, Sequence[float]] | None = None,
    device: str = "cpu",
    progress: bool = False,
    **settings: Any,
) -> list[AverageReturn]:
    """Measure the return of value iteration that plans in the simulator and acts in the true system.

    Arguments as of `mpc_returns`; the settings are those of `persim_gym.ValueIterationAgent`.
    """

    def make(agent: int, _: System) -> Policy:
        return ValueIterationAgent(ensemble.simulator(agent, device=device), **settings)

    return _returns(ensemble, make, "value iteration in the simulator", agents, episodes, seed, covariates, progress)


def policy_returns(
    ensemble: LearnedDynamics,
    policy: str | Policy | Callable[[FloatArray], Any],
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: Mapping[str, Sequence[float]] | None = None,
    progress: bool = False,
) -> list[AverageReturn]:
    """Measure the return of any policy in the true systems of an ensemble's agents.

    Args:
        ensemble: whose agents and task are taken.
        policy: "random", an object with `predict`, or a function of observations (B, D).
        agents: indices or labels; by default the task's test agents.
        episodes: an agent.
        seed: of initial states and random actions.
        covariates: label -> covariates (K,) where the ensemble does not know them.
        progress: whether to show a bar.

    Returns:
        One row an agent, in the order asked for.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: an agent's covariates are not known, or fewer than one episode.
        PerSimError: the task has no true system.

    """
    name = policy if isinstance(policy, str) else type(policy).__name__

    def make(agent: int, _: System) -> Policy:
        return as_policy(policy, ensemble.task, int(np.random.SeedSequence([seed, agent, 2]).generate_state(1)[0]))

    return _returns(ensemble, make, name, agents, episodes, seed, covariates, progress)


def true_mpc_returns(
    ensemble: LearnedDynamics,
    *,
    agents: Sequence[int | str] | None = None,
    episodes: int = 20,
    seed: int = 0,
    covariates: Mapping[str, Sequence[float]] | None = None,
    progress: bool = False,
    **planner: Any,
) -> list[AverageReturn]:
    """Measure the return of MPC that plans in the true system: what it would reach with a perfect simulator.

    Args:
        ensemble: whose agents and task are taken.
        agents: indices or labels; by default the task's test agents.
        episodes: an agent.
        seed: of initial states and the search.
        covariates: label -> covariates (K,) where the ensemble does not know them.
        progress: whether to show a bar.
        **planner: settings of `persim_gym.MPCAgent`.

    Returns:
        One row an agent, in the order asked for.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: an agent's covariates are not known, or a setting that the planner has not.
        PerSimError: the task has no true system.

    """

    def make(agent: int, system: System) -> Policy:
        return MPCAgent(system, task=ensemble.task, seed=np.random.default_rng([seed, agent, 1]), **planner)

    return _returns(ensemble, make, "MPC in the true system", agents, episodes, seed, covariates, progress)


def run_episodes(
    task: Task, policy: Policy, system: System, rng: np.random.Generator, on_step: Callable[[], None] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Run one episode in every copy of a true system, in lockstep; return returns (B,) and lengths (B,).

    A planner is told which episodes are over: it need not search for them.
    """
    observations = system.reset(rng)
    count = system.num_copies
    running = np.ones(count, bool)
    returns, lengths = np.zeros(count), np.zeros(count)
    state, plans = None, getattr(policy, "takes_running", False)
    for step in range(task.max_episode_steps):
        told: dict[str, Any] = {"running": running} if plans else {}
        begun = np.full(count, step == 0)
        actions, state = policy.predict(observations.astype(np.float32), state, begun, True, **told)
        actions = task.check_actions(actions, count)
        next_observations = system.step(actions)
        # A copy whose episode is over is stepped on, and may come to where the reward is no number.
        returns += np.where(running, task.reward(observations, actions, next_observations), 0.0)
        lengths += running
        running &= ~task.terminated(next_observations)
        observations = next_observations
        if on_step is not None:
            on_step()
        if not running.any():
            break
    return returns, lengths


def to_records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows, of dataclasses, as dictionaries that JSON can hold: what is not a finite number becomes None."""

    def known(value: Any) -> Any:
        if isinstance(value, tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return [{name: known(value) for name, value in asdict(row).items()} for row in rows]


def _returns(
    ensemble: LearnedDynamics,
    make_policy: Callable[[int, System], Policy],
    name: str,
    agents: Sequence[int | str] | None,
    episodes: int,
    seed: int,
    covariates: Mapping[str, Sequence[float]] | None,
    progress: bool,
) -> list[AverageReturn]:
    task = ensemble.task
    episodes, seed = whole_number("episodes", episodes), whole_number("seed", seed, least=0)
    chosen = _agents(ensemble, agents)
    rows = []
    with ProgressBar(name, len(chosen) * task.max_episode_steps, progress) as bar:
        for count, agent in enumerate(chosen):
            known = _covariates_of(ensemble, agent, covariates)
            system = task.system(np.tile(known, (episodes, 1)))
            policy = make_policy(agent, system)
            rng = np.random.default_rng([seed, agent])
            returns, lengths = run_episodes(task, policy, system, rng, bar.advance)
            label = ensemble.agent_labels[agent]
            rows.append(
                AverageReturn(
                    label,
                    tuple(known.tolist()),
                    name,
                    float(returns.mean()),
                    float(returns.std()),
                    float(lengths.mean()),
                    episodes,
                )
            )
            bar.complete((count + 1) * task.max_episode_steps, f"agent {label}: return {returns.mean():.1f}")
    return rows


def _agents(ensemble: LearnedDynamics, agents: Sequence[int | str] | None) -> list[int]:
    if agents is None:
        agents = range(min(len(ensemble.task.test_agents) or ensemble.num_agents, ensemble.num_agents))
    return find_agents(None, agents, ensemble.agent_labels).tolist()


def _covariates_of(
    ensemble: LearnedDynamics, agent: int, covariates: Mapping[str, Sequence[float]] | None
) -> FloatArray:
    label = ensemble.agent_labels[agent]
    if covariates is not None and label in covariates:
        return ensemble.task.check_covariates([covariates[label]])[0]
    return np.asarray(ensemble.agent_covariates(agent), np.float64)


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
    steps = BURN_IN + HORIZON
    states = [system.reset(rng)]
    valid = [np.ones(episodes, bool)]
    actions: list[np.ndarray] = []
    state = None
    for step in range(steps):
        action, state = policy.predict(states[-1].astype(np.float32), state, np.full(episodes, step == 0), True)
        actions.append(task.check_actions(action, episodes))
        going = valid[-1] & ~task.terminated(states[-1]) if step else valid[-1]
        states.append(system.step(actions[-1]))
        valid.append(going)
    return np.stack(states, axis=1), np.stack(actions, axis=1), np.stack(valid, axis=1)
