"""HalfCheetah: run forward with six joint motors (MuJoCo); agents differ in body mass and joint damping."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium
import numpy as np
from gymnasium import spaces

from persim_gym.extras import optional
from persim_gym.tasks.base import Task
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.objective import PlanningObjective
from persim_gym.tasks.rendering import GymnasiumRenderer
from persim_gym.tasks.rules import never_terminated
from persim_gym.types import FloatArray

TIME_STEP = 0.05
FRAME_SKIP = 5
CONTROL_COST = 0.1
INITIAL_NOISE = 0.001
NUM_POSITIONS = 9


@cache
def _mujoco() -> Any:
    mujoco = optional("mujoco", "mujoco")
    return mujoco


@cache
def _base_model() -> Any:
    """Gymnasium's planar cheetah, compiled.

    Its file fixes the total mass by a compiler attribute that MuJoCo 4 warns about and a later one drops; the call that
    replaces the attribute gives bit-equal constants.
    """
    mujoco = _mujoco()
    file = ElementTree.parse(Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "half_cheetah.xml")
    total_mass = float(file.getroot().find("compiler").attrib.pop("settotalmass"))
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(file.getroot(), encoding="unicode"))
    mujoco.mj_setTotalmass(model, total_mass)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def scaled_model(mass: float, damping: float) -> Any:
    """Return the compiled model with every body mass and every joint damping scaled.

    Only the translational mass changes: inertia, stiffness and all constants derived at compile time stay.
    """
    model = copy.copy(_base_model())
    model.body_mass[:] *= mass
    model.dof_damping[:] *= damping
    return model


class HalfCheetahSystem:
    """B cheetahs, each with its own masses and damping, stepped on all cores (`persim_gym.tasks.System`).

    The observation (18,) is the forward speed over the last step (0 after a reset), then the height, the pitch and the
    six joint angles, then the nine velocities.
    """

    def __init__(self, covariates: FloatArray) -> None:
        models = [scaled_model(mass, damping) for mass, damping in covariates]
        self._bind(models, [_new_data(model) for model in models], np.zeros(len(models)))

    def _bind(self, models: list[Any], states: list[Any], forward_speeds: FloatArray) -> None:
        self._models, self._states = models, states
        self._forward_speeds = forward_speeds
        self.num_copies = len(models)

    def reset(self, rng: np.random.Generator) -> FloatArray:
        mujoco = _mujoco()
        for model, state in zip(self._models, self._states, strict=True):
            mujoco.mj_resetData(model, state)
            state.qpos[:] += INITIAL_NOISE * rng.standard_normal(NUM_POSITIONS)
            state.qvel[:] += INITIAL_NOISE * rng.standard_normal(NUM_POSITIONS)
            mujoco.mj_forward(model, state)
        self._forward_speeds = np.zeros(self.num_copies)
        return self.observe()

    def set_observations(self, observations: FloatArray) -> None:
        mujoco = _mujoco()
        for model, state, observation in zip(self._models, self._states, observations, strict=True):
            mujoco.mj_resetData(model, state)
            state.qpos[1:] = observation[1:NUM_POSITIONS]
            state.qvel[:] = observation[NUM_POSITIONS:]
            mujoco.mj_forward(model, state)
        self._forward_speeds = np.array(observations[:, 0], dtype=np.float64)

    def step(self, actions: Any) -> FloatArray:
        actions = np.asarray(actions, dtype=np.float64).reshape(self.num_copies, -1)
        before = self._forward_positions()
        workers = min(_NUM_WORKERS, self.num_copies // _COPIES_PER_WORKER)
        if workers <= 1:
            self._advance(range(self.num_copies), actions)
        else:
            list(
                _pool().map(lambda part: self._advance(part, actions), np.array_split(range(self.num_copies), workers))
            )
        self._forward_speeds = (self._forward_positions() - before) / TIME_STEP
        return self.observe()

    def branch(self, copies: Any) -> HalfCheetahSystem:
        mujoco = _mujoco()
        branch = object.__new__(HalfCheetahSystem)
        indices = np.asarray(copies)
        models = [self._models[index] for index in indices]
        states = [_new_data(model) for model in models]
        for model, state, index in zip(models, states, indices, strict=True):
            mujoco.mj_copyData(state, model, self._states[index])
        branch._bind(models, states, self._forward_speeds[indices])
        return branch

    def _advance(self, copies: Any, actions: FloatArray) -> None:
        mujoco = _mujoco()
        for index in copies:
            state = self._states[index]
            state.ctrl[:] = actions[index]
            mujoco.mj_step(self._models[index], state, FRAME_SKIP)

    def _forward_positions(self) -> FloatArray:
        return np.array([state.qpos[0] for state in self._states])

    def observe(self) -> FloatArray:
        observations = np.empty((self.num_copies, 2 * NUM_POSITIONS))
        observations[:, 0] = self._forward_speeds
        for row, state in zip(observations, self._states, strict=True):
            row[1:NUM_POSITIONS] = state.qpos[1:]
            row[NUM_POSITIONS:] = state.qvel
        return observations


_NUM_WORKERS = os.cpu_count() or 1
_COPIES_PER_WORKER = 8  # below this, handing work to threads costs more than the physics


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads are enough for both cores: MuJoCo releases the interpreter lock while it steps."""
    return ThreadPoolExecutor(_NUM_WORKERS)


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _new_data(model: Any) -> Any:
    return _mujoco().MjData(model)


