"""Policies against torch's own networks and Stable-Baselines3's."""

import dataclasses
import sys

import gymnasium
import numpy as np
import pytest
import torch
from support import random_ensemble

import persim_gym
from persim_gym import MLPPolicy, collect, errors, get_task, storage
from persim_gym.collection.policies import RandomPolicy, as_policy


def torch_network(sizes, seed=0):
    """A ReLU network and its layers as `MLPPolicy` takes them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linears = [torch.nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)]
    modules = [module for linear in linears for module in (linear, torch.nn.ReLU())][:-1]
    layers = [(linear.weight.detach().numpy().T, linear.bias.detach().numpy()) for linear in linears]
    return torch.nn.Sequential(*modules), layers


def test_discrete_network():
    """The arg max of torch's outputs; a single observation gives a single action."""
    network, layers = torch_network((2, 16, 16, 3))
    policy = MLPPolicy("MountainCar", layers)
    observations = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    actions, state = policy.predict(observations)
    np.testing.assert_array_equal(actions, network(torch.tensor(observations)).argmax(1))
    assert state is None and policy.predict(observations[3])[0] == actions[3]
    assert len(set(actions)) > 1


def test_continuous_network():
    """Tanh of torch's outputs, scaled to the bounds of the actions."""
    network, layers = torch_network((18, 16, 6))
    observations = np.random.default_rng(0).normal(size=(20, 18)).astype(np.float32)
    actions, _ = MLPPolicy("HalfCheetah", layers).predict(observations)
    bounded = network(torch.tensor(observations)).tanh().detach().numpy()
    np.testing.assert_allclose(actions, bounded, atol=1e-5)
    pumps = dataclasses.replace(
        get_task("HalfCheetah"),
        name="Pumps",
        action_space=gymnasium.spaces.Box(np.float32([0] * 6), np.float32([8] * 6)),
    )
    np.testing.assert_allclose(MLPPolicy(pumps, layers).predict(observations)[0], 4 + 4 * bounded, atol=1e-4)


def test_exploration():
    """With ε = 0.3 a greedy action of 2 is replaced by 0 or 1 with probability 0.2; the seed decides where."""
    always_two = [(np.zeros((2, 3)), np.array([0.0, 0.0, 1.0]))]
    policies = [MLPPolicy("MountainCar", always_two, epsilon=0.3, seed=seed) for seed in (1, 1, 2)]
    actions = [policy.predict(np.zeros((20_000, 2)))[0] for policy in policies]
    for action, share in ((0, 0.1), (1, 0.1), (2, 0.8)):
        assert (actions[0] == action).mean() == pytest.approx(share, abs=0.01)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_random_policy():
    """Uniform over the space, in the shape of the observations."""
    discrete, box = get_task("MountainCar").action_space, gymnasium.spaces.Box(np.float32([-1, 2]), np.float32([1, 6]))
    actions = RandomPolicy(discrete).predict(np.zeros((9000, 2)))[0]
    np.testing.assert_allclose(np.bincount(actions) / 9000, [1 / 3] * 3, atol=0.02)
    actions = RandomPolicy(box).predict(np.zeros((9000, 2)))[0]
    np.testing.assert_allclose(actions.mean(0), [0, 4], atol=0.06)
    np.testing.assert_allclose(actions.std(0), [2 / 12**0.5, 4 / 12**0.5], rtol=0.03)
    assert RandomPolicy(box).predict(np.zeros(2))[0].shape == (2,)
    assert np.shape(RandomPolicy(discrete).predict(np.zeros(2))[0]) == ()


def test_a_saved_policy_network_acts_as_it_did(tmp_path):
    """The same actions and the same facts; a file of another kind is refused."""
    _, layers = torch_network((4, 8, 2))
    policy = MLPPolicy("CartPole", layers, epsilon=0.25, provenance={"algorithm": "DQN"})
    policy.save(tmp_path / "policy")
    loaded = MLPPolicy.load(tmp_path / "policy", seed=0)
    observations = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_array_equal(loaded.predict(observations)[0], policy.predict(observations)[0])
    assert (loaded.task, loaded.epsilon, loaded.provenance) == (policy.task, 0.25, {"algorithm": "DQN"})
    storage.write(tmp_path / "log", "trajectories", {}, {})
    with pytest.raises(errors.FileFormatError, match="policy"):
        MLPPolicy.load(tmp_path / "log")


def test_what_can_be_a_policy():
    """A name, a function, an object with `predict`; nothing else."""
    task = get_task("CartPole")
    assert as_policy("random", task).predict(np.zeros((3, 4)))[0].shape == (3,)
    assert (
        as_policy(lambda observations: [1] * len(observations), task).predict(np.zeros((3, 4)))[0].tolist() == [1] * 3
    )

    class Itself:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros(len(observation), int), None

    itself = Itself()
    assert as_policy(itself, task) is itself
    for wrong in ("greedy", 3):
        with pytest.raises(errors.InvalidArgumentError, match="policy"):
            as_policy(wrong, task)


def test_a_predict_of_other_arguments_is_refused_at_once():
    """It is called with a state and more, by position and by name."""

    class Named:
        def predict(self, obs, **others):
            return np.zeros(len(obs), int)

    class Late:
        def predict(self, obs, state=None, episode_start=None, *, deterministic=True):
            return np.zeros(len(obs), int), state

    for policy in (Named(), Late()):
        with pytest.raises(errors.InvalidArgumentError, match=r"predict\(obs.* of (Named|Late) does not take .* \("):
            persim_gym.generate(random_ensemble("CartPole"), [0], 1, policy, progress=False)


