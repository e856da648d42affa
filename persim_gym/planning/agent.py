"""`MPCAgent`: model-predictive control with `predict`, as Stable-Baselines3 and d3rlpy evaluators expect it."""

from __future__ import annotations

from typing import Any

import numpy as np

from persim_gym.arguments import array_or_object, batch_of, generator_of, one_of, truth_values, whole_number
from persim_gym.errors import EpisodeOverError, InvalidArgumentError, InvalidStateError, NonFiniteReturnError
from persim_gym.memory import explain_out_of_memory
from persim_gym.planning.cem import cross_entropy_method
from persim_gym.planning.icem import improved_cross_entropy_method
from persim_gym.planning.models import checked_objective, model_and_task
from persim_gym.planning.mppi import path_integral_control
from persim_gym.planning.random_shooting import random_shooting
from persim_gym.planning.search import ContinuousSearch, DiscreteSearch, Plan, Search
from persim_gym.planning.settings import Planner
from persim_gym.rollouts import PROPAGATIONS, simulated_returns, true_returns
from persim_gym.simulators.simulator import Simulator
from persim_gym.tasks import PlanningObjective, Task
from persim_gym.types import BoolArray, ReturnFn

PLANNERS = {
    planner.name: planner
    for planner in (
        Planner("random_shooting", random_shooting, discrete=True, horizon=50, best_only=True),
        Planner("cem", cross_entropy_method, discrete=False, horizon=30),
        Planner("icem", improved_cross_entropy_method, discrete=False, horizon=30, remembers_elites=True),
        Planner("mppi", path_integral_control, discrete=False, horizon=30),
    )
}
"""By name; of those for one kind of actions the first is the default."""


