"""MountainCar: a weak car climbs out of a valley; agents differ in gravity."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from persim_gym.tasks.base import Task
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.equations import EquationSystem
from persim_gym.tasks.objective import PlanningObjective
from persim_gym.tasks.rendering import GymnasiumRenderer
from persim_gym.types import FloatArray

MIN_POSITION, MAX_POSITION, MAX_SPEED = -1.2, 0.6, 0.07
GOAL_POSITION, GOAL_VELOCITY = 0.5, 0.0
FORCE = 0.001
PROGRESS_WEIGHT = 0.01


def dynamics(observations: FloatArray, actions: Any, covariates: FloatArray) -> FloatArray:
    """Advance (B, 2) states by one step: v += (a − 1)·force − gravity·cos(3x), then x += v, both clipped."""
    position, velocity = observations[:, 0], observations[:, 1]
    velocity = velocity + (actions - 1) * FORCE - covariates[:, 0] * np.cos(3 * position)
    velocity = np.clip(velocity, -MAX_SPEED, MAX_SPEED)
    position = np.clip(position + velocity, MIN_POSITION, MAX_POSITION)
    velocity = np.where((position == MIN_POSITION) & (velocity < 0), 0.0, velocity)
    return np.stack([position, velocity], axis=1)


def initial_observations(rng: np.random.Generator, count: int) -> FloatArray:
    """Draw (B, 2) initial states: position uniform in [−0.6, −0.4], at rest."""
    return np.stack([rng.uniform(-0.6, -0.4, count), np.zeros(count)], axis=1)


def terminated(next_observations: Any) -> Any:
    """Whether the car is at the goal and not rolling back."""
    return (next_observations[..., 0] >= GOAL_POSITION) & (next_observations[..., 1] >= GOAL_VELOCITY)


def reward(observations: Any, actions: Any, next_observations: Any) -> Any:
    """0 on the step that reaches the goal, −1 on every other."""
    return terminated(next_observations) * 1.0 - 1.0


def planning_reward(observations: Any, actions: Any, next_observations: Any) -> Any:
    """0 wherever the car is past the goal line, −1 elsewhere (the planner's reward ignores the velocity)."""
    return (next_observations[..., 0] >= GOAL_POSITION) * 1.0 - 1.0


def progress(observations: Any) -> Any:
    """The position counts a little: without it a plan that does not reach the goal says nothing."""
    return PROGRESS_WEIGHT * observations[..., 0]


def make_system(covariates: FloatArray) -> EquationSystem:
    """Return B copies with covariates (B, K)."""
    return EquationSystem(dynamics, initial_observations, covariates)


def _renderer(covariates: FloatArray, render_mode: str) -> GymnasiumRenderer:
    def put(env: Any, observation: FloatArray) -> None:
        env.state = tuple(float(value) for value in observation)

    return GymnasiumRenderer("MountainCar-v0", render_mode, put, extra="render")


TASK = Task(
    name="MountainCar",
    observation_space=spaces.Box(
        np.array([MIN_POSITION, -MAX_SPEED], np.float32), np.array([MAX_POSITION, MAX_SPEED], np.float32)
    ),
    action_space=spaces.Discrete(3),
    reward=reward,
    terminated=terminated,
    max_episode_steps=500,
    observation_names=("position", "velocity"),
    # The paper's planner knows no end of an episode here: it keeps earning 0 while it stays past the goal line.
    planning_objective=PlanningObjective(planning_reward, terminated=None, progress=progress),
    initial_observations=initial_observations,
    covariates=(Covariate("gravity", 0.0001, 0.0035, 0.0025),),
    test_agents=((0.0001,), (0.0005,), (0.001,), (0.0025,), (0.0035,)),
    policy_training_agents=((0.0003,), (0.00075,), (0.00175,), (0.0025,), (0.003,)),
    make_system=make_system,
    make_renderer=_renderer,
    render_fps=30,
)
