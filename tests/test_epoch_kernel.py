"""Epochs of the compiled kernel against torch's, batch by batch; `test_training.py` holds both against torch.optim."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import keep_often, walk_dynamics, walk_task

import persim_gym
from persim_gym import PerSimConfig, Trajectories, fit
from persim_gym.model.parameters import parameter_shapes
from persim_gym.simulators.networks.kernels import jit
from persim_gym.tasks import get_task
from persim_gym.training.trainer import DeviceLog, Trainer

numba = pytest.importorskip("numba")
from persim_gym.simulators.networks.kernels import epoch  # noqa: E402 - needs numba
from persim_gym.simulators.networks.kernels.tiles import Tile  # noqa: E402

CONFIG = PerSimConfig(rank=3, state_hidden=(37,), num_members=2, epochs=3, batch_size=21, learning_rate=1e-2)


@pytest.fixture(params=[Tile(lanes=16, vectors=2, rows=8), Tile(lanes=8, vectors=3, rows=4)], ids=["wide", "narrow"])
def tile(request, monkeypatch):
    """Each of the tiles that processors get, by which the kernel is compiled here."""
    monkeypatch.setattr(epoch, "best_tile", lambda: request.param)


@pytest.fixture(scope="module")
def log():
    """Random trajectories of 7 CartPoles."""
    return persim_gym.collect("CartPole", num_agents=7, seed=0)


def walk_log(size):
    """Random columns of a walk's size, one coordinate or two."""
    rng = np.random.default_rng(0)
    agents, states, actions = np.repeat(np.arange(4), 30), rng.normal(size=(120, 2)), rng.integers(3, size=120)
    after = walk_dynamics(states, actions, np.ones((120, 1)))
    arrays = {"observations": states[:, :size], "next_observations": after[:, :size]}
    return Trajectories.from_arrays(agents=agents, actions=actions, agent_labels=list("abcd"), **arrays)


def trained(log, config, monkeypatch, *, by_kernel, **settings):
    """Train with or without the kernel, which must be asked if it is to be."""
    monkeypatch.setattr(jit, "available", lambda: by_kernel)
    return fit(log, config=config, validation_fraction=0, progress=False, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"linear_skip": True, "weight_decay": 0.1},
        {"huber_threshold": 0.3, "halve_learning_rate_every": 1},
        {"rank": 5, "state_hidden": (256,), "batch_size": 64, "normalize": False},
        {"rank": 1, "state_hidden": (8,), "batch_size": 1, "epochs": 1},
    ],
)
def test_epochs_are_torchs(log, changes, tile, monkeypatch):
    """Batches that are no multiple of a block's rows, and a shorter last one, included."""
    config = CONFIG.with_changes(**changes)
    assert log.num_transitions % config.batch_size or config.batch_size == 1
    plain, fast = (trained(log, config, monkeypatch, by_kernel=by_kernel) for by_kernel in (False, True))
    assert fast.provenance["training_loss"] == pytest.approx(plain.provenance["training_loss"], rel=1e-3)
    for name, expected in plain.parameters.items():
        np.testing.assert_allclose(fast.parameters[name], expected, atol=2e-3, err_msg=name)
    assert not np.array_equal(fast.parameters["agent.weight"], plain.parameters["agent.weight"])


@pytest.mark.parametrize("size", [1, 2])
def test_an_odd_number_of_outputs(size, tile, monkeypatch):
    """Three factors of one coordinate, and six of two."""
    walk = walk_task(limit=30)
    task = persim_gym.Task(
        name="Line", observation_space=spaces.Box(-1e3, 1e3, (size,)), action_space=walk.action_space,
        max_episode_steps=walk.max_episode_steps,
        reward=lambda states, actions, after: 0.0 * after[..., 0],
        terminated=lambda after: after[..., 0] > 1e9,
    )  # fmt: skip
    plain, fast = (
        trained(walk_log(size), CONFIG, monkeypatch, by_kernel=by_kernel, task=task) for by_kernel in (False, True)
    )
    for name, expected in plain.parameters.items():
        np.testing.assert_allclose(fast.parameters[name], expected, atol=2e-3, err_msg=name)


