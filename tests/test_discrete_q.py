"""The fast gradient steps of BCQ and CQL, held against d3rlpy's own."""

import dataclasses

import numpy as np
import pytest
import torch

import persim_gym
from persim_gym import extras
from persim_gym.baselines import bcq, cql, learned_policy, offline_training
from persim_gym.baselines.discrete_q import DiscreteSteps, follows
from persim_gym.model.factorization import encode
from persim_gym.tasks import get_task

TASK = get_task("CartPole")
FITS = {"BCQ": bcq.fit_bcq, "CQL": cql.fit_cql}


@pytest.fixture(autouse=True)
def needed():
    pytest.importorskip("d3rlpy")


@pytest.fixture(scope="module")
def log():
    """Some poles fall; the time limit ends the other episodes, which are not terminal."""
    log = persim_gym.collect(dataclasses.replace(TASK, max_episode_steps=20), policy="random", num_agents=12, seed=0)
    assert log.truncated.any() and log.terminated.any()
    return log


def config_of(name, **changes):
    configs = extras.d3rlpy().algos
    if name == "BCQ":
        usual = {"share_encoder": False, "beta": 0.01, "learning_rate": 3e-4, "batch_size": 64}
        return configs.DiscreteBCQConfig(**{**usual, **changes})
    usual = {"n_critics": 3, "alpha": 0.7, "learning_rate": 1e-3, "batch_size": 128}
    return configs.DiscreteCQLConfig(**{**usual, **changes})


def built(config):
    with learned_policy.OwnRandomness(1).active():
        algorithm = config.create()
        algorithm.create_impl((4,), 2)
    return algorithm


def networks(algorithm):
    modules = algorithm.impl.modules
    return [*modules.q_funcs, *([modules.imitator] if hasattr(modules, "imitator") else [])]


def flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def far_from_kinks(algorithm, observations):
    """Whether no ReLU of any network is so near its kink (B,) that rounding decides which of two gradients is right."""
    far = torch.ones(len(observations), dtype=torch.bool)
    for network in networks(algorithm):
        outputs = torch.tensor(observations)
        for layer in [module for module in network.modules() if isinstance(module, torch.nn.Linear)][:-1]:
            outputs = layer(outputs)
            far &= (outputs.abs() > 3e-5).all(1)
            outputs = outputs.relu()
    return far.numpy()


def ours(stacked, index):
    return flat(stacked[f"state.{layer}.{part}"][index] for layer in range(3) for part in ("weight", "bias"))


def make_equal(stacked, algorithm):
    """Copy d3rlpy's weights."""
    names = [f"state.{layer}.{part}" for layer in range(3) for part in ("weight", "bias")]
    with torch.no_grad():
        for index, network in enumerate(networks(algorithm)):
            for name, parameter in zip(names, network.parameters(), strict=True):
                stacked[name][index].copy_(parameter.view_as(stacked[name][index]))


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("agents", [[4], range(12)], ids=["rows drawn often", "rows drawn once"])
def test_losses_gradients_and_weights_are_d3rlpys(log, name, agents):
    """Every step from equal weights, through replacements of the target network after steps 1, 5 and 9."""
    seen = np.asarray(log.select(agents).observations, np.float32)
    part = log.select(agents)
    own, fast = (built(config_of(name, target_update_interval=4)) for _ in range(2))
    theirs, steps = offline_training.D3rlpySteps(own, part, TASK), DiscreteSteps(fast, part)
    rng = np.random.default_rng(0)
    for _ in range(10):
        far = np.flatnonzero(far_from_kinks(own, seen))
        assert len(far) > 0.6 * len(seen)
        rows = far[rng.integers(len(far), size=own.config.batch_size)]
        assert steps.update(rows) == pytest.approx(own.update(theirs.batch(rows))["loss"], rel=1e-5)
        for index, network in enumerate(networks(own)):
            gradient = flat(parameter.grad for parameter in network.parameters())
            np.testing.assert_allclose(ours(steps.gradients, index), gradient, atol=1e-5 * np.abs(gradient).max())
            # Where a gradient is next to nothing, Adam makes a whole step of its rounding errors.
            told = (gradient == 0) | (np.abs(gradient) > 1e-5 * np.abs(gradient).max())
            assert told.mean() > 0.9
            weights = flat(network.parameters())
            np.testing.assert_allclose(ours(steps.parameters, index)[told], weights[told], atol=1e-5)
        make_equal(steps.parameters, own)
    steps.finish()
    observations = np.asarray(log.observations, np.float32)
    for one, other in zip(networks(own), networks(fast), strict=True):
        np.testing.assert_allclose(flat(one.parameters()), flat(other.parameters()), atol=1e-5)
    assert (own.predict(observations) == fast.predict(observations)).mean() > 0.99


@pytest.mark.parametrize("name", FITS)
def test_the_chosen_action_is_d3rlpys(log, name):
    """Also where the imitator forbids an action, which it does here in some states but not in all."""
    algorithm = built(config_of(name))
    with torch.no_grad():
        for network in networks(algorithm):
            for parameter in network.parameters():
                parameter.mul_(4.0)
    observations = np.asarray(log.observations, np.float32)
    steps = DiscreteSteps(algorithm, log)
    outputs = encode(steps.parameters, "state", torch.tensor(observations.T).expand(len(steps._networks), -1, -1))[-1]
    chosen = steps._greedy(outputs).numpy()
    np.testing.assert_array_equal(chosen, algorithm.predict(observations))
    if name == "BCQ":
        best = outputs[0].argmax(0).numpy()
        assert 0 < (chosen != best).mean() < 1


@pytest.mark.parametrize("name", FITS)
def test_what_it_does_not_follow_is_left_to_d3rlpy(log, name, monkeypatch):
    library = extras.d3rlpy()
    narrow = library.models.encoders.VectorEncoderFactory([8])
    clipped = library.optimizers.AdamFactory(clip_grad_norm=1.0)
    scaled = library.preprocessing.StandardRewardScaler()
    assert follows(config_of(name)) and follows(config_of(name, learning_rate=1.0, gamma=0.5))
    for changes in ({"encoder_factory": narrow}, {"optim_factory": clipped}, {"reward_scaler": scaled}):
        assert not follows(config_of(name, **changes))
    assert not follows(library.algos.DiscreteBCQConfig())  # shares an encoder
    assert not follows(library.algos.DQNConfig()) and not follows(library.algos.CQLConfig())

    used = []
    for steps in (DiscreteSteps, offline_training.D3rlpySteps):
        update = steps.update
        monkeypatch.setattr(steps, "update", lambda self, rows, update=update: used.append(self) or update(self, rows))
    for settings in ({}, {"encoder_factory": narrow}):
        FITS[name](log, task=TASK, agent=3, steps=1, progress=False, batch_size=4, **settings)
    assert [type(one) for one in used] == [DiscreteSteps, offline_training.D3rlpySteps]
