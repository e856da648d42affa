"""CartPole: keep a pole upright on a cart; agents differ in push force and in pole length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from persim_gym.tasks.base import Task
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.equations import EquationSystem
from persim_gym.tasks.objective import PlanningObjective
from persim_gym.tasks.rendering import GymnasiumRenderer
from persim_gym.types import FloatArray

GRAVITY, CART_MASS, POLE_MASS = 9.8, 1.0, 0.1
TOTAL_MASS = CART_MASS + POLE_MASS
TIME_STEP = 0.02
MAX_POSITION = 2.4
MAX_ANGLE = 12 * math.pi / 180


def dynamics(observations: FloatArray, actions: Any, covariates: FloatArray) -> FloatArray:
    """Advance (B, 4) states by one explicit Euler step of 0.02 s; covariates are force and half pole length."""
    position, velocity, angle, angular_velocity = observations.T
    force, length = covariates.T
    sine, cosine = np.sin(angle), np.cos(angle)
    push = np.where(actions == 1, force, -force)
    common = (push + POLE_MASS * length * angular_velocity**2 * sine) / TOTAL_MASS
    angular_acceleration = (GRAVITY * sine - cosine * common) / (
        length * (4.0 / 3.0 - POLE_MASS * cosine**2 / TOTAL_MASS)
    )
    acceleration = common - POLE_MASS * length * angular_acceleration * cosine / TOTAL_MASS
    derivative = np.stack([velocity, acceleration, angular_velocity, angular_acceleration], axis=1)
    return observations + TIME_STEP * derivative


def initial_observations(rng: np.random.Generator, count: int) -> FloatArray:
    """Draw (B, 4) initial states, every coordinate uniform in [−0.05, 0.05]."""
    return rng.uniform(-0.05, 0.05, (count, 4))


def _violations(next_observations: Any) -> tuple[Any, Any]:
    return abs(next_observations[..., 0]) > MAX_POSITION, abs(next_observations[..., 2]) > MAX_ANGLE


def terminated(next_observations: Any) -> Any:
    """Whether the cart is off the track or the pole leans by more than 12 degrees."""
    off_track, fallen = _violations(next_observations)
    return off_track | fallen


def reward(observations: Any, actions: Any, next_observations: Any) -> Any:
    """1 on every step, the failing one included."""
    return next_observations[..., 0] * 0.0 + 1.0


def planning_reward(observations: Any, actions: Any, next_observations: Any) -> Any:
    """1 minus the number of violated bounds."""
    off_track, fallen = _violations(next_observations)
    return 1.0 - off_track * 1.0 - fallen * 1.0


def make_system(covariates: FloatArray) -> EquationSystem:
    """Return B copies with covariates (B, K)."""
    return EquationSystem(dynamics, initial_observations, covariates)


def _renderer(covariates: FloatArray, render_mode: str) -> GymnasiumRenderer:
    def put(env: Any, observation: FloatArray) -> None:
        env.length = float(covariates[1])
        env.state = np.asarray(observation, dtype=np.float64)

    return GymnasiumRenderer("CartPole-v1", render_mode, put, extra="render")


_GRID_CORNER = (MAX_POSITION, 3.0, MAX_ANGLE, 3.5)  # a running episode's limits, and speeds it rarely reaches
_BOUNDS = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)

TASK = Task(
    name="CartPole",
    observation_space=spaces.Box(-_BOUNDS, _BOUNDS),
    action_space=spaces.Discrete(2),
    reward=reward,
    terminated=terminated,
    max_episode_steps=200,
    observation_names=("position", "velocity", "angle", "angular velocity"),
    planning_objective=PlanningObjective(planning_reward, terminated, max_reward=1.0, pays_last_step=False),
    initial_observations=initial_observations,
    grid_bounds=(tuple(-limit for limit in _GRID_CORNER), _GRID_CORNER),
    covariates=(Covariate("force", 2.0, 18.0, 10.0), Covariate("length", 0.15, 0.85, 0.5)),
    test_agents=((2.0, 0.5), (10.0, 0.5), (18.0, 0.5), (10.0, 0.85), (10.0, 0.15)),
    policy_training_agents=((6.0, 0.5), (14.0, 0.5), (10.0, 0.5), (10.0, 0.675), (10.0, 0.325)),
    make_system=make_system,
    make_renderer=_renderer,
)
