"""Synthetic trajectories: what agents would do in their simulators, marked: they never pass for recorded ones."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from persim_gym.arguments import by_coordinate, checked_seed, whole_number
from persim_gym.collection.episodes import Step, in_episode_order
from persim_gym.collection.policies import as_policy, asked, policy_name, rows_of_state
from persim_gym.data.labels import AgentIndex, find_listed
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidArgumentError, InvalidStateError, PerSimError
from persim_gym.model.dynamics import LearnedDynamics, check_is_ensemble
from persim_gym.planning import MPCAgent, ValueIterationAgent
from persim_gym.simulators.simulator import Simulator
from persim_gym.tasks import Task
from persim_gym.tasks.rules import ended
from persim_gym.terminal import ProgressBar
from persim_gym.threads import numpy_in_one_thread
from persim_gym.types import FloatArray, IntArray, Policy
from persim_gym.user_warnings import warn_user

POLICIES = ("plan", "mpc", "value_iteration", "random")
STARTS = ("log", "spread", "task")


def generate(
    ensemble: LearnedDynamics,
    agents: Sequence[int | str],
    episodes_per_agent: int = 5,
    policy: str | Policy | Callable[[FloatArray], Any] = "plan",
    *,
    starts: str | FloatArray = "log",
    max_episode_steps: int | None = None,
    max_disagreement: float | Sequence[float] | None = None,
    aggregate: str = "mean",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    **planner: Any,
) -> Trajectories:
    """Act in the simulators of some agents and record it.

    All episodes of all agents run together. Simulated states are kept within the observation space, continuous actions
    within their bounds before they act, are recorded and are rewarded. A termination that was learned is drawn with its
    probability.

    Args:
        ensemble: the simulators; a baseline's model is one, too.
        agents: list of indices or labels, each agent once.
        episodes_per_agent: number of episodes per agent.
        policy: "plan", the paper's way (section F.4): search from the simulated state, apply the whole best sequence,
            search again; "mpc": apply its first action only; "value_iteration": solve each agent's whole episode once,
            where states are small and actions few; "random"; an object with Stable-Baselines3's `predict`
            (`persim_gym.types.Policy`) or d3rlpy's, `predict(observations)`; or a function from observations (B, D) to
            actions.
        starts: first states: "log", drawn from the first states of the log's episodes; "spread", those of them that lie
            farthest apart, the same for every agent; "task", drawn by the task; or the states themselves, (D,),
            (episodes, D) or (agents, episodes, D).
        max_episode_steps: time limit; the task's if not given.
        max_disagreement: truncate an episode before its first step with a larger disagreement, the standard deviation
            over the members in the units of the observation: one number or (D,).
        aggregate: "mean" or "median" over the members.
        seed: seed of first states, random actions, plans, and ends where termination was learned.
        device: device to simulate on.
        progress: whether to show a bar.
        **planner: settings of `persim_gym.MPCAgent` for "plan" and "mpc", or of `persim_gym.ValueIterationAgent`.

    Returns:
        Trajectories of these agents, whose provenance has ``"synthetic": True``, the policy, and what the simulators
        learned from. An agent of whom no episode has a step is left out, with a warning.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: an argument out of its range, an agent named twice, an unknown policy, or a setting that
            the planner does not have.
        InvalidStateError: first states of another shape, not finite, or outside the observation space.
        InvalidActionError: the policy gives an action that the task does not have.
        NonFiniteReturnError: all candidates of a plan diverge.
        PerSimError: no episode has a step that is finite and within ``max_disagreement``.

    """
    check_is_ensemble(ensemble)
    indices = find_listed(agents, ensemble.agent_labels)
    episodes_per_agent = whole_number("episodes_per_agent", episodes_per_agent)
    limit, seed = ensemble.task.limit_of(max_episode_steps), checked_seed(seed)
    start_seed, action_seed, end_seed, noise_seed = np.random.SeedSequence(seed).spawn(4)
    act = _actor(policy, ensemble, np.random.default_rng(action_seed), planner)
    first = _first_states(ensemble, starts, (len(indices), episodes_per_agent), np.random.default_rng(start_seed))
    bound, size = max_disagreement, ensemble.task.observation_size
    bound = None if bound is None else by_coordinate("max_disagreement", bound, size, above=True)
    acting = np.repeat(indices, episodes_per_agent)
    run = _Run(ensemble, acting, aggregate, device, bound, np.random.default_rng(noise_seed))
    columns = run.record(first, act, limit, np.random.default_rng(end_seed), progress)
    episodes = columns.pop("agents")
    labels: list[str] = [ensemble.agent_labels[int(index)] for index in indices]
    there = _agents_there(episodes // episodes_per_agent, labels, max_disagreement)
    indices, labels = indices[there], [labels[place] for place in there]
    begins = np.append(0, np.flatnonzero(np.diff(episodes)) + 1)
    task, covariates = ensemble.task, None if ensemble.covariates is None else ensemble.covariates[indices]
    if covariates is not None and not np.isfinite(covariates).all():
        covariates = None  # a log has those of all its agents or none, and some newcomers' are not known
    return Trajectories.from_arrays(
        **columns,
        agents=np.searchsorted(there, episodes // episodes_per_agent),
        agent_labels=labels,
        episode_starts=begins,
        covariates=covariates,
        covariate_names=() if covariates is None else task.covariate_names,
        task=task.name,
        **task.given_names,
        provenance={
            **_provenance(ensemble, policy, planner, starts, max_disagreement),
            "seed": seed,
            "episodes_cut": run.num_cut,
            "episodes_empty": len(acting) - len(begins),
        },
    )


def _provenance(
    ensemble: LearnedDynamics, policy: Any, planner: dict[str, Any], starts: Any, max_disagreement: Any
) -> dict[str, Any]:
    """Return what JSON can hold of who acted, from where, and of what the simulators learned from."""
    settings = {name: value if isinstance(value, (int, float)) else str(value) for name, value in planner.items()}
    return {
        "synthetic": True,
        "policy": policy_name(policy),
        "planner": settings,
        "starts": starts if isinstance(starts, str) else "given",
        "max_disagreement": None if max_disagreement is None else np.asarray(max_disagreement).tolist(),
        "simulator": {key: ensemble.provenance.get(key) for key in ("data_digest", "data", "seed")},
    }


Actor = Callable[[Simulator, FloatArray, Any, bool], tuple[Any, Any]]
"""(simulator, observations (B, D), the policy's state, whether episodes begin here) -> (actions, state)."""


def _actor(policy: Any, ensemble: LearnedDynamics, rng: np.random.Generator, planner: dict[str, Any]) -> Actor:
    if isinstance(policy, str) and policy not in POLICIES:
        raise InvalidArgumentError(f"policy={policy!r} must be one of {', '.join(POLICIES)}, an object or a function")
    if planner and not (isinstance(policy, str) and policy != "random"):
        raise InvalidArgumentError(
            f"{next(iter(planner))}= is a setting of the planner, but policy={policy!r} does not plan"
        )

    def apply_whole_plan(simulator: Simulator, observations: FloatArray, rest: Any, begin: bool) -> tuple[Any, Any]:
        if rest is None or rest.shape[1] == 0:
            rest = MPCAgent(simulator, seed=rng, **planner).plan(observations).best
        return rest[:, 0], rest[:, 1:]

    def apply_first_action(simulator: Simulator, observations: FloatArray, plan: Any, begin: bool) -> tuple[Any, Any]:
        return MPCAgent(simulator, seed=rng, **planner).predict(observations, plan)

    if policy == "value_iteration":
        return _greedy(ensemble, planner)
    if isinstance(policy, str) and policy != "random":
        return apply_whole_plan if policy == "plan" else apply_first_action
    other = as_policy(policy, ensemble.task, int(rng.integers(2**31)))

    def ask(simulator: Simulator, observations: FloatArray, state: Any, begin: bool) -> tuple[Any, Any]:
        own = observations.copy()  # the policy may scale them in place
        return asked(other, own, state, np.full(len(observations), begin))

    return ask


def _greedy(ensemble: LearnedDynamics, settings: dict[str, Any]) -> Actor:
    """Return the actor that solves each agent's simulator when it first meets it."""
    solved: dict[int, ValueIterationAgent] = {}

    def act(simulator: Simulator, observations: FloatArray, state: Any, begin: bool) -> tuple[Any, Any]:
        agents = np.broadcast_to(simulator.agents, len(observations))
        actions = np.empty(len(observations), np.int64)
        for agent in map(AgentIndex, np.unique(agents)):
            if agent not in solved:
                own = ensemble.simulator(agent, aggregate=simulator.aggregate, device=str(simulator.device))
                solved[agent] = ValueIterationAgent(own, **settings)
            actions[agents == agent] = solved[agent].predict(observations[agents == agent])[0]
        return actions, None

    return act


class _Run:
    """All episodes, stepped together until each is over."""

    def __init__(
        self,
        ensemble: LearnedDynamics,
        agents: IntArray,
        aggregate: str,
        device: str,
        bound: FloatArray | None,
        noise: np.random.Generator,
    ) -> None:
        self._ensemble, self._agents, self._bound = ensemble, agents, bound
        self._aggregate, self._device = aggregate, device
        self._noise = noise
        """Seeds every simulator that draws next states."""
        self.num_cut = 0
        """Episodes that were cut because the simulator diverges, or its members disagree."""

    def record(
        self, observations: FloatArray, act: Actor, limit: int, rng: np.random.Generator, progress: bool
    ) -> dict[str, np.ndarray]:
        """Return the columns of `Trajectories`, with the episodes' numbers in "agents"; ``rng`` draws learned ends."""
        running, state = np.arange(len(self._agents)), None
        simulator = self._simulator(running)
        records: list[dict[str, np.ndarray]] = []
        with ProgressBar("generate", limit, progress) as bar, numpy_in_one_thread():
            for step in range(1, limit + 1):
                actions, state = act(simulator, observations, state, step == 1)
                actions = simulator.task.executed(actions, len(running))
                following, believed = self._step(simulator, observations, actions)
                terminated = np.asarray(ended(simulator.task, following, rng), bool)
                taken = Step(running, np.ones(len(running), bool), observations, actions, following, terminated)
                columns = taken.record(simulator.task, at_limit=step == limit)
                records.append({name: column[believed] for name, column in columns.items()})
                if not believed.all() and len(records) > 1:
                    _cut(records[-2], running[~believed])
                self.num_cut += int((~believed).sum())
                going = np.flatnonzero(believed & ~terminated)
                bar.advance(f"{len(going)} episodes go on")
                if len(going) == 0:
                    break
                observations = following
                if len(going) < len(running):
                    running, observations = running[going], following[going]
                    simulator, state = self._simulator(running), rows_of_state(state, going)
        return in_episode_order(records)

    def _simulator(self, running: IntArray) -> Simulator:
        agents = [AgentIndex(agent) for agent in self._agents[running]]
        one = len(set(agents)) == 1  # its folded network then serves all rows
        simulator = self._ensemble.simulator(
            agents=agents[:1] if one else agents, aggregate=self._aggregate, device=self._device
        )
        simulator.reseed(self._noise)
        return simulator

    def _step(self, simulator: Simulator, observations: FloatArray, actions: Any) -> tuple[FloatArray, np.ndarray]:
        """Return the next observations (B, D) within the space, and which of them are believed (B,)."""
        prediction = simulator.step(observations, actions)
        following, space = prediction.next_observations, simulator.task.observation_space
        believed = np.asarray(np.isfinite(following).all(axis=1))
        if self._bound is not None:
            with np.errstate(invalid="ignore"):
                believed &= (prediction.disagreement <= self._bound).all(axis=1)  # not NaN either
        following = np.where(believed[:, None], following, observations)
        return np.clip(following, space.low, space.high).astype(np.float32), believed


def _cut(record: dict[str, np.ndarray], episodes: IntArray) -> None:
    """Mark the last recorded step of some episodes as truncated."""
    record["truncated"][np.isin(record["agents"], episodes)] = True


def _first_states(
    ensemble: LearnedDynamics, starts: str | FloatArray, shape: tuple[int, int], rng: np.random.Generator
) -> FloatArray:
    """Return (E, D) float32, agent after agent."""
    task, count = ensemble.task, shape[0] * shape[1]
    if not isinstance(starts, str):
        return _given_states(task, starts, shape)
    if starts not in STARTS:
        raise InvalidArgumentError(f"starts={starts!r} must be one of {', '.join(STARTS)}, or an array of states")
    if starts == "log":
        known = ensemble.initial_observations
        return np.asarray(known[rng.integers(len(known), size=count)], np.float32)
    if starts == "spread":
        return np.tile(_spread(np.asarray(ensemble.initial_observations, np.float32), shape[1]), (shape[0], 1))
    return task.draw_initial_observations(rng, count).astype(np.float32)


def _given_states(task: Task, starts: Any, shape: tuple[int, int]) -> FloatArray:
    """Return first states (E, D) float32 that a user gave for all episodes, for each of an agent's, or for each."""
    size = task.observation_size
    try:
        given = np.broadcast_to(np.asarray(starts, np.float32), (*shape, size))
    except (TypeError, ValueError) as error:
        raise InvalidStateError(
            f"starts={reprlib.repr(starts)} must be numbers of shape ({size},), ({shape[1]}, {size}) or "
            f"{(*shape, size)}"
        ) from error
    return task.check_states(given.reshape(-1, size), "E").astype(np.float32)


def _spread(states: FloatArray, count: int) -> FloatArray:
    """Return (count, D) of states (n, D), each as far as can be from those before (Gonzalez, 1985), in their own scale.

    The first is the one farthest from their mean. Where there are fewer than asked for, they come again.
    """
    scale = states.std(axis=0)
    points = (states - states.mean(axis=0)) / np.where(scale > 0, scale, 1)
    chosen = [int(np.square(points).sum(axis=1).argmax())]
    distances = np.full(len(points), np.inf)
    while len(chosen) < min(count, len(points)):
        distances = np.minimum(distances, np.square(points - points[chosen[-1]]).sum(axis=1))
        chosen.append(int(distances.argmax()))
    return states[np.resize(chosen, count)]


def _agents_there(present: IntArray, labels: Sequence[str], max_disagreement: Any) -> IntArray:
    """Return the places (n,) of the agents of whom there are steps (T,); warns of others, raises if there is none."""
    there = np.unique(present)
    why = (
        "already the first one diverges, or the members disagree on it by more than "
        f"max_disagreement={max_disagreement}: allow more, or give other starts"
    )
    if len(there) == 0:
        raise PerSimError(f"no agent has a step to record: {why}")
    missing = np.setdiff1d(np.arange(len(labels)), there)
    if len(missing):
        warn_user(
            f"agent {labels[missing[0]]!r} is left out ({len(missing)} of {len(labels)} agents), as it has no step to "
            f"record: {why}"
        )
    return there
