"""Simulators as Gymnasium environments: the checkers, every way of making them, and what a step does."""

import copy
import dataclasses
import itertools
import json
import pickle
import re
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from support import DEEP, SMALL, random_actions, random_ensemble, reference_changes

import persim_gym  # noqa: F401  (registers the ids)
from persim_gym import errors, get_task
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.simulators.networks.kernels import jit
from persim_gym.tasks.heterogeneous import HeterogeneousEnv

OURS = [env_id for env_id in gymnasium.registry if env_id.startswith(("PerSim-", "Heterogeneous-"))]
SAMPLE = [env_id for env_id in OURS if not re.search(r"-agent\d+-", env_id) or re.search(r"-agent(0|7|499)-", env_id)]
SHIPPED = "PerSim-CartPole-agent7-v0"


def needs_mujoco(env_id):
    """The only ids that need it are the true HalfCheetah's."""
    if env_id == "Heterogeneous-HalfCheetah-v0":
        pytest.importorskip("mujoco")


@pytest.mark.parametrize("env_id", SAMPLE)
def test_gymnasiums_check(env_id):
    """No complaint but that speeds are unbounded."""
    needs_mujoco(env_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*Box observation space (minimum|maximum) value is -?infinity", UserWarning)
        check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", SAMPLE)
def test_stable_baselines3s_check(env_id):
    """No complaint at all."""
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    needs_mujoco(env_id)
    sb3.check_env(gymnasium.make(env_id), skip_render_check=True)


def rollout(env, steps=6):
    """Return the first observations of an episode from seed 3."""
    observations = [env.reset(seed=3)[0]]
    observations += [env.step(step % 2)[0] for step in range(steps)]
    return np.array(observations)


def test_all_ways_of_making_one():
    """The agent's id, the module-qualified id, the generic id by index and by label, a spec, a spec from JSON."""
    spec = gymnasium.spec(SHIPPED)
    ways = [
        gymnasium.make(SHIPPED),
        gymnasium.make(f"persim_gym:{SHIPPED}"),
        gymnasium.make("PerSim-CartPole-v0", agent=7),
        gymnasium.make("PerSim-CartPole-v0", agent="7"),
        gymnasium.make(spec),
        gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json())),
        gymnasium.make(gymnasium.make(SHIPPED).spec),
    ]
    first = rollout(ways[0])
    for env in ways:
        assert env.unwrapped.agent == 7 and env.spec.max_episode_steps == 200
        np.testing.assert_array_equal(rollout(env), first)
    assert not np.array_equal(rollout(gymnasium.make("PerSim-CartPole-agent8-v0"))[1:], first[1:])


def test_in_fresh_processes(run_python):
    """By the module-qualified id and by a spec's JSON, neither process having imported the package."""
    rest = """
observations = [env.reset(seed=3)[0].tolist()]
observations += [env.step(step % 2)[0].tolist() for step in range(6)]
print(json.dumps(observations))
"""
    expected = rollout(gymnasium.make(SHIPPED))
    by_id = f"import json, gymnasium\nenv = gymnasium.make('persim_gym:{SHIPPED}')" + rest
    document = gymnasium.make(SHIPPED).spec.to_json()
    by_spec = (
        "import json, gymnasium\nfrom gymnasium.envs.registration import EnvSpec\n"
        f"env = gymnasium.make(EnvSpec.from_json({document!r}))" + rest
    )
    for code in (by_id, by_spec):
        np.testing.assert_array_equal(np.float32(json.loads(run_python(code))), expected)


def test_in_stable_baselines3s_subprocesses(tmp_path, run_python):
    """`SubprocVecEnv` with spawned children, which know the ids only through the module's name."""
    pytest.importorskip("stable_baselines3")
    script = tmp_path / "children.py"
    script.write_text(f"""
import json
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

if __name__ == "__main__":
    spawned = {{"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {{"start_method": "spawn"}}}}
    vec = make_vec_env("persim_gym:{SHIPPED}", n_envs=2, seed=3, **spawned)
    observations = [vec.reset()[0].tolist()] + [vec.step([step % 2] * 2)[0][0].tolist() for step in range(6)]
    vec.close()
    print(json.dumps(observations))
""")
    printed = run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    np.testing.assert_array_equal(np.float32(json.loads(printed)), rollout(gymnasium.make(SHIPPED)))


