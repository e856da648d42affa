"""The true systems as Gymnasium environments."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import persim_gym  # noqa: F401  (registers the ids)
from persim_gym import errors


def test_cart_pole_follows_gymnasiums():
    """A whole episode with given force and pole length: observations, rewards of 1, and the step at which it ends."""
    peer = CartPoleEnv()
    peer.force_mag, peer.length, peer.polemass_length = 5.0, 0.2, 0.1 * 0.2
    env = gymnasium.make("Heterogeneous-CartPole-v0", force=5.0, length=0.2)
    observation, _ = env.reset(seed=3)
    peer.reset(seed=0)
    peer.state = tuple(env.unwrapped.system.observe()[0])
    np.testing.assert_array_equal(observation, np.float32(peer.state))
    for step in range(200):
        action = step // 3 % 2
        observation, reward, terminated, truncated, _ = env.step(action)
        expected, _, over, _, _ = peer.step(action)
        np.testing.assert_allclose(observation, expected, rtol=1e-6, atol=1e-7)
        assert (reward, terminated, truncated) == (1.0, over, False)
        if over:
            break
    assert 10 < step < 199


def test_mountain_car_time_limit_and_goal():
    """An idle car is cut off after 500 steps; one set before the goal reaches it, for a reward of 0."""
    env = gymnasium.make("Heterogeneous-MountainCar-v0")
    env.reset(seed=0)
    outcomes = [env.step(1)[1:4] for _ in range(500)]
    assert set(outcomes[:-1]) == {(-1.0, False, False)} and outcomes[-1] == (-1.0, False, True)
    env.reset(options={"state": [0.45, 0.06]})
    assert env.step(2)[1:4] == (0.0, True, False)


def test_half_cheetah_time_limit():
    """It never ends but by its limit of 1000 steps."""
    pytest.importorskip("mujoco")
    env = gymnasium.make("Heterogeneous-HalfCheetah-v0", mass=0.3, damping=1.7)
    env.reset(seed=0)
    outcomes = [env.step(np.zeros(6, np.float32))[2:4] for _ in range(1000)]
    assert set(outcomes[:-1]) == {(False, False)} and outcomes[-1] == (False, True)


def test_covariates_change_the_motion_and_default_to_the_textbook():
    """The same start and action: force 10 is the default, force 2 is another system."""
    results = []
    for covariates in ({}, {"force": 10.0, "length": 0.5}, {"force": 2.0}):
        env = gymnasium.make("Heterogeneous-CartPole-v0", **covariates)
        env.reset(seed=0, options={"state": np.zeros(4)})
        results.append(env.step(1)[0])
    np.testing.assert_array_equal(results[0], results[1])
    # From rest at the origin: x'' = F/1.1 − 0.05·θ''/1.1 with θ'' = −(F/1.1)/(0.5·(4/3 − 0.1/1.1)).
    for force, result in ((10.0, results[0]), (2.0, results[2])):
        angular = -(force / 1.1) / (0.5 * (4 / 3 - 0.1 / 1.1))
        expected = [0, 0.02 * (force / 1.1 - 0.1 * 0.5 * angular / 1.1), 0, 0.02 * angular]
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["MountainCar", "CartPole"])
def test_pictures(name):
    """The frame is an RGB image that shows the state: another state, another picture; the same state, the same."""
    pytest.importorskip("pygame")
    env = gymnasium.make(f"Heterogeneous-{name}-v0", render_mode="rgb_array")
    size = env.observation_space.shape[0]
    frames = []
    for position in (-0.3, -0.8, -0.3):
        env.reset(seed=0, options={"state": np.r_[position, np.zeros(size - 1)]})
        frames.append(np.array(env.render()))
    env.close()
    assert frames[0].ndim == 3 and frames[0].shape[2] == 3 and frames[0].dtype == np.uint8
    assert not np.array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[0], frames[2])


def test_half_cheetah_pictures_without_a_screen(run_python, tmp_path):
    """EGL renders without a display, and nothing is written into the working folder."""
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")
    code = """
import gymnasium, numpy, persim_gym
env = gymnasium.make("Heterogeneous-HalfCheetah-v0", render_mode="rgb_array")
env.reset(seed=0)
low = env.render()
env.reset(options={"state": numpy.r_[0.0, 0.4, numpy.zeros(16)]})
high = env.render()
print(low.shape, low.dtype, (low != high).any())
env.close()
"""
    assert run_python(code, cwd=tmp_path, MUJOCO_GL="egl").splitlines()[-1] == "(480, 480, 3) uint8 True"
    assert list(tmp_path.iterdir()) == []


def test_render_before_reset():
    """There is nothing to draw yet."""
    pytest.importorskip("pygame")
    env = gymnasium.make("Heterogeneous-CartPole-v0", render_mode="rgb_array").unwrapped
    with pytest.raises(errors.EpisodeOverError, match="reset"):
        env.render()
