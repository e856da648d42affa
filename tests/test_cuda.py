"""On a GPU everything computes what it computes on the CPU; skipped where there is none."""

import dataclasses

import numpy as np
import pytest
import torch
from support import interrupt_after

import persim_gym
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.joint import fit_joint
from persim_gym.baselines.layers import Scaling
from persim_gym.baselines.morel import fit_morel
from persim_gym.baselines.plain_dynamics import PlainDynamics
from persim_gym.config import get_config
from persim_gym.devices import resolve_device
from persim_gym.planning import MPCAgent
from persim_gym.rollouts import simulated_returns
from persim_gym.training.errors import one_step_errors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

CHEETAH = persim_gym.PerSimConfig(
    rank=3, state_hidden=(16, 16), action_hidden=(16,), num_members=3, epochs=20, batch_size=32, linear_skip=True,
    weight_decay=0.01, halve_learning_rate_every=5,
)  # fmt: skip
TINY_CADM = {"hidden": (16, 16), "encoder_hidden": (16, 8), "iterations": 2, "max_epochs": 2, "futures_per_context": 3}


@pytest.fixture(scope="module")
def cheetah_log():
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(400, 18)), rng.uniform(-1, 1, (400, 6))
    mixing = 0.1 * rng.normal(size=(18, 18))
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(4), 100),
        observations=observations,
        actions=actions,
        next_observations=observations + np.tanh(observations @ mixing) * actions[:, :1],
        task="HalfCheetah",
    )


def test_auto_is_the_gpu():
    assert resolve_device("auto").type == "cuda"


@pytest.mark.parametrize("name", ["CartPole", "HalfCheetah"])
def test_recorded_steps_are_the_plain_ones(name, cart_pole_log, cheetah_log, monkeypatch):
    """The same training with every kernel launched by itself; sums of several threads differ in rounding."""
    log, config = {
        "CartPole": (cart_pole_log, get_config("CartPole", name).with_changes(epochs=10, huber_threshold=0.5)),
        "HalfCheetah": (cheetah_log, CHEETAH),
    }[name]

    def trained():
        return persim_gym.fit(log, config=config, device="cuda", validation_fraction=0, seed=1, progress=False)

    recorded = trained()
    monkeypatch.setattr("persim_gym.training.graphs._WARM_UP", 10**9)
    plain = trained()
    assert recorded.provenance["device"] == "cuda"
    assert recorded.provenance["training_loss"] == pytest.approx(plain.provenance["training_loss"], rel=1e-3)
    errors = [one_step_errors(ensemble, log)[-1] for ensemble in (recorded, plain)]
    np.testing.assert_allclose(*errors, rtol=0.02)


@pytest.mark.parametrize("name", ["CartPole", "CartPole+", "HalfCheetah"])
def test_a_gpu_learns_as_well_as_the_cpu(name, cart_pole_log, cheetah_log):
    """Other random numbers, so other weights. A seed's error may be five times another's, so the best count."""
    log, config = {
        "CartPole": (cart_pole_log, get_config("CartPole", "CartPole").with_changes(epochs=40)),
        "CartPole+": (cart_pole_log, get_config("CartPole+", "CartPole").with_changes(epochs=40, refit_rounds=2)),
        "HalfCheetah": (cheetah_log, CHEETAH.with_changes(refit_factors=True)),
    }[name]

    def best_error(device):
        models = [persim_gym.fit(log, config=config, device=device, seed=seed, progress=False) for seed in range(4)]
        return min(one_step_errors(model, log)[-1].mean() for model in models)

    assert best_error("cuda") < 2 * best_error("cpu")


