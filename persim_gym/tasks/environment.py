"""What the true environment and the simulated one have in common."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from persim_gym.errors import EpisodeOverError, InvalidArgumentError, NoRendererError
from persim_gym.tasks.base import Task
from persim_gym.tasks.rules import Point, ended
from persim_gym.tasks.system import Renderer
from persim_gym.types import FloatArray


class TaskEnv(gymnasium.Env[np.ndarray, Any]):
    """A Gymnasium environment whose spaces, reward, termination and pictures are a `Task`'s.

    An episode is truncated after ``time_limit`` steps (`step_limit`). An environment made by id has no limit of its
    own, only that of ``gym.make``'s ``max_episode_steps``, which is the task's unless another one is given.
    ``reset(options={"state": observation})`` starts from a given state. A continuous action is brought within its
    bounds before it acts and is rewarded.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 50}

    def __init__(
        self, task: Task, covariates: FloatArray, render_mode: str | None, time_limit: int | None = None
    ) -> None:
        self.task = task
        self.max_episode_steps = step_limit(task, time_limit)
        self.covariates = covariates
        modes = type(self).metadata["render_modes"] if task.make_renderer is not None else []
        self.metadata = {**type(self).metadata, "render_modes": modes, "render_fps": task.render_fps}
        # Copies: a space has a random state, which environments of one task must not share.
        self.observation_space = copy.deepcopy(task.observation_space)
        self.action_space = copy.deepcopy(task.action_space)
        if render_mode not in (None, *type(self).metadata["render_modes"]):
            raise InvalidArgumentError(f"render_mode={render_mode!r} must be None, 'human' or 'rgb_array'")
        if render_mode is not None and task.make_renderer is None:
            raise NoRendererError(f"task {task.name} has no renderer; make the environment with render_mode=None")
        self.render_mode = render_mode
        self._renderer: Renderer | None = None
        self._observation: FloatArray | None = None
        self._over = True
        self._steps = 0

    @abstractmethod
    def _begin(self, state: FloatArray | None) -> FloatArray:
        """Start an episode in ``state`` (D,), or in a random initial state; return the observation (D,)."""

    @abstractmethod
    def _advance(self, observation: FloatArray, action: Any) -> tuple[FloatArray, bool, dict[str, Any]]:
        """Carry out an action in a state (D,); return the next one (D,), whether to truncate here, and info.

        The action is as `Task.executed_action` returns it.
        """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        state = checked_options(options, ("state",)).get("state")
        self._observation = self._begin(None if state is None else self.task.check_states(state))
        self._over = False
        self._steps = 0
        if self.render_mode == "human":
            self.render()
        return self._observation.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        task, observation = self.task, self._observation
        if self._over or observation is None:
            raise EpisodeOverError(self._how_it_ended())
        action = task.executed_action(action)
        next_observation, truncated, info = self._advance(observation, action)
        point = next_observation.view(Point)
        reward = float(task.reward(observation, action, point))
        terminated = bool(ended(task, point, self.np_random))
        self._steps += 1
        truncated = truncated or self._steps >= self.max_episode_steps
        self._over = terminated or truncated
        self._observation = next_observation
        if self.render_mode == "human":
            self.render()
        return next_observation.astype(np.float32), reward, terminated, truncated, info

    def _how_it_ended(self) -> str:
        if self._observation is None:
            return "no episode has begun: call reset() before step()"
        if self._steps < self.max_episode_steps:
            return "the episode is over: call reset() before step()"
        return (
            f"the episode ended at its time limit of {self.max_episode_steps} steps: call reset() before step(), or "
            "make the environment with a larger time_limit"
        )

    def render(self) -> Any:
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs a render mode: gym.make(..., render_mode='rgb_array')")
            return None
        if self._observation is None:
            raise EpisodeOverError("nothing to draw yet: call reset() before render()")
        if self._renderer is None:
            self._renderer = self.task.make_renderer(self.covariates, self.render_mode)
        return self._renderer.draw(self._observation)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def step_limit(task: Task, *limits: int | None) -> float:
    """Return the least of the limits on an episode's steps that are given, or the task's; −1 is none, infinity.

    Raises:
        InvalidArgumentError: one of them is neither −1 nor a whole number of at least 1.

    """
    given = [limit for limit in limits if limit is not None] or [None]
    return min(math.inf if limit == -1 else task.limit_of(limit) for limit in given)


def checked_options(options: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the options of `reset`, empty if there are none; warn of one that is not known.

    Raises:
        InvalidArgumentError: they are no dictionary.

    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidArgumentError(f"options={options!r} must be a dictionary, such as {{'state': observation}}")
    unknown = [name for name in options if name not in known]
    if unknown:
        gymnasium.logger.warn(f"reset() ignores the option {unknown[0]!r}, which it does not know; it has {known}")
    return options
