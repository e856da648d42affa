"""`MPCAgent`: model-predictive control with `predict`, as Stable-Baselines3 and d3rlpy evaluators expect it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from persim_gym.arguments import truth_values, whole_number
from persim_gym.devices import memory_for
from persim_gym.errors import EpisodeOverError, InvalidArgumentError, InvalidStateError
from persim_gym.planning.cem import cross_entropy_method
from persim_gym.planning.icem import improved_cross_entropy_method
from persim_gym.planning.models import model_and_task
from persim_gym.planning.mppi import path_integral_control
from persim_gym.planning.random_shooting import random_shooting
from persim_gym.planning.search import ContinuousSearch, DiscreteSearch, Plan, Search
from persim_gym.planning.settings import check_settings
from persim_gym.rollouts import PROPAGATIONS, simulated_returns, true_returns
from persim_gym.simulators.simulator import Simulator
from persim_gym.tasks import PlanningObjective, Task
from persim_gym.types import BoolArray, ReturnFn

_DISCRETE = {"random_shooting": random_shooting}
_CONTINUOUS = {
    "cem": cross_entropy_method,
    "icem": improved_cross_entropy_method,
    "mppi": path_integral_control,
}
PLANNERS = (*_DISCRETE, *_CONTINUOUS)
_DEFAULT_HORIZON = {"random_shooting": 50, "cem": 30, "icem": 30, "mppi": 30}


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
            seed: of the candidates.
            **settings: more of the planner's own: num_candidates, num_elites, …

        Raises:
            InvalidArgumentError: nothing that can be planned in, a planner that does not plan the task's actions, a
                setting that it does not have, or one out of its range.

        """
        self._model, self.task = model_and_task(model, task)
        self.horizon, self._plan = _bind_planner(self.task, planner, horizon, settings)
        self._propagation = propagation or ("per_member" if self.task.discrete else "mean_state")
        if self._propagation not in PROPAGATIONS:
            raise InvalidArgumentError(f"propagation={propagation!r} must be one of {', '.join(PROPAGATIONS)}")
        self._objective = objective or self.task.objective
        self._rng = np.random.default_rng(seed)
        self._best_only = self._plan.func is random_shooting
        self._remembers = self._plan.func is improved_cross_entropy_method  # its state has several sequences
        self._max_return = self._objective.largest_return(self.horizon)

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
            running: (E,) whether an episode still goes on, all if not given; random shooting wastes no search on the
                others, whose actions mean nothing. The plans of those that go on are the same.

        Returns:
            actions (E,) or (E, A), without the first axis for a single observation, and what the next call starts from:
            the plans (E, H) or (E, H, A); with "icem" (E, n, H, A).

        """
        single = np.ndim(observation) == 1
        plan = self.plan(np.atleast_2d(observation), state, episode_start, running)
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
            NonFiniteReturnError: all candidates of an environment diverge.

        """
        observations = self.task.check_observations(observations, "E")
        count, tail = len(observations), self.task.action_shape
        going_on = observations if running is None else observations[truth_values("running", running, count)]
        self.task.check_observations(going_on, "E", finite=True)
        begun = truth_values("episode_start", False if episode_start is None else episode_start, count)
        if state is None:
            warm, previous = np.zeros(count, bool), np.zeros((count, self.horizon, *tail))
        else:
            warm, previous = ~begun, np.asarray(state)
            remembered = previous.shape[:1] + previous.shape[2:] if self._remembers and previous.ndim == 4 else None
            if (count, self.horizon, *tail) not in (previous.shape, remembered):
                raise InvalidArgumentError(
                    f"state has shape {previous.shape}, expected {(count, self.horizon, *tail)}: "
                    "pass what predict returned for the same environments"
                )
        with memory_for(f"lower num_candidates, or plan for fewer than {count} environments at once"):
            return self._plan(self._search(observations, previous, warm, running))

    def _search(self, observations: np.ndarray, previous: np.ndarray, warm: BoolArray, running: Any) -> Search:
        given = self._returns(observations), self._rng, previous, warm
        if self.task.discrete:
            size = self.task.action_size
            return DiscreteSearch(*given, num_actions=size, max_return=self._max_return, running=running)
        low, high = self.task.action_bounds
        return ContinuousSearch(*given, low=low, high=high)

    def _returns(self, observations: np.ndarray) -> ReturnFn:
        if isinstance(self._model, Simulator):
            agents = len(self._model.agents)
            if agents not in (1, len(observations)):
                raise InvalidStateError(f"the simulator has {agents} agents, but {len(observations)} observations came")
            return simulated_returns(
                self._model,
                observations,
                objective=self._objective,
                propagation=self._propagation,
                best_only=self._best_only,
            )
        if self._model.num_copies != len(observations):
            raise InvalidStateError(
                f"the true system has {self._model.num_copies} copies, but {len(observations)} observations came"
            )
        shown = self._model.observe()
        if shown.shape != observations.shape:
            raise EpisodeOverError("the true system is in no state yet: call reset() before you plan in it")
        if not np.allclose(observations, shown, rtol=1e-3, atol=1e-5, equal_nan=True):
            row = int(np.argmax(np.abs(observations - shown).max(axis=1)))
            raise InvalidStateError(
                f"plans in a true system begin in the state it is in, which shows {shown[row].tolist()}, and the "
                f"observation is {observations[row].tolist()}: put the system into that state, or plan in a simulator"
            )
        return true_returns(self._model, self.task, self._objective)


def _bind_planner(
    task: Task, planner: str | None, horizon: int | None, settings: dict[str, Any]
) -> tuple[int, partial[Plan]]:
    """Return the horizon and the planner with all that does not change from step to step."""
    name = planner or ("random_shooting" if task.discrete else "cem")
    if name not in PLANNERS:
        raise InvalidArgumentError(f"planner={planner!r} must be one of {', '.join(PLANNERS)}")
    fitting = _DISCRETE if task.discrete else _CONTINUOUS
    if name not in fitting:
        kind = "discrete" if task.discrete else "continuous"
        raise InvalidArgumentError(
            f"planner={name!r} does not plan {kind} actions, which task {task.name} has; use {', '.join(fitting)}"
        )
    steps = whole_number("horizon", _DEFAULT_HORIZON[name] if horizon is None else horizon)
    defaults = _settings_of(fitting[name])
    unknown = [setting for setting in settings if setting not in defaults]
    if unknown:
        raise InvalidArgumentError(
            f"{unknown[0]}={settings[unknown[0]]!r} is no setting of planner {name!r}; it has {', '.join(defaults)}"
        )
    derived = {setting for setting, value in defaults.items() if value is None and settings.get(setting) is None}
    check_settings(**{setting: value for setting, value in {**defaults, **settings}.items() if setting not in derived})
    return steps, partial(fitting[name], **settings)


def _settings_of(planner: Callable[..., Plan]) -> dict[str, Any]:
    """Return the names of a planner's settings and their defaults, None where the planner derives one from another."""
    parameters = inspect.signature(planner).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