def test_the_seed_decides_what_a_policy_draws():
    """Its own random numbers, and how often it was used before, do not; `act` as a function draws on."""
    network = MLPPolicy("CartPole", torch_network((4, 2))[1], epsilon=0.5)
    for policy in (network, RandomPolicy(get_task("CartPole").action_space)):
        logs = [collect("CartPole", policy=policy, num_agents=20, seed=seed) for seed in (0, 0, 1)]
        assert logs[0].digest == logs[1].digest != logs[2].digest
        first, again = (as_policy(policy, get_task("CartPole"), 3).predict(np.zeros((99, 4)))[0] for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(policy.predict(np.zeros((99, 4)))[0], policy.predict(np.zeros((99, 4)))[0])
    logs = [collect("CartPole", policy=network.act, num_agents=20, seed=0) for _ in range(2)]
    assert logs[0].digest != logs[1].digest


def test_a_network_of_another_task_is_refused():
    """The message says which sizes are wanted."""
    _, layers = torch_network((4, 8, 2))
    with pytest.raises(errors.InvalidArgumentError, match="2 numbers to 3, this one 4 to 2"):
        MLPPolicy("MountainCar", layers)


@pytest.mark.parametrize(("algorithm", "name"), [("DQN", "CartPole"), ("TD3", "HalfCheetah")])
def test_policy_from_stable_baselines3(algorithm, name):
    """The same deterministic actions as the model's own `predict`."""
    sb3 = pytest.importorskip("stable_baselines3")
    from persim_gym.interop.sb3 import policy_from_sb3

    task = get_task(name)

    class Spaces(gymnasium.Env):
        observation_space, action_space = task.observation_space, task.action_space

    model = getattr(sb3, algorithm)(
        "MlpPolicy", Spaces(), policy_kwargs={"net_arch": [16, 8]}, buffer_size=10, seed=0, device="cpu"
    )
    observations = np.random.default_rng(0).normal(size=(40, task.observation_size)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(policy_from_sb3(model, name).predict(observations)[0], expected, atol=1e-5)
    with pytest.raises(errors.InvalidArgumentError, match="PPO"):
        policy_from_sb3(sb3.PPO("MlpPolicy", Spaces(), device="cpu", n_steps=2, batch_size=2), name)
    subclass = type("Mine", (getattr(sb3, algorithm),), {})("MlpPolicy", Spaces(), buffer_size=10, device="cpu")
    assert len(policy_from_sb3(subclass, name).layers) == 3

    class Halved(sb3.common.torch_layers.FlattenExtractor):
        def forward(self, observations):
            return super().forward(observations) / 2

    settings = {"buffer_size": 10, "device": "cpu"}
    other = getattr(sb3, algorithm)(
        "MlpPolicy", Spaces(), policy_kwargs={"features_extractor_class": Halved}, **settings
    )
    with pytest.raises(errors.InvalidArgumentError, match="what a Halved makes of observations"):
        policy_from_sb3(other, name)
    normalized = sb3.common.vec_env.VecNormalize(sb3.common.vec_env.DummyVecEnv([Spaces]))
    other = getattr(sb3, algorithm)("MlpPolicy", normalized, **settings)
    for refused in (policy_from_sb3, as_policy):
        with pytest.raises(errors.InvalidArgumentError, match="VecNormalize had normalized.*normalize_obs"):
            refused(other, task)
    normalized.norm_obs = False
    assert as_policy(other, task) is other and policy_from_sb3(other, name).task is task


def test_a_policy_from_a_library_that_is_missing(monkeypatch):
    from persim_gym.interop.sb3 import policy_from_sb3

    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(errors.MissingExtraError, match=r'pip install "persim-gym\[sb3\]"'):
        policy_from_sb3(None, "CartPole")


def test_states_that_cannot_be_cut_are_refused():
    """Episodes end one by one, and a policy's state must follow."""

    class Recurrent:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.zeros(len(observation), int), (np.zeros((1, len(observation), 8)),) * 2

    with pytest.raises(errors.InvalidArgumentError, match="state, here a tuple, must be None or an array"):
        collect("CartPole", policy=Recurrent(), num_agents=6)


@pytest.mark.parametrize("epsilon", [5, -0.1, float("nan"), "a"])
def test_epsilon_is_a_probability(epsilon):
    with pytest.raises(errors.InvalidArgumentError, match="epsilon=.* must be from 0 to 1"):
        MLPPolicy("MountainCar", [(np.zeros((2, 3)), np.zeros(3))], epsilon=epsilon)


class ActionsAlone:
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.ones(len(observation), int)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda observations: (np.ones(len(observations), int), None), r"returned a pair.*\[0\]"),
        (ActionsAlone(), "predict of ActionsAlone takes .* must return a pair, actions and the state or None"),
        (lambda observations: torch.ones(len(observations), requires_grad=True), "requires grad"),
    ],
)
def test_what_a_policy_returns_is_checked(policy, message):
    ensemble = random_ensemble("CartPole")
    wrong = (errors.InvalidArgumentError, errors.InvalidActionError)
    with pytest.raises(wrong, match=message):
        persim_gym.generate(ensemble, [0, 1], 1, policy, progress=False)
    with pytest.raises(wrong, match=message):
        persim_gym.simulated_policy_returns(ensemble, policy, agents=[0, 1], episodes=1)
    with pytest.raises(wrong, match=message):
        collect("CartPole", policy=policy, num_agents=2, seed=0)
