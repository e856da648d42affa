"""The tasks against Gymnasium's own environments, the specification's constants and hand-worked cases."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from support import random_actions, walk_task

from persim_gym import collect, errors, get_task, register_task, task_names
from persim_gym.tasks import is_built_in
from persim_gym.tasks.rendering import GymnasiumRenderer

TASKS = ("MountainCar", "CartPole", "HalfCheetah")


def gymnasium_cart_pole(state, action, force, length):
    env = CartPoleEnv()
    env.force_mag, env.length, env.polemass_length = force, length, env.masspole * length
    env.reset(seed=0)
    env.state = tuple(state)
    _, reward, terminated, _, _ = env.step(int(action))
    return np.array(env.state), reward, terminated


def gymnasium_mountain_car(state, action, gravity):
    env = MountainCarEnv()
    env.gravity = gravity
    env.reset(seed=0)
    env.state = tuple(state)
    _, _, terminated, _, _ = env.step(int(action))
    return np.array(env.state), (0.0 if terminated else -1.0), terminated


@pytest.mark.parametrize(
    ("name", "peer", "spread"),
    [("CartPole", gymnasium_cart_pole, (2.5, 3, 0.25, 3)), ("MountainCar", gymnasium_mountain_car, (0.6, 0.07))],
)
def test_one_step_equals_gymnasiums(name, peer, spread):
    """Next state, reward and termination of 200 random states, actions and covariates, in one batch."""
    task, rng = get_task(name), np.random.default_rng(0)
    covariates = task.sample_covariates(rng, 200)
    states = rng.uniform(-1, 1, (200, len(spread))) * spread
    if name == "MountainCar":
        states[:, 0] = rng.uniform(-1.2, 0.6, 200)
        states[:20] = rng.uniform([0.4, 0.0], [0.6, 0.07], (20, 2))
        states[20:30] = rng.uniform([-1.2, -0.07], [-1.15, -0.05], (10, 2))
    actions = random_actions(task, rng, 200)
    system = task.system(covariates)
    system.set_observations(states)
    next_states = system.step(actions)
    expected = [peer(*row) for row in zip(states, actions, *covariates.T, strict=True)]
    np.testing.assert_allclose(next_states, [row[0] for row in expected], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(task.reward(states, actions, next_states), [row[1] for row in expected])
    np.testing.assert_array_equal(task.terminated(next_states), [row[2] for row in expected])
    assert 10 < sum(row[2] for row in expected) < 190


def test_the_wall_stops_the_mountain_car():
    """At the left wall the velocity becomes 0."""
    system = get_task("MountainCar").system([[0.0025]])
    system.set_observations(np.array([[-1.19, -0.07]]))
    np.testing.assert_array_equal(system.step(np.array([0])), [[-1.2, 0.0]])


@pytest.mark.parametrize("name", ["MountainCar", "CartPole"])
def test_planning_objective(name):
    """Specification 1.1 and 1.2: what a planner earns and where its rollout ends."""
    objective = get_task(name).objective
    if name == "MountainCar":
        states = np.array([[0.49, 0.07], [0.5, -0.01], [0.5, 0.0]])
        rewards, ends = [-1, 0, 0], None
        np.testing.assert_allclose(objective.progress(states), 0.01 * states[:, 0])
    else:
        states = np.array([[0, 0, 0, 0], [2.41, 0, 0, 0], [-2.41, 0, 0.21, 0], [2.4, 0, -0.2094, 0]])
        rewards, ends = [1, 0, -1, 1], [False, True, True, False]
        assert objective.max_reward == 1.0
    for kind in (np.asarray, torch.tensor):
        batch = kind(states)
        np.testing.assert_array_equal(objective.reward(batch, None, batch), rewards)
        if ends is None:
            assert objective.terminated is None
        else:
            np.testing.assert_array_equal(objective.terminated(batch), ends)


@pytest.mark.parametrize(
    ("name", "low", "high", "default", "agents", "limit"),
    [
        ("MountainCar", [0.0001], [0.0035], [0.0025], [[0.0001], [0.0005], [0.001], [0.0025], [0.0035]], 500),
        ("CartPole", [2, 0.15], [18, 0.85], [10, 0.5], [[2, 0.5], [10, 0.5], [18, 0.5], [10, 0.85], [10, 0.15]], 200),
        ("HalfCheetah", [0.2] * 2, [1.8] * 2, [1, 1], [[0.3, 1.7], [1.7, 0.3], [0.3, 0.3], [1.7, 1.7], [1, 1]], 1000),
    ],
)
def test_agents_of_the_paper(name, low, high, default, agents, limit):
    """Table 4: the first five agents are the test agents, the others are uniform over the range."""
    task = get_task(name)
    drawn = task.sample_covariates(np.random.default_rng(0), 2000)
    np.testing.assert_array_equal(drawn[:5], agents)
    np.testing.assert_array_equal(task.default_covariates, default)
    assert task.max_episode_steps == limit
    position = (drawn[5:] - low) / (np.array(high) - low)
    assert position.min() > 0 and position.max() < 1
    np.testing.assert_allclose(position.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(position.std(0), 12**-0.5, atol=0.02)
    np.testing.assert_array_equal(task.sample_covariates(np.random.default_rng(0), 3), agents[:3])


@pytest.mark.parametrize(
    ("name", "low", "high"), [("MountainCar", [-0.6, 0], [-0.4, 0]), ("CartPole", [-0.05] * 4, [0.05] * 4)]
)
def test_initial_states_are_uniform(name, low, high):
    """Within the range of the specification, with a uniform distribution's mean and deviation."""
    task, span = get_task(name), np.subtract(high, low)
    states = task.system(np.tile(task.default_covariates, (4000, 1))).reset(np.random.default_rng(0))
    assert np.all(states >= low) and np.all(states <= high)
    np.testing.assert_allclose(states.mean(0), np.add(low, high) / 2, atol=0.03 * span.max())
    np.testing.assert_allclose(states.std(0), span / 12**0.5, atol=0.01 * span.max())