@pytest.mark.parametrize(("task", "config"), [("CartPole", SMALL), ("MountainCar", DEEP), ("HalfCheetah", DEEP)])
@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_a_step_is_the_models(task, config, aggregate):
    """Observation, disagreement, reward and termination of a what-if step, against the paper's sum and the task."""
    ensemble, rng = random_ensemble(task, config, step_size=0.01), np.random.default_rng(0)
    task = ensemble.task
    env = PersonalizedEnv(ensemble, "agent 1", aggregate=aggregate)
    for _ in range(10):
        state = rng.uniform(-0.05, 0.05, task.observation_size)
        action = random_actions(task, rng, 1)[0]
        observation, info = env.reset(options={"state": state})
        np.testing.assert_array_equal(observation, np.float32(state))
        assert info == {}
        observation, reward, terminated, truncated, info = env.step(action)
        members = state + reference_changes(ensemble, 1, [state], [action])[:, 0]
        expected = members.mean(0) if aggregate == "mean" else np.median(members, 0)
        expected = np.clip(expected, task.observation_space.low, task.observation_space.high)
        np.testing.assert_allclose(observation, expected, atol=1e-5)
        np.testing.assert_allclose(info["disagreement"], members.std(0), atol=1e-5)
        assert reward == pytest.approx(float(task.reward(state, action, expected)), abs=1e-4)
        assert isinstance(reward, float) and observation.dtype == np.float32
        assert (terminated, truncated) == (bool(task.terminated(expected)), False)


def test_simulated_states_stay_in_the_observation_space():
    """A model that runs off every bound is stopped at it; in a vector, too."""
    ensemble = random_ensemble("MountainCar", step_size=50.0)
    env = gymnasium.make("PerSim-CartPole-v0", model=ensemble, agent=0)
    for action in range(3):
        env.reset(seed=0)
        observation = env.step(action)[0]
        assert env.observation_space.contains(observation)
        assert np.isclose(np.abs(observation), np.abs(env.observation_space.high)).any() or observation[0] == -1.2
    vector = PersonalizedVectorEnv(ensemble, 3)
    states, _ = vector.reset(seed=0)
    actions = np.arange(3)
    beyond = ensemble.simulator(0).step(states, actions).next_observations
    space = ensemble.task.observation_space
    np.testing.assert_array_equal(vector.step(actions)[0], np.clip(beyond, space.low, space.high))
    assert (np.abs(beyond) > space.high).any()


@pytest.mark.parametrize("clip_states", [True, False])
@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_next_to_a_bound_one_environment_steps_as_many_do(clip_states, aggregate):
    """Where some members run over the bound and others do not, too: the aggregate is of what the simulator keeps."""
    ensemble = random_ensemble("MountainCar", SMALL.with_changes(clip_states=clip_states), step_size=0.02, seed=1)
    env = PersonalizedEnv(ensemble, 1, aggregate=aggregate)
    vector = PersonalizedVectorEnv(ensemble, 1, 1, aggregate=aggregate)
    low, beyond = ensemble.task.observation_space.low, set()
    for position, action in itertools.product(np.linspace(low[0], low[0] + 0.04, 15), range(3)):
        state = np.array([position, 0.0], np.float32)
        members = state + reference_changes(ensemble, 1, [state], [action])[:, 0]
        beyond.add((members < low).any(axis=1).sum())
        env.reset(options={"state": state})
        vector.reset(options={"state": state})
        observation, *_, info = env.step(action)
        observations, *_, infos = vector.step(np.array([action]))
        np.testing.assert_allclose(observation, observations[0], atol=1e-6)
        np.testing.assert_allclose(info["disagreement"], infos["disagreement"][0], atol=1e-6)
    assert beyond == set(range(ensemble.num_members + 1))


