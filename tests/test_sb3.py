"""Stable-Baselines3: its algorithms learn in `PerSim-…` ids, its replay buffers take our logs, its policies act."""

import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import persim_gym
from persim_gym import Trajectories, errors
from persim_gym.interop.sb3 import fill_replay_buffer

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv  # noqa: E402


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("names", [("PPO", "DQN"), ("SAC",)], ids=str)
def test_algorithms_learn_by_id_and_act_in_the_true_system(names, vec_env, half_cheetah, tmp_path, registry):
    """Discrete ones in the shipped CartPole, SAC in a cheetah; processes of their own know the id by its package."""
    if names == ("SAC",):
        pytest.importorskip("mujoco")
        half_cheetah.save(tmp_path / "cheetah.persim")
        env_id, model_file = "persim_gym:PerSim-HalfCheetah-v0", {"model": str(tmp_path / "cheetah.persim"), "agent": 1}
        real = gymnasium.make("Heterogeneous-HalfCheetah-v0", mass=1.2, max_episode_steps=5)
    else:
        env_id, model_file = "persim_gym:PerSim-CartPole-agent4-v0", {}
        real = gymnasium.make("Heterogeneous-CartPole-v0", force=10.0, length=0.15)
    settings = {"start_method": "spawn"} if vec_env is SubprocVecEnv else {}
    env = make_vec_env(env_id, 2, seed=0, env_kwargs=model_file, vec_env_cls=vec_env, vec_env_kwargs=settings)
    try:
        for name in names:
            small = {"n_steps": 8, "batch_size": 16, "n_epochs": 1} if name == "PPO" else {"learning_starts": 8}
            model = getattr(sb3, name)("MlpPolicy", env, seed=0, device="cpu", **small).learn(24)
            assert model.num_timesteps >= 24
            with pytest.warns(UserWarning, match="Monitor"):
                mean, _ = evaluate_policy(model, real, n_eval_episodes=2)
            assert np.isfinite(mean)
    finally:
        env.close()


def test_a_replay_buffer_holds_the_log(cart_pole_log):
    """Every row, in order; the ends of episodes, and which were cut."""
    log = Trajectories.concatenate([cart_pole_log.select([0, 1]), _cut(cart_pole_log.select([2]))])
    model = sb3.DQN("MlpPolicy", gymnasium.make("PerSim-CartPole-agent4-v0"), buffer_size=len(log), learning_starts=0)
    fill_replay_buffer(model, log)
    buffer = model.replay_buffer
    assert buffer.full and buffer.pos == 0
    np.testing.assert_array_equal(buffer.observations[:, 0], log.observations)
    np.testing.assert_array_equal(buffer.next_observations[:, 0], log.next_observations)
    np.testing.assert_array_equal(buffer.actions[:, 0, 0], log.actions)
    np.testing.assert_array_equal(buffer.rewards[:, 0], log.rewards)
    np.testing.assert_array_equal(buffer.dones[:, 0], log.terminated | log.truncated)
    np.testing.assert_array_equal(buffer.timeouts[:, 0], log.truncated)
    assert log.truncated.sum() == 1 and log.terminated.sum() == 2
    model.learn(8)


def _cut(log):
    return Trajectories.from_arrays(
        agents=np.zeros(len(log), int), observations=log.observations, actions=log.actions, rewards=log.rewards,
        next_observations=log.next_observations, task=log.task, agent_labels=log.agent_labels,
        covariates=log.covariates, covariate_names=log.covariate_names,
    )  # fmt: skip


class Pushes(gymnasium.Env):
    """Two numbers and a push between 1 and 3, which is not [−1, 1]."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(1, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, True, {}


def pushes_log(rows=5):
    actions = np.linspace(1, 3, rows)[:, None]
    return Trajectories.from_arrays(
        agents=np.zeros(rows, int), observations=np.zeros((rows, 2)), actions=actions,
        next_observations=np.ones((rows, 2)), rewards=np.arange(rows),
    )  # fmt: skip


def test_continuous_actions_are_scaled_as_the_actor_scales_them():
    """And a buffer for two environments takes an odd row twice, to make both parts of the log as long."""
    model = sb3.SAC("MlpPolicy", DummyVecEnv([Pushes, Pushes]), buffer_size=100, learning_starts=0)
    fill_replay_buffer(model, pushes_log())
    assert model.replay_buffer.pos == 3
    np.testing.assert_allclose(model.replay_buffer.actions[:3, :, 0].T, [[-1, -0.5, 0], [0.5, 1, -1]])
    assert model.replay_buffer.rewards[:3].T.tolist() == [[0, 1, 2], [3, 4, 0]]


def test_an_action_of_one_value_is_zero_in_the_buffer():
    """Where the library's own scaling divides by zero."""

    class Still(Pushes):
        action_space = spaces.Box(np.float32([2]), np.float32([2]))

    model = sb3.SAC("MlpPolicy", Still(), buffer_size=100)
    fill_replay_buffer(model, dataclasses.replace(pushes_log(), actions=np.full((5, 1), 2, np.float32)))
    assert model.replay_buffer.pos == 5 and not model.replay_buffer.actions.any()


