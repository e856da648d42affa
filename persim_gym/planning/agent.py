"""`MPCAgent`: model-predictive control with `predict`, as Stable-Baselines3 and d3rlpy evaluators expect it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.devices import memory_for
from persim_gym.errors import InvalidArgumentError, InvalidStateError
from persim_gym.planning.cem import cross_entropy_method
from persim_gym.planning.icem import improved_cross_entropy_method
from persim_gym.planning.mppi import path_integral_control
from persim_gym.planning.random_shooting import random_shooting
from persim_gym.planning.search import Plan
from persim_gym.rollouts import PROPAGATIONS, ReturnFn, simulated_returns, true_returns
from persim_gym.simulator import Simulator
from persim_gym.tasks import PlanningObjective, System, Task

_DISCRETE = {"random_shooting": random_shooting}
_CONTINUOUS = {
    "cem": cross_entropy_method,
    "icem": improved_cross_entropy_method,
    "mppi": path_integral_control,
}
PLANNERS = (*_DISCRETE, *_CONTINUOUS)
_GIVEN = ("horizon", "max_return", "running")
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
            InvalidArgumentError: nothing that can be planned in, a planner that does not plan the task's actions, or a
                setting that it does not have.

        """
        inner = getattr(model, "unwrapped", model)
        self._model: Simulator | System = getattr(inner, "simulator", None) or getattr(inner, "system", None) or inner
        found = task or getattr(inner, "task", None)
        if found is None or not (isinstance(self._model, Simulator) or hasattr(self._model, "branch")):
            raise InvalidArgumentError(
                f"cannot plan in {model!r}: give a simulator, an environment of persim-gym, or a true system and task="
            )
        self.task: Task = found
        self.horizon, self._plan = _bind_planner(self.task, planner, horizon, settings)
        self._propagation = propagation or ("per_member" if self.task.discrete else "mean_state")
        if self._propagation not in PROPAGATIONS:
            raise InvalidArgumentError(f"propagation={propagation!r} must be one of {', '.join(PROPAGATIONS)}")
        self._objective = objective or self.task.planning_objective
        self._rng = np.random.default_rng(seed)
        self._best_only = self._plan.func is random_shooting
        self._remembers = self._plan.func is improved_cross_entropy_method  # its state has several sequences
        bound = self._objective.max_reward
        if self.task.discrete and bound is not None and self._objective.progress is None:
            self._plan = partial(self._plan, max_return=bound * self.horizon)

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
            InvalidStateError: observations of another shape, or not one for each agent or copy of the model.
            InvalidArgumentError: ``state`` is not what `predict` returned for the same environments.
            NonFiniteReturnError: all candidates of an environment diverge.

        """
        observations = self.task.check_observations(observations, "E")
        count, tail = len(observations), self.task.action_shape
        if state is None:
            warm, previous = np.zeros(count, bool), np.zeros((count, self.horizon, *tail))
        else:
            begun = np.zeros(count, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
            warm, previous = ~np.broadcast_to(begun, count), np.asarray(state)
            remembered = previous.shape[:1] + previous.shape[2:] if self._remembers and previous.ndim == 4 else None
            if (count, self.horizon, *tail) not in (previous.shape, remembered):
                raise InvalidArgumentError(
                    f"state has shape {previous.shape}, expected {(count, self.horizon, *tail)}: "
                    "pass what predict returned for the same environments"
                )
        with memory_for(f"lower num_candidates, or plan for fewer than {count} environments at once"):
            found = self._plan if running is None or not self._best_only else partial(self._plan, running=running)
            return found(self._returns(observations), rng=self._rng, previous=previous, warm=warm)

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
        return true_returns(self._model, self._objective)


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
    known = _settings_of(fitting[name])
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise InvalidArgumentError(
            f"{unknown[0]}={settings[unknown[0]]!r} is no setting of planner {name!r}; it has {', '.join(known)}"
        )
    for setting in {"num_candidates", "num_elites", "num_rounds"} & settings.keys():
        whole_number(setting, settings[setting])
    if task.discrete:
        return steps, partial(random_shooting, num_actions=task.action_size, horizon=steps, **settings)
    low, high = task.action_bounds
    return steps, partial(fitting[name], low=low, high=high, horizon=steps, **settings)


def _settings_of(planner: Callable[..., Plan]) -> list[str]:
    """Return the names of a planner's settings: what has a default, and is not given by `MPCAgent` itself."""
    parameters = inspect.signature(planner).parameters.values()
    return [one.name for one in parameters if one.default is not inspect.Parameter.empty and one.name not in _GIVEN]