def test_one_member_for_a_whole_episode():
    """`ensemble="member"`: every episode is one member's own, all members occur, and the seed decides which."""
    ensemble = random_ensemble("CartPole", step_size=0.01)
    env = PersonalizedEnv(ensemble, 0, ensemble="member")
    state, actions = np.zeros(4), np.array([0, 1, 1])
    alone = [ensemble.with_members([m]).simulator(0).rollout(state[None], actions[None])[0, 0] for m in range(3)]
    drawn = []
    for seed in range(12):
        env.reset(seed=seed, options={"state": state})
        episode = np.array([env.step(action)[0] for action in actions])
        drawn.append([m for m in range(3) if np.allclose(episode, alone[m], atol=1e-5)])
        env.reset(seed=seed, options={"state": state})
        np.testing.assert_array_equal(env.step(actions[0])[0], episode[0])
    assert all(len(found) == 1 for found in drawn)
    assert {found[0] for found in drawn} == {0, 1, 2}


def test_one_member_for_each_episode_of_a_vector():
    """`ensemble="member"`: every environment follows one member until it is reset."""
    ensemble = random_ensemble("CartPole", step_size=0.01)
    vector = PersonalizedVectorEnv(ensemble, 40, 0, ensemble="member")
    vector.reset(seed=0, options={"state": np.zeros(4)})
    actions = np.array([0, 1, 1])
    episodes = np.stack([vector.step(np.full(40, action))[0] for action in actions], axis=1)
    alone = ensemble.simulator(0).rollout(np.zeros((1, 4)), actions[None])[:, 0]
    follows = np.array([[np.allclose(episode, one, atol=1e-5) for one in alone] for episode in episodes])
    assert (follows.sum(axis=1) == 1).all() and follows.any(axis=0).all()


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_the_member_is_drawn_anew_where_an_episode_begins_by_itself(mode):
    """After the time limit, without a call of `reset`."""
    ensemble, actions = random_ensemble("CartPole", step_size=0.01), np.zeros(40, int)
    vector = PersonalizedVectorEnv(ensemble, 40, 0, ensemble="member", max_episode_steps=2, autoreset_mode=mode)

    def followed(states):
        """Return the next states, and which member leads there from these."""
        members, after = ensemble.simulator(0).step_members(states, actions), vector.step(actions)[0]
        distance = np.abs(members - after).max(axis=2)
        assert distance.min(axis=0).max() < 1e-5
        return after, distance.argmin(axis=0)

    states, first = followed(vector.reset(seed=0)[0])
    for _ in range(1 if mode == "same_step" else 2):  # the last step, and the one that resets
        states = vector.step(actions)[0]
    _, second = followed(states)
    assert 10 < (first != second).sum() < 40


def test_a_task_without_initial_states_starts_in_the_logs():
    """Every start is the first observation of an episode of the log."""
    ensemble = random_ensemble(dataclasses.replace(get_task("CartPole"), initial_observations=None))
    env, vector = PersonalizedEnv(ensemble), PersonalizedVectorEnv(ensemble, num_envs=40)
    starts = {tuple(env.reset(seed=seed)[0]) for seed in range(40)}
    assert starts == {tuple(row) for row in ensemble.initial_observations}
    assert {tuple(row) for row in vector.reset(seed=0)[0]} == starts


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_diverging_model_truncates(broken):
    """Not finite: the episode stops in the last finite state, says so, and goes no further; in a vector too."""
    ensemble = random_ensemble("CartPole")
    change_mean = np.array([0.0, broken, 0.0, 0.0])
    ensemble = dataclasses.replace(
        ensemble, normalizer=dataclasses.replace(ensemble.normalizer, change_mean=change_mean)
    )
    env, vector = PersonalizedEnv(ensemble), PersonalizedVectorEnv(ensemble, num_envs=2)
    state, _ = env.reset(seed=0)
    observation, _, terminated, truncated, info = env.step(0)
    np.testing.assert_array_equal(observation, state)
    assert (terminated, truncated, info["diverged"]) == (False, True, True)
    with pytest.raises(errors.EpisodeOverError):
        env.step(0)
    states, _ = vector.reset(seed=0)
    observations, _, terminated, truncated, _ = vector.step(np.array([0, 1]))
    np.testing.assert_array_equal(observations, states)
    assert not terminated.any() and truncated.all()