def test_threads_change_no_bit(log, monkeypatch):
    """Each member is its own piece of work."""
    config = CONFIG.with_changes(num_members=3)
    one, before = trained(log, config, monkeypatch, by_kernel=True), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = trained(log, config, monkeypatch, by_kernel=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for name, expected in one.parameters.items():
        np.testing.assert_array_equal(two.parameters[name], expected)


@pytest.mark.parametrize("interrupted_after", [0, 3, 5])
def test_interrupted_between_two_members_training_resumes_to_the_same_bits(
    log, tmp_path, monkeypatch, interrupted_after
):
    """The epoch begins anew for all of them."""
    whole = trained(log, CONFIG, monkeypatch, by_kernel=True)
    epochs, run_epoch = iter(range(100)), epoch.run_epoch

    def interrupting(*arguments, **settings):
        if next(epochs) == interrupted_after:
            raise KeyboardInterrupt
        return run_epoch(*arguments, **settings)

    keep_often(monkeypatch)
    monkeypatch.setattr(epoch, "run_epoch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        trained(log, CONFIG, monkeypatch, by_kernel=True, checkpoint=tmp_path / "c.persim")
    resumed = trained(log, CONFIG, monkeypatch, by_kernel=True, checkpoint=tmp_path / "c.persim")
    assert next(epochs) == 2 * 3 + 1 + interrupted_after % 2  # nothing done twice but the interrupted epoch
    for name, expected in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[name], expected)


@pytest.mark.parametrize(("task", "changes"), [("CartPole", {"state_hidden": (8, 8)}), ("HalfCheetah", {})])
def test_other_networks_are_torchs(task, changes, monkeypatch):
    """Two hidden layers, or continuous actions."""
    monkeypatch.setattr(epoch, "run_epoch", None)
    config = CONFIG.with_changes(action_hidden=(8,), epochs=1, batch_size=512, **changes)
    few = persim_gym.collect(task, covariates=get_task(task).test_agents[:2], seed=0)
    assert trained(few, config, monkeypatch, by_kernel=True).provenance["training_loss"] > 0


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_other_numbers_of_outputs_than_inputs_are_torchs(logistic, skip, tile, monkeypatch):
    """As outcomes have them: four inputs, one target, a number or the probability of 1."""
    rng, count = np.random.default_rng(0), 130
    inputs, agents, actions = rng.normal(size=(count, 4)), rng.integers(5, size=count), rng.integers(2, size=count)
    targets = inputs[:, :1] * (1 + agents[:, None]) + rng.normal(size=(count, 1))
    numbers = np.concatenate([inputs, targets > 0 if logistic else targets], axis=1)
    config = CONFIG.with_changes(linear_skip=skip)
    shapes = parameter_shapes(
        config, num_agents=5, observation_size=4, action_size=2, discrete=True, num_outputs=1
    )  # fmt: skip
    numbers = torch.tensor(numbers, dtype=torch.float32)
    columns = DeviceLog(numbers, torch.tensor(agents), torch.tensor(actions), 4, 5, 2)
    runs = []
    for by_kernel in (False, True):
        monkeypatch.setattr(jit, "available", lambda by_kernel=by_kernel: by_kernel)
        trainer = Trainer(shapes, config, 0, torch.device("cpu"), logistic=logistic)
        assert trainer._compiled == by_kernel
        losses = [trainer.run_epoch(columns, torch.arange(count)) for _ in range(6)]
        assert losses[-1] < losses[0]
        runs.append((losses, trainer.flat.numpy()))
    np.testing.assert_allclose(runs[1][0], runs[0][0], rtol=1e-3)
    np.testing.assert_allclose(runs[1][1], runs[0][1], atol=2e-3)