class MPCAgent:
    """At every step, search for the best action sequence in a model and execute its first action.

    The model is a simulator, a ``PerSim-…`` environment (its simulator), or a true system: a ``Heterogeneous-…``
    environment, or a `System` with its task. `predict` keeps nothing between calls: the previous plan travels in
    ``state``, as a recurrent policy's does.
    """

    takes_running = True
    """Whether `predict` can be told which episodes are over."""

    def __init__(
        self,
        model: Any,
        *,
        task: Task | None = None,
        planner: str | None = None,
        horizon: int | None = None,
        propagation: str | None = None,
        objective: PlanningObjective | None = None,
        seed: int | np.random.Generator = 0,
        **settings: Any,
    ) -> None:
        """Make the agent.

        Args:
            model: a simulator, an environment of this package, or a true system.
            task: only needed with a bare system.
            planner: "random_shooting" for discrete actions; for continuous ones "cem" (the default and the paper's),
                "icem" or "mppi".
            horizon: H; 50 for random shooting, 30 for the others.
            propagation: "per_member" or "mean_state" (`persim_gym.rollouts.simulated_returns`); as in the paper's
                code, the first for discrete, the second for continuous actions.
            objective: what to maximize; the task's if not given.
            seed: seed of the candidates, or the generator that draws them.
            **settings: settings of the planner's own: num_candidates, num_elites, …

        Raises:
            InvalidArgumentError: nothing that can be planned in, a planner that does not plan the task's actions, a
                setting that it does not have, or one out of its range.

        """
        self._model, self.task = model_and_task(model, task)
        self._planner = _find_planner(self.task, planner)
        self.horizon = whole_number("horizon", self._planner.horizon if horizon is None else horizon)
        self._plan = self._planner.with_settings(settings)
        usual = "per_member" if self.task.discrete else "mean_state"
        self._propagation = one_of("propagation", usual if propagation is None else propagation, PROPAGATIONS)
        self._objective = checked_objective(objective) or self.task.objective
        self._rng = generator_of(seed)
        self._max_return = self._objective.largest_return(self.horizon)

    def __repr__(self) -> str:
        return f"MPCAgent({self._planner.name}, horizon {self.horizon}, in {self._model!r})"

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        running: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Plan for one observation (D,) or for E of them (E, D), together.

        Args:
            observation: current observation of each environment.
            state: what the previous call returned, or None at the start.
            episode_start: (E,) whether an episode begins here; the previous plan is then forgotten.
            deterministic: not used; plans are drawn from the agent's own generator.
            running: (E,) whether an episode still goes on, all if not given; no search is wasted on the others, whose
                actions mean nothing. Random shooting plans the same as ever for those that go on.

        Returns:
            actions (E,) or (E, A), without the first axis for a single observation, and what the next call starts from:
            the plans (E, H) or (E, H, A); with "icem" (E, 1 + n, H, A), the mean
            and n elites.

        """
        observations, single = batch_of(observation)
        plan = self.plan(observations, state, episode_start, running)
        actions = plan.actions[:, 0]
        if not self.task.discrete:
            actions = actions.astype(np.float32)
        return (actions[0] if single else actions), plan.warm_start

    def plan(self, observations: np.ndarray, state: Any = None, episode_start: Any = None, running: Any = None) -> Plan:
        """Return the whole plan for E observations (E, D); arguments as in `predict`.

        Raises:
            InvalidStateError: observations of another shape, or not finite where an episode still goes on, or not one
                for each agent or copy of the model, or other ones than a true system shows.
            EpisodeOverError: the true system has not been reset.
            InvalidArgumentError: ``state`` is not what `predict` returned for the same environments, or
                ``episode_start`` not of them.
            NonFiniteReturnError: all candidates of an environment diverge, or the reward is not a finite number.

        """
        observations = self.task.check_observations(observations, "E")
        count, tail = len(observations), self.task.action_shape
        running = truth_values("running", True if running is None else running, count)
        self.task.check_observations(observations[running], "E", finite=True)
        begun = truth_values("episode_start", False if episode_start is None else episode_start, count)
        if state is None:
            warm, previous = np.zeros(count, bool), np.zeros((count, self.horizon, *tail))
        else:
            warm, previous = ~begun, array_or_object(state)
            # With remembered elites a state has several sequences for each environment.
            several = self._planner.remembers_elites and previous.ndim == 4
            shape = previous.shape[:1] + previous.shape[2:] if several else previous.shape
            if shape != (count, self.horizon, *tail):
                raise InvalidArgumentError(
                    f"state has shape {previous.shape}, expected {(count, self.horizon, *tail)}: "
                    "pass what predict returned for the same environments"
                )
        with explain_out_of_memory(f"lower num_candidates, or plan for fewer than {count} environments at once"):
            try:
                return self._plan(self._search(observations, previous, warm, running))
            except NonFiniteReturnError as error:
                raise NonFiniteReturnError(f"{error}: {self._cause(observations[running])}") from error

    def _cause(self, observations: np.ndarray) -> str:
        """Return why no plan for observations (E, D) has a return, by the reward of staying where they are."""
        diverges = "the simulator diverges from this state; check the state, or shorten the horizon"
        if self._objective.of_agent is not None:  # learned rewards are finite wherever the states are
            return diverges
        if self.task.discrete:
            actions = np.zeros(len(observations), np.int64)
        else:
            actions = np.tile(np.mean(self.task.action_bounds, axis=0), (len(observations), 1))
        with np.errstate(all="ignore"):
            rewards = np.asarray(self._objective.reward(observations, actions, observations), np.float64)
        if np.isfinite(rewards).all():
            return diverges
        return f"the reward of a state within reach is {rewards[~np.isfinite(rewards)][0]}; check the reward function"

    def _search(self, observations: np.ndarray, previous: np.ndarray, warm: BoolArray, running: BoolArray) -> Search:
        given = self._returns(observations, running), self._rng, previous, warm
        if self.task.discrete:
            size = self.task.action_size
            return DiscreteSearch(*given, num_actions=size, max_return=self._max_return, running=running)
        low, high = self.task.action_bounds
        return ContinuousSearch(*given, low=low, high=high, running=running)

    def _returns(self, observations: np.ndarray, running: BoolArray) -> ReturnFn:
        if isinstance(self._model, Simulator):
            agents = len(self._model.agents)
            if agents not in (1, len(observations)):
                raise InvalidStateError(f"the simulator has {agents} agents, but {len(observations)} observations came")
            return simulated_returns(
                self._model,
                observations,
                objective=self._objective,
                propagation=self._propagation,
                best_only=self._planner.best_only,
            )
        if self._model.num_copies != len(observations):
            raise InvalidStateError(
                f"the true system has {self._model.num_copies} copies, but {len(observations)} observations came"
            )
        shown = self._model.observe()
        if shown.shape != observations.shape:
            raise EpisodeOverError("the true system is in no state yet: call reset() before you plan in it")
        close = np.isclose(observations, shown, rtol=1e-3, atol=1e-5, equal_nan=True)
        same = np.asarray(np.all(close, axis=1))
        if not same[running].all():
            row = int(np.argmin(same | ~running))
            raise InvalidStateError(
                f"plans in a true system begin in the state it is in, which shows {shown[row].tolist()}, and the "
                f"observation is {observations[row].tolist()}: put the system into that state, or plan in a simulator"
            )
        return true_returns(self._model, self.task, self._objective)


def _find_planner(task: Task, name: str | None) -> Planner:
    """Return the planner asked for, or the default one of the task's kind of actions."""
    fitting = [planner for planner in PLANNERS.values() if planner.discrete == task.discrete]
    for planner in fitting:
        if name in (None, planner.name):
            return planner
    if name not in [*PLANNERS]:
        raise InvalidArgumentError(f"planner={name!r} must be one of {', '.join(PLANNERS)}")
    kind = "discrete" if task.discrete else "continuous"
    raise InvalidArgumentError(
        f"planner={name!r} does not plan {kind} actions, which task {task.name} has; "
        f"use {', '.join(planner.name for planner in fitting)}"
    )
