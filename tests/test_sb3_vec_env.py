"""The vector environment as Stable-Baselines3's: against its own `DummyVecEnv` of single environments, and in PPO."""

import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support import random_ensemble

from persim_gym import Task, Trajectories, errors
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.interop.sb3 import fill_replay_buffer, to_sb3_vec_env

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import VecMonitor  # noqa: E402

LIMIT = 12


@pytest.fixture
def adapter(cart_pole):
    """Four environments, an agent each."""
    return to_sb3_vec_env(
        PersonalizedVectorEnv(
            cart_pole, 4, agent=[0, 3, 4, 7], uncertainty=True, time_limit=LIMIT, autoreset_mode="same_step"
        )
    )


def test_steps_are_those_of_single_environments(adapter, cart_pole):
    """Observations, rewards, ends, time limits, terminal observations, over many episodes of every environment."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    def make(agent):
        return lambda: PersonalizedEnv(cart_pole, agent, uncertainty=True, time_limit=LIMIT)

    dummy = DummyVecEnv([make(agent) for agent in (0, 3, 4, 7)])
    assert adapter.observation_space == dummy.observation_space and adapter.action_space == dummy.action_space
    states, rng = adapter.reset(), np.random.default_rng(0)
    dummy.set_options([{"state": state} for state in states])
    np.testing.assert_array_equal(dummy.reset(), states)
    terminations = cuts = 0
    for _ in range(60):
        actions = rng.integers(2, size=4)
        states, rewards, dones, infos = adapter.step(actions)
        peer_states, peer_rewards, peer_dones, peer_infos = dummy.step(actions)
        np.testing.assert_array_equal(rewards, peer_rewards)
        np.testing.assert_array_equal(dones, peer_dones)
        assert states.dtype == peer_states.dtype and rewards.dtype == peer_rewards.dtype
        np.testing.assert_allclose(states[~dones], peer_states[~dones], atol=1e-4)
        for row, (info, peer) in enumerate(zip(infos, peer_infos, strict=True)):
            assert info.keys() == peer.keys() and ("terminal_observation" in info) == dones[row]
            assert info["TimeLimit.truncated"] == peer["TimeLimit.truncated"]
            for name in ("disagreement", "standard_deviation"):
                np.testing.assert_allclose(info[name], peer[name], atol=1e-4)
            if dones[row]:
                np.testing.assert_allclose(info["terminal_observation"], peer["terminal_observation"], atol=1e-4)
                cuts += info["TimeLimit.truncated"]
                terminations += not info["TimeLimit.truncated"]
                dummy.envs[row].reset(options={"state": states[row]})
    assert cuts > 0 and terminations > 0


def test_a_model_that_diverges_is_told_from_the_time_limit(cart_pole):
    """In the last info of the episode of an agent whose factors are none."""
    weight = cart_pole.parameters["agent.weight"].copy()
    weight[:, 3] = np.nan
    broken = dataclasses.replace(cart_pole, parameters={**cart_pole.parameters, "agent.weight": weight})
    env = to_sb3_vec_env(PersonalizedVectorEnv(broken, 2, [0, 3], time_limit=1, autoreset_mode="same_step"))
    env.reset()
    infos = env.step(np.array([0, 1]))[3]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True]
    assert [info.get("diverged") for info in infos] == [None, True]


def test_seeds_options_and_attributes(adapter):
    """The same seed gives the same start states once; given start states; attributes of all or of some."""
    adapter.seed(3)
    first = adapter.reset()
    assert not np.array_equal(adapter.reset(), first)
    adapter.seed(3)
    np.testing.assert_array_equal(adapter.reset(), first)
    adapter.set_options({"state": np.full(4, 0.01)})
    np.testing.assert_array_equal(adapter.reset(), np.full((4, 4), np.float32(0.01)))
    assert np.abs(adapter.reset()).max() <= 0.05 and not np.array_equal(adapter.reset(), first)
    adapter.set_options([{"state": np.zeros(4)}, {}, {}, {}])
    with pytest.raises(errors.InvalidArgumentError, match="must give every environment a 'state'"):
        adapter.reset()
    assert adapter.get_attr("task")[0].name == "CartPole" and len(adapter.get_attr("task", [1, 2])) == 2
    assert adapter.env_is_wrapped(gymnasium.Wrapper) == [False] * 4
    with pytest.raises(errors.InvalidArgumentError, match="call methods of .env"):
        adapter.env_method("reset")
    with pytest.raises(errors.InvalidArgumentError, match="set them on .env"):
        adapter.set_attr("task", None)


def test_ppo_learns(cart_pole):
    """A few thousand steps in the simulator, monitored: episodes get much longer than a random policy's 20 steps."""
    vector = gymnasium.make_vec(
        "PerSim-CartPole-agent1-v0", num_envs=32, vectorization_mode="vector_entry_point", autoreset_mode="same_step"
    )
    env = VecMonitor(to_sb3_vec_env(vector))
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=512, learning_rate=2e-3, seed=0, device="cpu")
    model.learn(16_384)
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    assert np.mean(lengths) > 60 and max(lengths) <= 200