@pytest.fixture
def broken_agent():
    """An ensemble of CartPole whose second agent's model diverges at once, wherever it is."""
    ensemble = random_ensemble("CartPole")
    weight = ensemble.parameters["agent.weight"].copy()
    weight[:, 1] = np.nan
    return dataclasses.replace(ensemble, parameters={**ensemble.parameters, "agent.weight": weight})


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_vector_tells_what_diverged_as_gymnasiums_own_does(broken_agent, mode):
    """Where a model diverges and only in the step in which it does; in "same_step" mode in the ended episodes' info."""
    agents, peer_mode = [0, 1, 2], {}
    if mode == "same_step":
        if not hasattr(gymnasium.vector, "AutoresetMode"):
            pytest.skip("Gymnasium 1.0 resets in the next step only")
        peer_mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    vector = PersonalizedVectorEnv(broken_agent, 3, agents, autoreset_mode=mode)
    peer = gymnasium.vector.SyncVectorEnv(
        [partial(PersonalizedEnv, broken_agent, agent) for agent in agents], **peer_mode
    )
    for env in (vector, peer):
        env.reset(seed=0)
    for _ in range(4):
        (*_, truncated, info), (*_, expected, wanted) = (env.step(np.zeros(3, int)) for env in (vector, peer))
        np.testing.assert_array_equal(truncated, expected)
        assert info.keys() == wanted.keys()
        told, peers = (one.get("final_info", one) for one in (info, wanted))
        assert told.keys() == peers.keys() and ("diverged" in told) == truncated[1]
        for name in ("diverged", "_diverged"):
            np.testing.assert_array_equal(told.get(name), peers.get(name))


@pytest.mark.parametrize("how", ["aggregate", "member", "posterior"])
def test_a_vector_tells_the_uncertainty_of_single_environments(cart_pole, how):
    """At every step, and in "same_step" mode of the episodes that ended."""
    agents = [0, 3, 4]
    singles = [PersonalizedEnv(cart_pole, agent, ensemble=how, uncertainty=True) for agent in agents]
    make = partial(PersonalizedVectorEnv, cart_pole, 3, agents, ensemble=how, uncertainty=True, max_episode_steps=1)
    for mode in ("next_step", "same_step"):
        vector = make(autoreset_mode=mode)
        states, _ = vector.reset(seed=0)
        info = vector.step(np.array([0, 1, 0]))[4]
        told = info["final_info"] if mode == "same_step" else info
        assert told["_standard_deviation"].all() and told["standard_deviation"].shape == (3, 4)
        for env, state, action, deviation in zip(singles, states, (0, 1, 0), told["standard_deviation"], strict=True):
            env.reset(options={"state": state})
            np.testing.assert_allclose(deviation, env.step(action)[4]["standard_deviation"], rtol=1e-3)
        assert info["_standard_deviation"].all() == (mode == "next_step")
        assert not vector.step(np.zeros(3, int))[4]["_standard_deviation"].any()


def test_one_member_is_not_combined_with_others(cart_pole):
    """Neither the median nor the mean of one says anything; the mean is what is given by default."""
    for make, how in itertools.product((PersonalizedEnv, PersonalizedVectorEnv), ("member", "posterior")):
        with pytest.raises(
            errors.InvalidArgumentError, match=f"ensemble='{how}' follows one member, and aggregate='me"
        ):
            make(cart_pole, ensemble=how, aggregate="median")
        make(cart_pole, ensemble=how, aggregate="mean")


