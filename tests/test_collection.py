"""Collected logs: whose they are, that every row is a true transition, and that they can be made again."""

import dataclasses

import numpy as np
import pytest
from support import walk_task
from test_tasks import gymnasium_cart_pole, gymnasium_mountain_car

import persim_gym
from persim_gym import errors, get_task


def episodes(log):
    """Yield the row numbers of every episode."""
    for start, end in zip(log.episode_starts, log.episode_ends, strict=True):
        yield np.arange(start, end)


@pytest.mark.parametrize(("name", "peer"), [("CartPole", gymnasium_cart_pole), ("MountainCar", gymnasium_mountain_car)])
def test_every_row_is_a_true_transition(name, peer):
    """Next state, reward and termination are Gymnasium's, for each agent's own covariates; rows follow each other."""
    log = persim_gym.collect(name, num_agents=7, seed=1)
    assert log.num_episodes == log.num_agents == 7 and log.task == name
    np.testing.assert_array_equal(log.covariates[:5], get_task(name).test_agents)
    np.testing.assert_array_equal(log.episode_agents, np.arange(7))
    for agent, rows in enumerate(episodes(log)):
        np.testing.assert_array_equal(log.observations[rows[1:]], log.next_observations[rows[:-1]])
        for row in rows[[0, len(rows) // 2, -1]]:
            state, reward, terminated = peer(log.observations[row], log.actions[row], *log.covariates[agent])
            np.testing.assert_allclose(log.next_observations[row], state, rtol=1e-5, atol=1e-6)
            assert (log.rewards[row], log.terminated[row]) == (reward, terminated)
        assert not log.terminated[rows[:-1]].any() and not log.truncated[rows[:-1]].any()
        assert log.truncated[rows[-1]] == (len(rows) == get_task(name).max_episode_steps)
        assert log.terminated[rows[-1]] != log.truncated[rows[-1]]


def test_random_returns_match_the_paper():
    """Table 5, CartPole, random: 22.4 on average over 500 agents, one step more by the reward of the failing step."""
    log = persim_gym.collect("CartPole", num_agents=500, seed=0)
    assert log.episode_returns.mean() == pytest.approx(23.4, abs=1.5)
    np.testing.assert_array_equal(log.episode_returns, log.episode_lengths)


@pytest.mark.usefixtures("global_generators_untouched")
def test_same_seed_same_log():
    """And another seed, another log; no global generator is touched."""
    first, second, third = (persim_gym.collect("CartPole", num_agents=6, seed=seed) for seed in (5, 5, 6))
    assert first.digest == second.digest != third.digest


def test_policies_and_systems_may_use_an_array_again():
    """What is recorded is what was done, though a policy answers in one array and a system steps its own state."""
    buffer = np.zeros(8, np.int64)

    def anew(observations):
        return (observations[:, 2] > 0).astype(np.int64)

    def again(observations):
        buffer[: len(observations)] = anew(observations)
        observations[:] = 0
        return buffer[: len(observations)]

    first, second = (persim_gym.collect("CartPole", policy=policy, num_agents=8, seed=0) for policy in (anew, again))
    assert first.digest == second.digest

    walk = walk_task()
    plain = walk.make_system

    class InPlace:
        """Shows one array, which every step changes."""

        def __init__(self, system):
            self._system, self.num_copies = system, system.num_copies

        def reset(self, rng):
            self._state = self._system.reset(rng)
            return self._state

        def step(self, actions):
            self._state[:] = self._system.step(actions)
            return self._state

        def branch(self, copies):
            other = InPlace(self._system.branch(copies))
            other._state = self._state[copies]
            return other

    logs = [
        persim_gym.collect(dataclasses.replace(walk, make_system=make), policy="random", num_agents=3, seed=0)
        for make in (plain, lambda covariates: InPlace(plain(covariates)))
    ]
    assert logs[0].digest == logs[1].digest and np.ptp(logs[0].observations[:, 0]) > 0


def test_a_policy_sees_the_running_agents_and_acts():
    """A plain function: it gets float32 observations of those that still run, and its actions are the log's."""
    sizes = []

    def policy(observations):
        assert observations.dtype == np.float32
        sizes.append(len(observations))
        return (observations[:, 2] > 0).astype(int)

    log = persim_gym.collect("CartPole", policy=policy, num_agents=8, seed=0)
    np.testing.assert_array_equal(log.actions, log.observations[:, 2] > 0)
    assert sizes == [np.sum(log.episode_lengths > step) for step in range(log.episode_lengths.max())]


def test_a_policys_memory_stays_with_its_agent():
    """A recurrent policy: the state of an agent that has finished goes, the others keep theirs."""

    class Memory:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            assert episode_start.all() == (state is None)
            state = np.arange(len(observation)) if state is None else state
            return state % 2, state

    log = persim_gym.collect("CartPole", policy=Memory(), num_agents=6, seed=0)
    assert len(set(log.episode_lengths)) > 1
    np.testing.assert_array_equal(log.actions, log.agents % 2)


def test_half_cheetah():
    """1000 steps, uniform actions, and the speed of a row agrees with the next one's positions."""
    pytest.importorskip("mujoco")
    log = persim_gym.collect("HalfCheetah", num_agents=2, seed=0)
    np.testing.assert_array_equal(log.episode_lengths, [1000, 1000])
    assert not log.terminated.any() and log.truncated.sum() == 2
    assert np.abs(log.actions).max() <= 1
    np.testing.assert_allclose(log.actions.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(log.actions.std(0), 3**-0.5, atol=0.03)
    rewards = log.next_observations[:, 0] - 0.1 * np.square(log.actions).sum(1)
    np.testing.assert_allclose(log.rewards, rewards, rtol=1e-4, atol=1e-4)


def test_covariates_may_be_given():
    """Agents of one's own choice, in their order."""
    chosen = [[3.0, 0.2], [17.0, 0.8]]
    log = persim_gym.collect("CartPole", covariates=chosen, seed=0)
    np.testing.assert_array_equal(log.covariates, chosen)
    assert log.covariate_names == ("force", "length")


def test_a_task_without_covariates():
    """All its agents are alike."""
    task = get_task("CartPole")
    plain = dataclasses.replace(
        task, name="Plain", covariates=(), test_agents=(), policy_training_agents=(),
        make_system=lambda covariates: task.make_system(np.tile(task.default_covariates, (len(covariates), 1))),
    )  # fmt: skip
    log = persim_gym.collect(plain, num_agents=3, seed=0)
    assert log.num_agents == 3 and log.covariate_names == ()


def test_covariates_say_how_many_agents_there_are():
    covariates = np.tile([10.0, 0.5], (3, 1))
    assert persim_gym.collect("CartPole", covariates=covariates).num_agents == 3
    with pytest.raises(errors.InvalidArgumentError, match="num_agents=4, but covariates are of 3: leave one out"):
        persim_gym.collect("CartPole", covariates=covariates, num_agents=4)