def speeds(low, high):
    """Two environments of a continuous task with such bounds of its actions."""
    task = Task(
        "Speeds", spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(np.float32(low), np.float32(high)), 20,
        reward=lambda s, a, n: a[..., 0], terminated=lambda n: n[..., 0] > 1e9,
    )  # fmt: skip
    return PersonalizedVectorEnv(random_ensemble(task, num_agents=2), 2, autoreset_mode="same_step")


def test_rescaled_actions_are_those_of_the_task():
    """The reward is the action that was carried out; a replay buffer holds the log's as the actor would give them."""
    env = to_sb3_vec_env(speeds([0, 10], [100, 30]), rescale_actions=True)
    assert env.action_space == spaces.Box(-1, 1, (2,), np.float32)
    env.reset()
    assert env.step(np.float32([[-1, 0], [0.5, 1]]))[1].tolist() == [0, 75]
    np.testing.assert_array_equal(env.unscaled([[-1, 0], [0.5, 1]]), [[0, 20], [75, 30]])
    model = sb3.SAC("MlpPolicy", VecMonitor(env), buffer_size=20)
    log = Trajectories.from_arrays(
        agents=[0, 0], observations=np.zeros((2, 2)), actions=[[0.0, 20.0], [75.0, 30.0]],
        next_observations=np.ones((2, 2)), rewards=[1, 2],
    )  # fmt: skip
    fill_replay_buffer(model, log)
    assert model.replay_buffer.actions[0].tolist() == [[-1, 0], [0.5, 1]]


@pytest.mark.parametrize("bounds", [([0], [100]), ([1], [3]), ([-0.1], [0.1]), ([-1, 0], [1, 30])])
def test_bounds_that_ppo_cannot_reach_are_told(bounds):
    with pytest.warns(RuntimeWarning, match="rescale_actions=True"):
        env = to_sb3_vec_env(speeds(*bounds))
    assert env.unscaled([[3.0]]) == [[3.0]] and env.action_space.low[0] == np.float32(bounds[0][0])


@pytest.mark.parametrize("bounds", [([-1], [1]), ([-2], [2]), ([0], [1])])
def test_bounds_that_ppo_reaches_are_not(bounds):
    to_sb3_vec_env(speeds(*bounds))


def test_what_it_refuses(cart_pole):
    """Other environments and other autoreset modes, saying what to do."""
    with pytest.raises(errors.InvalidArgumentError, match="is not a vector environment of persim-gym"):
        to_sb3_vec_env(PersonalizedEnv(cart_pole))
    with pytest.raises(errors.InvalidArgumentError, match="autoreset_mode='same_step'"):
        to_sb3_vec_env(PersonalizedVectorEnv(cart_pole))
    inner = PersonalizedVectorEnv(cart_pole, autoreset_mode="same_step")
    with pytest.raises(errors.InvalidArgumentError, match="TransformReward would be lost.*give env.unwrapped"):
        to_sb3_vec_env(gymnasium.wrappers.vector.TransformReward(inner, lambda reward: 100 * reward))
    with pytest.raises(errors.InvalidArgumentError, match=r"actions, Discrete\(2\), are discrete.*leave it out"):
        to_sb3_vec_env(inner, rescale_actions=True)