class TestVector:
    """`PersonalizedVectorEnv` against one environment for each row."""

    def test_follows_single_environments(self, cart_pole):
        """Agents of their own, 40 steps: states, rewards, ends; a new episode after each end, its first step idle."""
        agents, count = [0, 3, "4", 7], 4
        singles = [PersonalizedEnv(cart_pole, agent) for agent in agents]
        vector = PersonalizedVectorEnv(cart_pole, num_envs=count, agent=agents)
        states, _ = vector.reset(seed=0)
        for env, state in zip(singles, states, strict=True):
            env.reset(options={"state": state})
        rng, ended, episodes = np.random.default_rng(0), np.zeros(count, bool), 0
        for _ in range(40):
            actions = rng.integers(2, size=count)
            states, rewards, terminated, truncated, info = vector.step(actions)
            assert not truncated.any()
            for row, env in enumerate(singles):
                if ended[row]:
                    assert (rewards[row], terminated[row]) == (0.0, False)
                    assert np.abs(states[row]).max() <= 0.05
                    env.reset(options={"state": states[row]})
                    continue
                observation, reward, over, _, details = env.step(actions[row])
                np.testing.assert_allclose(states[row], observation, atol=1e-4)
                np.testing.assert_allclose(info["disagreement"][row], details["disagreement"], atol=1e-4)
                assert (rewards[row], terminated[row]) == (reward, over)
            np.testing.assert_array_equal(info["_disagreement"], ~ended)
            ended, episodes = terminated, episodes + terminated.sum()
        assert episodes >= 3

    def test_time_limit(self):
        """The given one, and without it the task's."""
        ensemble = random_ensemble("MountainCar", step_size=1e-4)
        vector = PersonalizedVectorEnv(ensemble, num_envs=2, max_episode_steps=3)
        vector.reset(seed=0)
        ends = [vector.step(np.ones(2, int))[3].tolist() for _ in range(8)]
        assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2] * 2
        assert PersonalizedVectorEnv(ensemble).max_episode_steps == 500

    def test_made_by_gymnasium(self):
        """By id, with the time limit of the id, spaces as of Gymnasium's own vector environments."""
        vector = gymnasium.make_vec(SHIPPED, num_envs=3, vectorization_mode="vector_entry_point")
        peer = gymnasium.make_vec(SHIPPED, num_envs=3, vectorization_mode="sync")
        assert isinstance(vector.unwrapped, PersonalizedVectorEnv) and vector.unwrapped.max_episode_steps == 200
        assert vector.observation_space == peer.observation_space and vector.action_space == peer.action_space
        observations, _ = vector.reset(seed=0)
        assert vector.observation_space.contains(observations)
        observations, rewards, terminated, truncated, _ = vector.step(vector.action_space.sample())
        assert observations.dtype == np.float32 and rewards.dtype == np.float64
        assert terminated.dtype == truncated.dtype == bool
        if hasattr(gymnasium.vector, "AutoresetMode"):
            assert vector.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP

    def test_seed_and_buffers(self, cart_pole):
        """Same seed, same bits; what was returned does not change later."""
        runs = []
        for _ in range(2):
            vector = PersonalizedVectorEnv(cart_pole, num_envs=3, agent=2)
            observations = [vector.reset(seed=5)[0]]
            copy = observations[0].copy()
            observations += [vector.step(np.array([0, 1, 0]))[0] for _ in range(30)]
            np.testing.assert_array_equal(observations[0], copy)
            runs.append(np.array(observations))
        np.testing.assert_array_equal(*runs)

    @pytest.mark.parametrize("mode", ["same_step", "disabled"])
    def test_other_ways_to_go_on(self, cart_pole, mode):
        """At once, with the ended episode's last observation and info; or when and where the user says."""
        peer = PersonalizedVectorEnv(cart_pole, num_envs=4, agent=[0, 3, 4, 7], time_limit=-1)
        vector = PersonalizedVectorEnv(
            cart_pole, num_envs=4, agent=[0, 3, 4, 7], max_episode_steps=15, autoreset_mode=mode
        )
        states, _ = vector.reset(seed=0)
        rng, episodes, lengths = np.random.default_rng(0), 0, np.zeros(4, int)
        for _ in range(50):
            actions = rng.integers(2, size=4)
            peer.reset(options={"state": states})
            expected = list(peer.step(actions))
            lengths += 1
            expected[3] = lengths == 15
            states, rewards, terminated, truncated, info = vector.step(actions)
            ended = terminated | truncated
            for found, wanted in zip((rewards, terminated, truncated), expected[1:4], strict=True):
                np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(states[~ended], expected[0][~ended])
            assert ("final_obs" in info) == (mode == "same_step" and ended.any())
            if not ended.any():
                continue
            episodes += ended.sum()
            lengths[ended] = 0
            if mode == "disabled":
                np.testing.assert_array_equal(states, expected[0])
                with pytest.raises(errors.EpisodeOverError, match=f"environment {ended.argmax()} is over"):
                    vector.step(actions)
                kept = states[~ended]
                states, _ = vector.reset(options={"reset_mask": ended})
                np.testing.assert_array_equal(states[~ended], kept)
            else:
                np.testing.assert_array_equal(np.stack(info["final_obs"][ended]), expected[0][ended])
                assert all(last is None for last in info["final_obs"][~ended])
                np.testing.assert_array_equal(info["_final_obs"], ended)
                np.testing.assert_array_equal(info["_disagreement"], ~ended)
                np.testing.assert_array_equal(info["final_info"]["disagreement"], expected[4]["disagreement"])
            assert np.abs(states[ended]).max() <= 0.05
        assert episodes > 8 and truncated.shape == (4,)

    def test_modes_of_gymnasium(self, cart_pole):
        """By name or, where Gymnasium has it, by its enum; the metadata says which."""
        modes = getattr(gymnasium.vector, "AutoresetMode", None)
        for name in ("next_step", "same_step", "disabled"):
            given = name if modes is None else modes[name.upper()]
            for mode in (name, given):
                vector = gymnasium.make_vec(
                    SHIPPED, num_envs=2, vectorization_mode="vector_entry_point", autoreset_mode=mode
                )
                assert vector.unwrapped.autoreset_mode == name and vector.metadata["autoreset_mode"] == given
        assert PersonalizedVectorEnv.metadata["autoreset_mode"] == (modes.NEXT_STEP if modes else "next_step")

    def test_what_if(self, cart_pole):
        """One state for all, or one for each, or for each that is reset."""
        vector = PersonalizedVectorEnv(cart_pole, num_envs=2)
        one, each = [0.0, 0.1, 0.02, 0.0], [[0.0] * 4, [0.1] * 4]
        np.testing.assert_array_equal(vector.reset(options={"state": one})[0], np.float32([one, one]))
        np.testing.assert_array_equal(vector.reset(options={"state": each})[0], np.float32(each))
        vector.reset(options={"state": one})
        states, _ = vector.reset(options={"state": each, "reset_mask": np.array([False, True])})
        np.testing.assert_array_equal(states, np.float32([one, each[1]]))

    def test_a_seed_for_each(self, cart_pole):
        """As Gymnasium's own vector environments take them."""
        vector = PersonalizedVectorEnv(cart_pole, num_envs=2)
        first = vector.reset(seed=[3, 4])[0]
        np.testing.assert_array_equal(vector.reset(seed=[3, 4])[0], first)
        assert (vector.reset(seed=[3, 5])[0] != first).any()
        for wrong in ([3], [3, -1]):
            with pytest.raises(errors.InvalidArgumentError, match="seed="):
                vector.reset(seed=wrong)

    @pytest.mark.parametrize("mode", ["same_step", "next_step"])
    def test_rewards_that_are_a_part_of_the_states(self, cart_pole, mode):
        """They are the ended episode's, and the next one's start is its own, where the same numbers served for both."""
        task = get_task("CartPole")
        bounds = np.array([4.8, 9, 0.42, 9], np.float64)
        walker = dataclasses.replace(
            task,
            name="Walker",
            observation_space=gymnasium.spaces.Box(-bounds, bounds, dtype=np.float64),
            reward=lambda before, actions, after: after[..., 0],
        )
        vector = PersonalizedVectorEnv(
            dataclasses.replace(cart_pole, task=walker), num_envs=3, autoreset_mode=mode, max_episode_steps=3
        )
        alone = vector.observation_space
        states, _ = vector.reset(seed=1)
        for step in range(1, 9):
            states, rewards, _, truncated, info = vector.step(np.ones(3, np.int64))
            assert states.dtype == alone.dtype and states in alone
            if mode == "same_step" and truncated.any():
                np.testing.assert_array_equal(rewards, [last[0] for last in info["final_obs"]])
            resetting = mode == "next_step" and step % 4 == 0
            assert not resetting or ((rewards == 0).all() and (states[:, 0] != 0).all())


