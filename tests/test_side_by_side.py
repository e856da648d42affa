"""Environments rolled out in one batch, as on a GPU, earn what each earns by itself."""

from dataclasses import replace

import numpy as np
import pytest

from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.joint import fit_joint
from persim_gym.config import get_config
from persim_gym.rollouts import simulated_returns
from persim_gym.tasks import get_task


@pytest.fixture(scope="module")
def simulators(cart_pole_log, cart_pole):
    """Of PerSim for two agents, of the joint network, and of CaDM, whose environments are as many agents."""
    tiny = {"hidden": (16, 16), "encoder_hidden": (8,), "iterations": 1, "max_epochs": 200, "device": "cpu"}
    cadm = fit_cadm(cart_pole_log, config="Vanilla CaDM", progress=False, futures_per_context=1, **tiny)
    config = get_config("CartPole", "CartPole").with_changes(epochs=30, state_hidden=(32,))
    joint = fit_joint(cart_pole_log, config=config, device="cpu", progress=False)
    return {
        "PerSim": cart_pole.simulator(agents=[0, 0, 1, 1]),
        "joint": joint.simulator(agents=[0, 0, 1, 3]),
        "CaDM": cadm.simulator(agents=[0, 1, 2, 3]),
    }


OBJECTIVES = {
    "done mask": get_task("CartPole").objective,
    "progress": replace(get_task("CartPole").objective, terminated=None, progress=lambda states: states[..., 0] + 1),
}


@pytest.mark.parametrize("method", ["PerSim", "joint", "CaDM"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_earns_what_its_environments_earn(simulators, method, objective, monkeypatch):
    rng = np.random.default_rng(0)
    observations, actions = rng.uniform(-1, 1, (4, 4)) * [2, 2, 0.2, 2], rng.integers(2, size=(4, 30, 25))
    environments = np.array([0, 1, 3])

    def returns(together):
        scores = simulated_returns(simulators[method], observations, objective=OBJECTIVES[objective], together=together)
        return scores(environments, actions[environments])

    apart = returns(False)
    assert len(np.unique(apart.round(3))) > 10, "all earn the same, so the test says nothing"
    np.testing.assert_allclose(returns(True), apart, rtol=1e-4, atol=1e-3)
    monkeypatch.setattr("persim_gym.rollouts.batching._TRAJECTORIES_AT_ONCE", 50)
    np.testing.assert_allclose(returns(True), apart, rtol=1e-4, atol=1e-3)


def test_continuous_actions_too(half_cheetah):
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(2, 18)), rng.uniform(-1, 1, (2, 20, 8, 6))
    simulator = half_cheetah.simulator(0)
    for propagation in ("per_member", "mean_state"):
        apart, batch = (
            simulated_returns(simulator, observations, propagation=propagation, together=together)(
                np.arange(2), actions
            )
            for together in (False, True)
        )
        np.testing.assert_allclose(batch, apart, rtol=1e-4, atol=1e-4)


def test_environments_of_several_agents_share_products(simulators, monkeypatch):
    """CaDM's take one network for all of a batch; PerSim's one an agent."""
    calls = []

    def counted(simulator):
        found = simulator.network_of
        monkeypatch.setattr(simulator, "network_of", lambda agents: calls.append(len(agents)) or found(agents))
        simulated_returns(simulator, np.zeros((4, 4)), together=True)(np.arange(4), np.zeros((4, 5, 3), np.int64))
        return [calls.pop(0) for _ in range(len(calls))]

    assert isinstance(simulators["CaDM"].model, CaDM)
    assert counted(simulators["CaDM"]) == [20]
    assert counted(simulators["PerSim"]) == [10, 10]