@pytest.mark.parametrize("name", TASKS)
def test_batch_equals_single_copies(name):
    """Many copies in one system move as each would alone, and a branch of them leaves the original where it is."""
    if name == "HalfCheetah":
        pytest.importorskip("mujoco")
    task, rng = get_task(name), np.random.default_rng(1)
    covariates = task.sample_covariates(rng, 20)
    system = task.system(covariates)
    starts = system.reset(np.random.default_rng(2)).copy()
    actions = random_actions(task, rng, 6, 20)
    batch = [system.step(row).copy() for row in actions]
    for one in (0, 7, 19):
        alone = task.system(covariates[one])
        alone.set_observations(starts[one : one + 1])
        for row, observations in zip(actions, batch, strict=True):
            np.testing.assert_allclose(alone.step(row[one : one + 1])[0], observations[one], rtol=1e-9, atol=1e-12)
    branch = system.branch(np.array([7, 7, 0]))
    np.testing.assert_array_equal(branch.observe(), system.observe()[[7, 7, 0]])
    branch.step(actions[0, [0, 1, 2]])
    np.testing.assert_array_equal(system.observe(), batch[-1])
    assert not np.array_equal(branch.observe(), system.observe()[[7, 7, 0]])


class TestHalfCheetah:
    """HalfCheetah against Gymnasium's HalfCheetah-v5, whose compiled model is the authors'."""

    @pytest.fixture(autouse=True)
    def mujoco(self, tmp_path, monkeypatch):
        pytest.importorskip("mujoco")
        monkeypatch.chdir(tmp_path)  # where MuJoCo logs that Gymnasium's model file is old

    @staticmethod
    def peer(mass=1.0, damping=1.0):
        from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

        env = HalfCheetahEnv()
        env.model.body_mass[:] *= mass
        env.model.dof_damping[:] *= damping
        env.reset(seed=0)
        return env

    def test_compiled_constants(self):
        """Specification 1.3: body masses, damping and stiffness of the default agent; only two of them scale."""
        from persim_gym.tasks.half_cheetah import scaled_model

        model, heavy = scaled_model(1.0, 1.0), scaled_model(1.7, 0.3)
        masses = [0, 6.2502, 1.5435, 1.5874, 1.0954, 1.4381, 1.2008, 0.8845]
        np.testing.assert_allclose(model.body_mass, masses, atol=5e-5)
        np.testing.assert_allclose(model.dof_damping, [0, 0, 0, 6, 4.5, 3, 4.5, 3, 1.5])
        np.testing.assert_allclose(model.jnt_stiffness[3:], [240, 180, 120, 180, 120, 60])
        np.testing.assert_allclose(heavy.body_mass, 1.7 * model.body_mass)
        np.testing.assert_allclose(heavy.dof_damping, 0.3 * model.dof_damping)
        for constant in ("body_inertia", "jnt_stiffness", "dof_armature", "body_invweight0", "dof_invweight0"):
            np.testing.assert_array_equal(getattr(heavy, constant), getattr(model, constant))

    @pytest.mark.parametrize(("mass", "damping"), [(1.0, 1.0), (0.3, 1.7), (1.7, 0.3)])
    def test_steps_equal_gymnasiums(self, mass, damping):
        """Ten steps of the positions and velocities, the forward speed, and the reward with unclipped actions."""
        task, rng, env = get_task("HalfCheetah"), np.random.default_rng(0), self.peer(mass, damping)
        system = task.system([[mass, damping]])
        observation = system.reset(rng)[0]
        assert observation[0] == 0 and 0 < np.abs(observation[1:]).max() < 0.01
        env.set_state(np.r_[0.0, observation[1:9]], observation[9:])
        for _ in range(10):
            action = rng.uniform(-1.5, 1.5, (1, 6))
            before = system.observe()
            after = system.step(action)
            expected, reward, _, _, info = env.step(action[0])
            np.testing.assert_allclose(after[0, 1:], expected, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(after[0, 0], info["x_velocity"], rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(task.reward(before, action, after), [reward], rtol=1e-9)
            assert not task.terminated(after).any()


def test_a_task_of_ones_own(known_tasks):
    """A registered task is found by name; a second one of the same name is refused; the built-in ones stay."""
    task = walk_task()
    register_task(task)
    register_task(task)
    assert get_task("Walk") is task and get_task(task) is task
    assert task_names() == (*TASKS, "Walk")
    with pytest.raises(errors.InvalidArgumentError, match="Walk"):
        register_task(walk_task())


def test_small_unsigned_actions_are_carried_out_as_others():
    """A system computes action − 1, which is 255 for an unsigned zero of 8 bits."""
    task, logs = get_task("MountainCar"), []
    for kind in (np.int64, np.uint8):
        actions = np.array([0, 1, 2], kind)
        assert task.executed(actions, 3).dtype == np.int64
        logs.append(collect(task, policy=lambda o, kind=kind: np.where(o[:, 1] < 0, 0, 2).astype(kind), num_agents=2))
    np.testing.assert_array_equal(logs[0].next_observations, logs[1].next_observations)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_from_another_process_is_the_same_task(name):
    """Ensembles come back from worker processes by pickle, and are to be saved and registered."""
    task = get_task(name)
    for copied in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task)):
        assert is_built_in(copied)
    with pytest.raises(errors.InvalidArgumentError, match="and yours is another"):
        is_built_in(replace(task, render_fps=7))


def test_drawing_where_mujoco_cannot():
    """Its own error says nothing of what to do."""

    class FatalError(Exception):
        pass

    def fail():
        raise FatalError("an OpenGL platform library has not been loaded")

    renderer = GymnasiumRenderer("CartPole-v1", "rgb_array", lambda env, observation: None, "render")
    renderer._env.render = fail
    with pytest.raises(errors.PerSimError, match="MUJOCO_GL=egl before Python starts"):
        renderer.draw(np.zeros(4))
    renderer.close()