class TestEnd:
    """A step before the first reset or after the end of an episode is an error, until the next reset."""

    def test_before_the_first_reset(self):
        with pytest.raises(errors.EpisodeOverError, match="reset"):
            gymnasium.make(SHIPPED).unwrapped.step(0)
        with pytest.raises(errors.EpisodeOverError, match="reset"):
            gymnasium.make_vec(SHIPPED, 2, vectorization_mode="vector_entry_point").step(np.zeros(2, int))

    @pytest.mark.parametrize("env_id", [SHIPPED, "Heterogeneous-CartPole-v0"])
    def test_after_termination(self, env_id):
        env = gymnasium.make(env_id)
        env.reset(seed=0)
        while not env.step(1)[2]:
            pass
        with pytest.raises(errors.EpisodeOverError, match="reset"):
            env.step(1)
        env.reset(seed=0)
        assert not env.step(1)[2]

    @pytest.mark.parametrize(
        "make", [partial(PersonalizedEnv, "MountainCar", 4), partial(HeterogeneousEnv, "MountainCar")]
    )
    def test_after_the_time_limit(self, make):
        """Of an environment made directly: the task's limit, a longer or a shorter one, or none."""
        for settings, limit in (({}, 500), ({"time_limit": 600}, 600), ({"time_limit": 3}, 3)):
            env = make(**settings)
            for _ in range(2):
                env.reset(seed=0)
                cut = [env.step(1)[3] for _ in range(limit)]
                assert not any(cut[:-1]) and cut[-1]
                with pytest.raises(errors.EpisodeOverError, match=f"limit of {limit} steps: call reset"):
                    env.step(1)
        assert not any(steps_cut(make(time_limit=-1), 600))

    def test_no_such_limit(self, cart_pole):
        for limit in (0, -2):
            with pytest.raises(errors.InvalidArgumentError, match=f"max_episode_steps={limit}"):
                PersonalizedEnv(cart_pole, time_limit=limit)
            with pytest.raises(errors.InvalidArgumentError, match=f"max_episode_steps={limit}"):
                PersonalizedVectorEnv(cart_pole, max_episode_steps=limit)