def initial_observations(rng: np.random.Generator, count: int) -> FloatArray:
    """Draw (B, 18) initial observations: all but the forward speed are normal with deviation 0.001."""
    observations = INITIAL_NOISE * rng.standard_normal((count, 2 * NUM_POSITIONS))
    observations[:, 0] = 0.0
    return observations


def reward(observations: Any, actions: Any, next_observations: Any) -> Any:
    """Forward speed reached, minus 0.1 times the squared length of the action.

    Everywhere in this package that is the action carried out, within ±1 (`Task.executed`); Gymnasium's environment
    also charges for what is beyond, which moves nothing.
    """
    return next_observations[..., 0] - CONTROL_COST * (actions * actions).sum(-1)


def _renderer(covariates: FloatArray, render_mode: str) -> GymnasiumRenderer:
    def put(env: Any, observation: FloatArray) -> None:
        position = np.concatenate([[0.0], observation[1:NUM_POSITIONS]])
        env.set_state(position, np.asarray(observation[NUM_POSITIONS:], dtype=np.float64))

    with _silent_warnings():
        return GymnasiumRenderer("HalfCheetah-v5", render_mode, put, extra="mujoco")


@contextlib.contextmanager
def _silent_warnings() -> Iterator[None]:
    """MuJoCo 4 would write into the working folder that Gymnasium's model file is old."""
    mujoco = _mujoco()
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


_JOINTS = ("back thigh", "back shin", "back foot", "front thigh", "front shin", "front foot")

TASK = Task(
    name="HalfCheetah",
    observation_space=spaces.Box(-np.inf, np.inf, (2 * NUM_POSITIONS,), np.float32),
    action_space=spaces.Box(-1.0, 1.0, (6,), np.float32),
    reward=reward,
    terminated=never_terminated,
    max_episode_steps=1000,
    observation_names=(
        "forward speed",
        "height",
        "pitch",
        *(f"{joint} angle" for joint in _JOINTS),
        "forward velocity",
        "vertical velocity",
        "pitch rate",
        *(f"{joint} rate" for joint in _JOINTS),
    ),
    planning_objective=PlanningObjective(reward),
    initial_observations=initial_observations,
    covariates=(Covariate("mass", 0.2, 1.8, 1.0), Covariate("damping", 0.2, 1.8, 1.0)),
    test_agents=((0.3, 1.7), (1.7, 0.3), (0.3, 0.3), (1.7, 1.7), (1.0, 1.0)),
    policy_training_agents=((1.4, 0.6), (1.4, 1.4), (0.6, 0.6), (0.6, 1.4)),
    make_system=HalfCheetahSystem,
    make_renderer=_renderer,
    render_fps=20,
)
