"""The ablation of PerSim's factorization: a network fed the agent's embedding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import interrupt_after, keep_checkpoints, walk_task

import persim_gym
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.joint import JointModel, _loss, fit_joint
from persim_gym.config import get_config
from persim_gym.envs import PersonalizedEnv
from persim_gym.errors import FileFormatError, InvalidArgumentError, InvalidDataError, UnknownNameError


@pytest.fixture(scope="module")
def walk():
    task = walk_task(limit=40)
    log = persim_gym.collect(task, num_agents=6, seed=0)
    config = persim_gym.PerSimConfig(
        rank=2, state_hidden=(32,), num_members=2, epochs=150, batch_size=64, learning_rate=3e-3
    )
    return log, fit_joint(log, task=task, config=config, device="cpu", progress=False)


def test_it_learns_who_walks_how_fast(walk):
    log, model = walk
    speeds = log.covariates[:, 0]
    for agent in range(6):
        moved = model.simulator(agent).step(np.array([[3.0, 0.0]]), np.array([2])).next_observations[0, 0] - 3
        assert moved == pytest.approx(speeds[agent], abs=0.15)


def test_its_simulator_is_that_of_its_parts(walk):
    """Against one row at a time in NumPy."""
    log, model = walk
    rng = np.random.default_rng(0)
    states, actions = rng.normal(3, 1, (5, 2)), rng.integers(3, size=5)
    found = model.simulator(agents=[0, 1, 2, 3, 4]).step_members(states, actions)
    weights, normalizer = model.parameters, model.normalizer
    for member in range(2):
        for row in range(5):
            state = (states[row] - normalizer.state_mean) / normalizer.state_scale
            fed = np.concatenate([state, np.eye(3)[actions[row]], weights["agent.weight"][member, row]])
            hidden = weights["forward.0.weight"][member] @ fed + weights["forward.0.bias"][member, :, 0]
            output = weights["forward.1.weight"][member] @ np.maximum(hidden, 0)
            output = output + weights["forward.1.bias"][member, :, 0]
            expected = states[row] + output * normalizer.change_scale + normalizer.change_mean
            np.testing.assert_allclose(found[member, row], expected, atol=1e-4)


def test_a_file_keeps_it(cart_pole_log, tmp_path):
    config = persim_gym.PerSimConfig(rank=2, state_hidden=(8,), num_members=2, epochs=2)
    model = fit_joint(cart_pole_log, config=config, device="cpu", progress=False)
    model.save(tmp_path / "model.joint")
    loaded = JointModel.load(tmp_path / "model.joint")
    assert loaded.config == config and loaded.provenance == model.provenance
    states, actions = cart_pole_log.observations[:5], cart_pole_log.actions[:5]
    runs = [one.simulator(1).step_members(states, actions) for one in (model, loaded)]
    np.testing.assert_array_equal(*runs)
    np.testing.assert_array_equal(loaded.agent_covariates(1), cart_pole_log.covariates[1])
    with pytest.raises(FileFormatError, match="joint"):
        CaDM.load(tmp_path / "model.joint")
    cut = dict(model.parameters, **{"agent.weight": model.parameters["agent.weight"][:, 1:]})
    replace(model, parameters=cut).save(tmp_path / "cut.joint")
    with pytest.raises(FileFormatError, match="'agent.weight' is missing or has the wrong shape"):
        JointModel.load(tmp_path / "cut.joint")


def test_environments_and_planners_take_it(walk):
    log, model = walk
    env = PersonalizedEnv(model, agent=2)
    env.reset(seed=0)
    assert env.step(1)[0].shape == (2,) and not env.simulator.stochastic
    assert isinstance(env.simulator, persim_gym.Simulator)
    assert not hasattr(env.simulator, "set_factors"), "only PerSim knows an agent by factors"
    action, _ = persim_gym.MPCAgent(model.simulator(2), horizon=3, num_candidates=30).predict(np.array([3.0, 0.0]))
    assert action == 0
    rows = persim_gym.mpc_returns(model, agents=[0], episodes=2, horizon=3, num_candidates=9)
    assert np.isfinite(rows[0].mean)


def test_covariates_that_are_not_known(walk):
    """Of no agent, or not of this one: an error that names it, where the true system would have been one of NaN."""
    log, model = walk
    some = log.covariates.copy()
    some[2] = np.nan
    np.testing.assert_array_equal(replace(model, covariates=some).agent_covariates(3), log.covariates[3])
    for covariates in (some, None):
        with pytest.raises(InvalidArgumentError, match="covariates of agent '2' are not recorded in this model"):
            persim_gym.prediction_error(replace(model, covariates=covariates), policy="random", agents=[2])
    with pytest.raises(UnknownNameError, match="labelled 'nobody'"):
        replace(model, covariates=None).agent_covariates("nobody")


def test_continuous_actions_and_the_robust_loss():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(40, 18))
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(2), 20), observations=observations, actions=rng.uniform(-1, 1, (40, 6)),
        next_observations=observations + 0.1, task="HalfCheetah",
    )  # fmt: skip
    config = persim_gym.PerSimConfig(rank=2, state_hidden=(8,), num_members=2, epochs=2, huber_threshold=0.5)
    model = fit_joint(log, config=config, device="cpu", progress=False)
    assert model.simulator(1).step(observations, log.actions).next_observations.shape == (40, 18)
    with pytest.raises(InvalidDataError, match="18 observation coordinates"):
        fit_joint(log, task="CartPole")


def test_a_file_of_an_own_task_says_what_it_needs(walk, tmp_path):
    _, model = walk
    model.save(tmp_path / "walk.joint")
    with pytest.raises(UnknownNameError, match="'Walk' has functions of its own .reward, terminated.*give task="):
        JointModel.load(tmp_path / "walk.joint")
    assert JointModel.load(tmp_path / "walk.joint", task=model.task).task is model.task
    with pytest.raises(FileFormatError, match="is of task Walk, not of CartPole"):
        JointModel.load(tmp_path / "walk.joint", task="CartPole")


def test_the_decay_of_the_weights_is_decoupled(cart_pole_log):
    """With CartPole's own settings, as PerSim's training has it: as part of the gradient it would stop all learning."""
    model = fit_joint(
        cart_pole_log, config=get_config(None, "CartPole").with_changes(epochs=40, num_members=1), device="cpu",
        progress=False,
    )  # fmt: skip
    following = np.concatenate(
        [
            model.simulator(agent).step(cart_pole_log.observations[rows], cart_pole_log.actions[rows]).next_observations
            for agent, rows in ((agent, cart_pole_log.agents == agent) for agent in range(20))
        ]
    )
    changes = cart_pole_log.next_observations - cart_pole_log.observations
    error = np.square(following - cart_pole_log.next_observations).mean(0) / changes.var(0)
    assert (error < 0.6).all()


def test_states_are_kept_within_bounds_where_the_settings_say_so(cart_pole_log):
    config = persim_gym.PerSimConfig(rank=2, state_hidden=(8,), num_members=2, epochs=1)
    states, actions = np.tile([4.7, 900.0, 0.4, 900.0], (3, 1)), np.zeros(3, int)
    free, kept = (
        fit_joint(cart_pole_log, config=config.with_changes(clip_states=clip), device="cpu", progress=False)
        .simulator(0).step(states, actions).next_observations
        for clip in (False, True)
    )  # fmt: skip
    space = persim_gym.get_task("CartPole").observation_space
    assert (np.abs(free) > space.high).any()
    np.testing.assert_allclose(kept, np.clip(free, space.low, space.high), rtol=1e-6)


def test_the_robust_loss_is_twice_hubers():
    error = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 40)))
    expected = 2 * torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=0.3, reduction="none")
    torch.testing.assert_close(_loss(error, 0.3), expected.mean(dim=(1, 2)).sum())
    torch.testing.assert_close(_loss(error, None), error.square().mean(dim=(1, 2)).sum())


def test_the_learning_rate_is_halved(cart_pole_log, monkeypatch):
    rates = []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments):
            rates.append(float(self.param_groups[0]["lr"]))
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    config = persim_gym.PerSimConfig(
        rank=2, state_hidden=(4,), num_members=1, epochs=5, halve_learning_rate_every=2, learning_rate=0.008,
        batch_size=64, max_steps_per_epoch=3,
    )  # fmt: skip
    fit_joint(cart_pole_log, config=config, device="cpu", progress=False)
    np.testing.assert_allclose(rates, np.repeat([0.008, 0.008, 0.004, 0.004, 0.002], 3), rtol=1e-6)


def test_joint_training_that_was_finished_is_not_run_again(cart_pole_log, tmp_path, monkeypatch):
    """The loss is told as if it had run."""
    keep_checkpoints(monkeypatch)
    config = persim_gym.PerSimConfig(rank=2, state_hidden=(8,), num_members=2, epochs=2)
    settings = {"config": config, "device": "cpu", "progress": False, "checkpoint": tmp_path / "model.joint"}
    losses = [fit_joint(cart_pole_log, **settings).provenance["training_loss"] for _ in range(2)]
    assert losses[0] == losses[1] > 0


def test_interrupted_joint_training_goes_on(cart_pole_log, tmp_path, monkeypatch):
    """To the bits of a run that was not interrupted; a checkpoint of another run is refused."""
    config = persim_gym.PerSimConfig(rank=2, state_hidden=(8,), num_members=2, epochs=6, halve_learning_rate_every=2)
    settings = {"config": config, "device": "cpu", "progress": False}
    whole = fit_joint(cart_pole_log, **settings)
    written = interrupt_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit_joint(cart_pole_log, checkpoint=tmp_path / "model.joint", **settings)
    with pytest.raises(FileFormatError, match="different seed"):
        fit_joint(cart_pole_log, checkpoint=tmp_path / "model.joint", seed=1, **settings)
    resumed = fit_joint(cart_pole_log, checkpoint=tmp_path / "model.joint", **settings)
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[name], array)
    assert resumed.provenance["training_loss"] == whole.provenance["training_loss"]
    assert written == ["model.joint.part"] * 6  # once an epoch: none is run twice
    assert list(tmp_path.iterdir()) == []