LIMITS = [
    ({}, 500),
    ({"max_episode_steps": 600}, 600),
    ({"max_episode_steps": 3}, 3),
    ({"max_episode_steps": -1}, None),
    ({"time_limit": 4}, 4),
    ({"time_limit": 4, "max_episode_steps": 3}, 3),
]
"""What an id of MountainCar is made with, and after how many steps an episode is truncated then."""


def steps_cut(env, count):
    """Return where (count,) an episode, which goes on however often it is cut off, is truncated."""
    env.reset(seed=0)
    return [bool(np.all(env.step(np.ones(env.action_space.shape, int))[3])) for _ in range(count)]


@pytest.mark.parametrize(("settings", "limit"), LIMITS)
class TestLimitOfAnId:
    """Gymnasium's `max_episode_steps` is the only one, longer or shorter than the task's, but for a `time_limit`."""

    @pytest.mark.parametrize("env_id", ["PerSim-MountainCar-agent4-v0", "Heterogeneous-MountainCar-v0"])
    def test_made(self, env_id, settings, limit):
        cut = steps_cut(gymnasium.make(env_id, **settings), limit or 601)
        assert not any(cut[:-1]) and cut[-1] == (limit is not None)

    @pytest.mark.parametrize("mode", [None, "vector_entry_point", "sync"])
    def test_made_as_a_vector(self, mode, settings, limit):
        vector = gymnasium.make_vec("PerSim-MountainCar-agent4-v0", 2, vectorization_mode=mode, **settings)
        cut = steps_cut(vector, limit or 601)
        assert not any(cut[:-1]) and cut[-1] == (limit is not None)

    def test_made_by_stable_baselines3(self, settings, limit):
        make_vec_env = pytest.importorskip("stable_baselines3.common.env_util").make_vec_env
        env = make_vec_env("PerSim-MountainCar-agent4-v0", 1, seed=0, env_kwargs=dict(settings))
        env.reset()
        cut = [env.step([1])[3][0]["TimeLimit.truncated"] for _ in range(limit or 601)]
        assert not any(cut[:-1]) and cut[-1] == (limit is not None)


def test_pictures_show_the_simulated_state():
    """The same picture as of the true system in the same state."""
    pytest.importorskip("pygame")
    state = np.array([0.5, 0, 0.1, 0])
    frames = []
    for env_id in (SHIPPED, "Heterogeneous-CartPole-v0"):
        env = gymnasium.make(env_id, render_mode="rgb_array")
        length = env.unwrapped.covariates[1]
        if env_id != SHIPPED:
            env = gymnasium.make(env_id, render_mode="rgb_array", length=frames[0][1])
        env.reset(options={"state": state})
        frames.append((np.array(env.render()), length))
        env.close()
    np.testing.assert_array_equal(frames[0][0], frames[1][0])