def episodes_log():
    """Four episodes of 7 rows, rewards 0 … 27: terminated, cut, neither, terminated."""
    ended = np.arange(28) % 7 == 6
    return Trajectories.from_arrays(
        agents=np.zeros(28, int), observations=np.arange(56).reshape(28, 2) / 56, actions=np.full((28, 1), 2.0),
        next_observations=np.arange(56).reshape(28, 2) / 56 + 1, rewards=np.arange(28),
        terminated=ended & np.isin(np.arange(28) // 7, [0, 3]), truncated=ended & (np.arange(28) // 7 == 1),
        episode_starts=[0, 7, 14, 21],
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_n_step_returns_stay_in_their_episode(count):
    """Rewards of up to three rows of the log, and the observation after them; bootstrapped but at terminal states."""
    log = episodes_log()
    model = sb3.SAC("MlpPolicy", DummyVecEnv([Pushes] * count), buffer_size=99, n_steps=3, gamma=0.5, learning_starts=0)
    fill_replay_buffer(model, log)
    buffer, length = model.replay_buffer, -(-28 // count)
    assert buffer.pos == length
    for row in range(28):
        stop = min(row + 3, row // 7 * 7 + 7, row // length * length + length)
        expected = sum(0.5**step * reward for step, reward in enumerate(range(row, stop)))
        found = buffer._get_samples(np.full(50, row % length))  # the columns are drawn
        place = np.flatnonzero((found.observations.numpy() == log.observations[row]).all(axis=1))[0]
        assert found.rewards[place, 0] == expected and found.discounts[place, 0] == 0.5 ** (stop - row)
        np.testing.assert_array_equal(found.next_observations[place], log.next_observations[stop - 1])
        assert found.dones[place, 0] == log.terminated[stop - 1]
    added = (np.zeros((count, 2)), np.zeros((count, 2)), np.zeros((count, 1)), np.full(count, 1e6), np.zeros(count))
    buffer.add(*added, [{}] * count)  # what the environments do next is no part of the log's episodes
    assert buffer._get_samples(np.full(50, length - 1)).rewards.max() < 100


@pytest.mark.parametrize(
    ("kind", "message", "make", "log"),
    [
        (errors.InvalidArgumentError, "PPO has no replay buffer", lambda: sb3.PPO("MlpPolicy", Pushes()), pushes_log()),
        (
            errors.InvalidArgumentError, "5 transitions, the replay buffer room for 4 beside the 0 that it holds",
            lambda: sb3.SAC("MlpPolicy", Pushes(), buffer_size=4), pushes_log(),
        ),
        (
            errors.InvalidArgumentError, "optimize_memory_usage=True has no room",
            lambda: sb3.SAC("MlpPolicy", Pushes(), buffer_size=99, optimize_memory_usage=True,
                            replay_buffer_kwargs={"handle_timeout_termination": False}), pushes_log(),
        ),
        (
            errors.InvalidDataError, r"observations have shape \(4,\), the model's \(2,\)",
            lambda: sb3.SAC("MlpPolicy", Pushes(), buffer_size=999), persim_gym.collect("CartPole", num_agents=1),
        ),
        (
            errors.InvalidDataError, "do not fit Discrete",
            lambda: sb3.DQN("MlpPolicy", gymnasium.make("PerSim-MountainCar-v0"), buffer_size=999), pushes_log(),
        ),
        (
            errors.InvalidDataError, "in row 4 is outside",
            lambda: sb3.SAC("MlpPolicy", Pushes(), buffer_size=999),
            Trajectories.from_arrays(agents=[0] * 5, observations=np.zeros((5, 2)), next_observations=np.ones((5, 2)),
                                     actions=[[1.0]] * 4 + [[3.5]]),
        ),
    ],
)  # fmt: skip
def test_logs_that_a_buffer_does_not_take(kind, message, make, log):
    """Before anything is added."""
    with pytest.raises(kind, match=message):
        fill_replay_buffer(make(), log)


def test_a_second_log_is_not_written_over_the_first():
    model = sb3.SAC("MlpPolicy", Pushes(), buffer_size=9)
    fill_replay_buffer(model, pushes_log())
    with pytest.raises(errors.InvalidArgumentError, match="5 transitions, the replay buffer room for 4 beside the 5"):
        fill_replay_buffer(model, pushes_log())
    assert model.replay_buffer.size() == 5