def test_interrupted_training_on_cuda_goes_on(cart_pole_log, tmp_path, monkeypatch):
    config = get_config("CartPole", "CartPole").with_changes(epochs=6)
    settings = {"config": config, "device": "cuda", "validation_fraction": 0, "seed": 0, "progress": False}
    straight = persim_gym.fit(cart_pole_log, **settings)
    written = interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        persim_gym.fit(cart_pole_log, checkpoint=tmp_path / "model", **settings)
    resumed = persim_gym.fit(cart_pole_log, checkpoint=tmp_path / "model", **settings)
    assert len(written) > 3
    assert resumed.provenance["training_loss"] == pytest.approx(straight.provenance["training_loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["cart_pole", "mountain_car", "half_cheetah"])
def test_simulators_agree_with_the_cpu(name, request):
    ensemble = request.getfixturevalue(name)
    task, rng = ensemble.task, np.random.default_rng(0)
    states = rng.uniform(-0.05, 0.05, (6, task.observation_size))
    shape = (6, 12) if task.discrete else (6, 12, task.action_size)
    actions = rng.integers(task.action_size, size=shape) if task.discrete else rng.uniform(-1, 1, shape)
    for agents in ([2], [0, 1, 2, 3, 0, 1]):
        on_cpu, on_gpu = (ensemble.simulator(agents=agents, device=device) for device in ("cpu", "cuda"))
        for aggregate in ("mean", "median"):
            on_cpu.aggregate = on_gpu.aggregate = aggregate
            steps = [one.step(states, actions[:, 0], uncertainty=True) for one in (on_cpu, on_gpu)]
            for part in ("next_observations", "disagreement", "standard_deviation"):
                found = [getattr(step, part) for step in steps]
                np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            on_gpu.rollout(states, actions), on_cpu.rollout(states, actions), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["cart_pole", "mountain_car", "half_cheetah"])
@pytest.mark.parametrize("propagation", ["per_member", "mean_state"])
def test_rollouts_earn_what_they_earn_on_the_cpu(name, propagation, request):
    ensemble = request.getfixturevalue(name)
    task, rng = ensemble.task, np.random.default_rng(0)
    states = rng.uniform(-0.05, 0.05, (3, task.observation_size))
    shape = (3, 40, 20) if task.discrete else (3, 40, 20, task.action_size)
    actions = rng.integers(task.action_size, size=shape) if task.discrete else rng.uniform(-1, 1, shape)
    scores = [
        simulated_returns(ensemble.simulator(agents=[0, 0, 1], device=device), states, propagation=propagation)(
            np.arange(3), actions
        )
        for device in ("cpu", "cuda")
    ]
    # A rollout on the edge of a bound may end a step earlier or later.
    assert np.mean(np.abs(scores[0] - scores[1]) > 1e-2) < 0.02


@pytest.mark.parametrize("name", ["cart_pole", "half_cheetah"])
def test_planners_find_good_plans(name, request):
    ensemble = request.getfixturevalue(name)
    observations = np.full((3, ensemble.task.observation_size), 0.01, np.float32)
    plans = [
        MPCAgent(ensemble.simulator(0, device=device), horizon=10, num_candidates=60, seed=0).plan(observations)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(plans[1].returns, plans[0].returns, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", ["Vanilla CaDM", "PE-TS CaDM"])
def test_recorded_steps_of_cadm_are_the_plain_ones(method, cart_pole_log, monkeypatch):
    settings = {**TINY_CADM, "batch_size": 32, "max_epochs": 10}

    def parameters():
        model = fit_cadm(cart_pole_log, config=method, device="cuda", progress=False, **settings)
        return np.concatenate([array.ravel() for array in model.parameters.values()])

    recorded = parameters()
    monkeypatch.setattr("persim_gym.training.graphs._WARM_UP", 10**9)
    np.testing.assert_allclose(recorded, parameters(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("method", ["Vanilla CaDM", "PE-TS CaDM"])
def test_cadm(method, cart_pole_log):
    model = fit_cadm(cart_pole_log, config=method, device="cuda", progress=False, **TINY_CADM)
    rng = np.random.default_rng(0)
    observations, actions = rng.uniform(-0.05, 0.05, (4, 4)), rng.integers(2, size=(4, 200, 15))
    scores = [
        simulated_returns(model.simulator(agents=[0, 1, 2, 3], device=device), observations)(np.arange(4), actions)
        for device in ("cpu", "cuda")
    ]
    if method == "Vanilla CaDM":
        assert np.mean(np.abs(scores[0] - scores[1]) > 1e-2) < 0.02
    else:  # they draw next states
        np.testing.assert_allclose(scores[1].mean(), scores[0].mean(), rtol=0.1)
    agent = CaDMAgent(model, device="cuda", horizon=5, num_candidates=20)
    state = None
    for _ in range(3):
        chosen, state = agent.predict(observations, state)
        assert chosen.shape == (4,) and set(chosen.tolist()) <= {0, 1}
    simulator = model.simulator_of(model.histories[:4], device=torch.device("cuda"), dtype=torch.bfloat16)
    halved = simulated_returns(simulator, observations)(np.arange(4), actions)
    np.testing.assert_allclose(halved.mean(), scores[0].mean(), rtol=0.1)


def test_the_joint_network(cart_pole_log, monkeypatch):
    config = get_config("CartPole", "CartPole").with_changes(epochs=6, halve_learning_rate_every=2)
    model = fit_joint(cart_pole_log, config=config, device="cuda", progress=False)
    states, actions = np.full((2, 4), 0.02), np.ones((2, 10), np.int64)
    rollouts = [model.simulator(agents=[0, 3], device=device).rollout(states, actions) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*rollouts, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("persim_gym.training.graphs._WARM_UP", 10**9)
    plain = fit_joint(cart_pole_log, config=config, device="cuda", progress=False)
    assert model.provenance["training_loss"] == pytest.approx(plain.provenance["training_loss"], rel=1e-3)


def test_morel(cart_pole_log, tmp_path, monkeypatch):
    """Its dynamics learn on the GPU, and go on there when they were interrupted."""
    pytest.importorskip("stable_baselines3")
    settings = {
        "device": "cuda",
        "epochs": 40,
        "batch_size": 32,
        "policy_steps": 1024,
        "threshold_scale": 1.0,
        "progress": False,
    }
    whole = fit_morel(cart_pole_log, **settings).env.dynamics
    columns = cart_pole_log.observations, cart_pole_log.actions
    found = whole.predict(*columns)
    assert whole.states.mean.is_cuda and np.isfinite(found[1]).all()
    change = np.square(cart_pole_log.next_observations - cart_pole_log.observations).mean()
    assert np.square(found[0] - cart_pole_log.next_observations).mean() < 0.2 * change
    parameters = {name: part.cpu() for name, part in whole.parameters.items()}
    scalings = (Scaling(one.mean.cpu(), one.scale.cpu()) for one in (whole.states, whole.changes))
    moved = PlainDynamics(whole.task, parameters, *scalings)
    for one, two in zip(found, moved.predict(*columns), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
    few = cart_pole_log.select([0, 1, 2, 3, 4, 5, 6, 7])  # two or three steps an epoch are recorded after the first one
    assert fit_morel(few, **{**settings, "batch_size": 64}).env.dynamics.states.mean.is_cuda
    interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit_morel(cart_pole_log, checkpoint=tmp_path / "one", **settings)
    resumed = fit_morel(cart_pole_log, checkpoint=tmp_path / "one", **settings).env.dynamics
    for one, two in zip(found, resumed.predict(*columns), strict=True):
        np.testing.assert_allclose(one, two, rtol=0.01, atol=0.01)


def test_forecasts_and_newcomers_on_the_gpu(cart_pole, cart_pole_log, tmp_path):
    """The draws are the same, so only rounding differs."""
    log = persim_gym.collect("CartPole", num_agents=30, seed=1)
    newcomer = dataclasses.replace(log.select([29]), agent_labels=("new",))
    refitted, found = persim_gym.refit_factors(cart_pole, cart_pole_log), []
    for device in ("cpu", "cuda"):
        known = persim_gym.calibrate(refitted, log, device=device)
        known = persim_gym.personalize(known, newcomer, device=device)
        future = persim_gym.forecast(known, "new", np.zeros((2, 4)), np.ones((2, 5), int), device=device)
        found.append(np.concatenate([future.means.ravel(), known.calibration.ravel()]))
        persim_gym.plot_trajectories(known, tmp_path / "agent.png", agents=[0], steps=5, device=device)
    np.testing.assert_allclose(found[1], found[0], rtol=0.05, atol=1e-3)


def test_an_environment_on_the_gpu(cart_pole):
    task = cart_pole.task
    env = persim_gym.envs.PersonalizedVectorEnv(cart_pole, 2, agent=[0, 1], device="cuda")
    observations, _ = env.reset(seed=0)
    for _ in range(3):
        observations, rewards, *_ = env.step(np.zeros(2, np.int64))
    assert observations.shape == (2, task.observation_size) and np.isfinite(rewards).all()
    env.close()


def test_value_iteration_on_the_gpu(mountain_car):
    simulators = [mountain_car.simulator(0, device=device) for device in ("cpu", "cuda")]
    tables = [
        persim_gym.ValueIterationAgent(simulator, points=(31, 29)).value_function.values for simulator in simulators
    ]
    np.testing.assert_allclose(*tables, rtol=1e-3, atol=1e-2)