def test_every_environment_has_random_numbers_of_its_own():
    """Sampling an action in one does not move on another's."""
    ensemble = random_ensemble("CartPole")
    one, other = PersonalizedEnv(ensemble), PersonalizedEnv(ensemble)
    vectors = PersonalizedVectorEnv(ensemble, 2), PersonalizedVectorEnv(ensemble, 2)
    spaces = [one.action_space, other.action_space, *(vector.single_action_space for vector in vectors)]
    assert len({id(space) for space in [*spaces, ensemble.task.action_space]}) == 5
    for space in spaces:
        space.seed(3)
    alone = [spaces[0].sample() for _ in range(20)]
    spaces[0].seed(3)
    assert [(spaces[0].sample(), spaces[1].sample())[0] for _ in range(20)] == alone


def test_a_posterior_vector_environment_simulates_its_agents(cart_pole):
    """Factors drawn from a posterior without spread are the agents' own, whatever the members share."""
    sure = dataclasses.replace(
        cart_pole.posterior, information=cart_pole.posterior.information + 1e12 * np.eye(cart_pole.config.rank)
    )
    factors = cart_pole.agent_factors().astype(np.float64)
    sure = dataclasses.replace(sure, information_vector=np.einsum("mnij,mnj->mni", sure.information, factors))
    ensemble = dataclasses.replace(cart_pole, posterior=sure)
    agents, start = [0, 7, 4], [0.0, 0.0, 0.02, 0.0]
    vector = PersonalizedVectorEnv(ensemble, 3, agent=agents, ensemble="posterior")
    vector.reset(seed=0, options={"state": start})
    found = vector.step(np.array([1, 1, 0]))[0]
    members = cart_pole.simulator(agents=agents).step_members(np.tile(start, (3, 1)), [1, 1, 0])
    distance = np.abs(members - found).max(axis=2).min(axis=0)
    assert (distance < 1e-4).all(), "each row is one of its agent's members"
    vector.reset(options={"state": start, "reset_mask": np.array([False, False, True])})
    again = np.abs(members - vector.step(np.array([1, 1, 0]))[0]).max(axis=2).min(axis=0)
    assert again[2] < 1e-4, "a row that alone is reset stays its agent's"
    vector.reset(seed=1, options={"state": start})
    assert np.isfinite(vector.step(np.array([1, 1, 0]))[0]).all()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["CartPole", "MountainCar", "HalfCheetah"])
def test_shipped_environments_can_be_pickled_and_copied(name, compiled, monkeypatch):
    """As worker processes need it, with numba and without."""
    if not compiled:
        monkeypatch.setattr(jit, "available", lambda: False)
    env = gymnasium.make(f"PerSim-{name}-agent3-v0").unwrapped
    for again in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        first, second = (one.reset(seed=1)[0] for one in (env, again))
        np.testing.assert_array_equal(first, second)
        for _ in range(3):
            action = env.action_space.sample()
            np.testing.assert_array_equal(env.step(action)[0], again.step(action)[0])


def test_options_that_reset_does_not_know():
    env = gymnasium.make(SHIPPED).unwrapped
    vec = PersonalizedVectorEnv(random_ensemble("CartPole"), 2)
    for one in (env, vec):
        with pytest.warns(UserWarning, match="ignores the option 'State'"):
            one.reset(seed=0, options={"State": np.zeros(4)})
        with pytest.raises(errors.InvalidArgumentError, match="options=5 must be a dictionary"):
            one.reset(options=5)


@pytest.mark.parametrize("make", [lambda e: PersonalizedEnv(e, 0), lambda e: PersonalizedVectorEnv(e, 2, 0)])
def test_states_to_begin_in_are_within_the_space(make):
    """What exceeds a bound by rounding is brought back to it; what float32 cannot hold is refused."""
    env = make(random_ensemble("CartPole"))
    bound = env.unwrapped.task.observation_space.high[2]
    observation, _ = env.reset(options={"state": [0, 0, bound * (1 + 1e-7), 0]})
    assert env.observation_space.contains(observation)
    with pytest.raises(errors.InvalidStateError, match="must be finite, got inf as"):
        env.reset(options={"state": [0, 1e39, 0, 0]})
