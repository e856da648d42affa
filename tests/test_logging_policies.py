"""The paper's four data sets: who follows whom, how much is explored, and what is asked for in vain."""

import shutil

import numpy as np
import pytest

from persim_gym import collect, get_task
from persim_gym.collection import logging_policies
from persim_gym.collection.logging_policies import LoggingPolicy, logging_policy, nearest_training_agent
from persim_gym.errors import FileFormatError, PerSimError, UnknownNameError


class Constant:
    """Gives every row the same action."""

    def __init__(self, action):
        self.action = action

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.full(len(observation), self.action), None


def constants(followed, epsilon):
    policies = [Constant(1), Constant(2)]
    return LoggingPolicy(policies, followed, Constant(0), epsilon=epsilon, rng=np.random.default_rng(0))


def test_agents_follow_the_training_agent_with_the_most_similar_covariates():
    task = get_task("CartPole")
    assert nearest_training_agent(task, task.policy_training_agents).tolist() == [0, 1, 2, 3, 4]
    # In raw units force decides alone: (9, 0.675) is nearest to (10, 0.675) only after dividing by the ranges 16, 0.7
    # is still (10, 0.675), whereas (8.5, 0.6) lies 1.5 N from (10, 0.675), 2.5 N from (6, 0.5).
    assert nearest_training_agent(task, [[9.0, 0.675], [2.0, 0.5], [18.0, 0.5], [10.0, 0.15]]).tolist() == [3, 0, 1, 4]
    # Raw distances would choose (14, 0.5) for (13, 0.2), 1.04 away, before (10, 0.325), 3.00 away.
    assert nearest_training_agent(task, [[12.4, 0.2]]).tolist() == [4]


def test_each_row_follows_its_own_policy_when_others_have_finished():
    policy = constants(np.array([0, 1, 0, 1]), epsilon=0.0)
    actions, state = policy.predict(np.zeros((4, 2)))
    assert actions.tolist() == [1, 2, 1, 2]
    actions, state = policy.predict(np.zeros((2, 2)), state[[1, 2]])
    assert actions.tolist() == [2, 1]
    with pytest.raises(PerSimError, match="one row|a row|one for each row"):
        policy.predict(np.zeros((3, 2)), state)


def test_exploration_has_the_named_probability():
    policy = constants(np.zeros(20_000, int), epsilon=0.2)
    actions, _ = policy.predict(np.zeros((20_000, 2)))
    assert (actions == 0).mean() == pytest.approx(0.2, abs=0.01)  # 3.5 standard deviations


@pytest.mark.parametrize(
    ("name", "share"), [("pure", 0.0), ("pure-eps-20", 0.1), ("pure-eps-40", 0.2), ("random", 0.5)]
)
def test_a_named_policy_explores_as_its_name_says(name, share):
    """Half of the uniform actions are those that the trained policy takes itself."""
    agents, seen = np.tile([10.0, 0.5], (8000, 1)), np.tile(np.float32([0, 0, 0.05, 0]), (8000, 1))
    actions = logging_policy(name, "CartPole", agents, seed=0).predict(seen)[0]
    assert (actions != np.median(actions) if share < 0.5 else actions == 0).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("name", logging_policies.LOGGING_POLICIES)
def test_collect_takes_the_name_and_keeps_it(name):
    log = collect("CartPole", policy=name, num_agents=20, seed=3)
    assert log.provenance == {"policy": name, "seed": 3}
    assert log.digest == collect("CartPole", policy=name, num_agents=20, seed=3).digest


def test_better_policies_keep_the_pole_up_longer():
    lengths = [collect("CartPole", policy=name, num_agents=60).episode_lengths.mean() for name in ("random", "pure")]
    assert lengths[0] < 35 and lengths[1] > 3 * lengths[0]  # Table 5 of the paper: 23 and 186


def test_logged_agents_do_as_the_trained_network_says():
    log = collect("CartPole", policy="pure", num_agents=5)
    policy = logging_policies._load(get_task("CartPole"), "logging0", np.random.default_rng(0))
    policy.epsilon = 0.0
    own = log.agents == 0  # force 2 N: nearest is the first policy-training agent, with 6 N
    agreement = (policy.predict(log.observations[own])[0] == log.actions[own]).mean()
    assert agreement > 0.9


def test_the_shipped_test_policies_are_those_of_the_default_agent():
    for name in ("MountainCar", "CartPole"):
        policy = logging_policies.test_policy(name)
        assert policy.task is get_task(name) and policy.epsilon == 0.01
        assert list(policy.provenance["covariates"].values()) == get_task(name).default_covariates.tolist()


def test_half_cheetahs_policies_run():
    """Each of the four that were trained, by the agents nearest to it; even the weakest outruns random actions."""
    pytest.importorskip("mujoco")
    task = get_task("HalfCheetah")
    assert set(logging_policies.nearest_training_agent(task, np.array(task.policy_training_agents))) == {0, 1, 2, 3}
    log = collect("HalfCheetah", policy="pure", num_agents=12, seed=1)
    assert log.episode_returns.mean() > 500 and (np.abs(log.actions) <= 1).all()


def test_names_that_do_not_exist():
    with pytest.raises(UnknownNameError, match="no logging policy 'pur'; there are pure, pure-eps-20"):
        collect("CartPole", policy="pur", num_agents=5)


def test_a_missing_policy_names_those_there_are(tmp_path, monkeypatch):
    shutil.copy(logging_policies.SHIPPED_POLICIES / "CartPole-logging0.safetensors", tmp_path)
    monkeypatch.setattr(logging_policies, "SHIPPED_POLICIES", tmp_path)
    with pytest.raises(PerSimError, match=r"CartPole-logging1 is not among the shipped ones \(CartPole-logging0\)"):
        logging_policy("pure", "CartPole", np.array([[10.0, 0.5]]))


def test_a_policy_of_another_task_is_refused(tmp_path, monkeypatch):
    shutil.copy(
        logging_policies.SHIPPED_POLICIES / "CartPole-test.safetensors", tmp_path / "MountainCar-test.safetensors"
    )
    monkeypatch.setattr(logging_policies, "SHIPPED_POLICIES", tmp_path)
    with pytest.raises(FileFormatError, match="is a policy of task CartPole, not of MountainCar"):
        logging_policies.test_policy("MountainCar")
