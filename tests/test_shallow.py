"""The CPU's networks for columns of states, in blocks and compiled, against the paper's sum, row by row in float64."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import DEEP, SKIPPING, SMALL, random_actions, random_ensemble, reference_changes

from persim_gym.rollouts import simulated_returns
from persim_gym.simulators.networks.folding import fold
from persim_gym.simulators.networks.kernels import jit
from persim_gym.simulators.networks.shallow import BLOCK, ShallowNetwork
from persim_gym.simulators.networks.shallow_compiled import CompiledShallowNetwork


@pytest.fixture(params=[ShallowNetwork, CompiledShallowNetwork])
def make(request):
    """Each of the networks."""
    if request.param is CompiledShallowNetwork:
        pytest.importorskip("numba")
    return request.param


@pytest.mark.parametrize("name", ["CartPole", "MountainCar"])
@pytest.mark.parametrize("config", [SMALL, SKIPPING])
@pytest.mark.parametrize("counts", [(1, 1, 1), (5, 0, BLOCK + 3), (BLOCK, 2 * BLOCK, 7)])
def test_every_members_columns(make, name, counts, config):
    """Any number of columns a member, none included, in one block or several; normalized states too."""
    ensemble, rng = random_ensemble(name, config.with_changes(normalize=True)), np.random.default_rng(0)
    states = rng.normal(size=(sum(counts), ensemble.task.observation_size))
    actions = random_actions(ensemble.task, rng, len(states))
    changes = reference_changes(ensemble, 1, states, actions)
    stops = np.cumsum(counts)
    owner = np.repeat(np.arange(3), counts)
    expected = states + changes[owner, np.arange(len(states))]
    network = make(fold(ensemble, 1), None)
    columns = network.start(states)
    found = network.next_states(columns, actions, stops)
    np.testing.assert_allclose(found[:-1].T, expected, atol=1e-5)
    np.testing.assert_array_equal(found[-1], 1.0)
    last = network.next_states(columns[:, stops[1] :], actions[stops[1] :], [counts[2]], first=2)
    np.testing.assert_allclose(last[:-1].T, expected[owner == 2], atol=1e-5)


@pytest.mark.parametrize("members", [1, 2])
def test_few_members(make, members):
    ensemble, rng = random_ensemble("CartPole", SMALL.with_changes(num_members=members)), np.random.default_rng(0)
    states = rng.normal(size=(9, 4))
    actions = random_actions(ensemble.task, rng, len(states))
    expected = states + reference_changes(ensemble, 1, states, actions)
    np.testing.assert_allclose(make(fold(ensemble, 1), None).step(states, actions), expected, atol=1e-5)


def test_bounds_and_nan(make):
    """States are kept within the bounds; what is not a number stays so and does not spread to other columns."""
    ensemble = random_ensemble("MountainCar", step_size=100.0)
    low, high = np.array([-1.0, -0.5]), np.array([2.0, 0.25])
    network = make(fold(ensemble, 0), (low, high))
    states = np.random.default_rng(0).normal(size=(30, 2))
    states[4] = np.nan
    actions = np.zeros(90, int)
    found = network.next_states(network.start(states, 3), actions, [30, 60, 90])[:-1].T
    broken = np.isnan(found).all(axis=1)
    assert np.flatnonzero(broken).tolist() == [4, 34, 64]
    assert (found[~broken] >= low).all() and (found[~broken] <= high).all()
    assert (found[~broken] == low).any() and (found[~broken] == high).any()


def test_what_fits():
    """One hidden layer and discrete actions; any other network is evaluated in torch."""
    assert random_ensemble("CartPole").simulator(0).cpu_network(0) is not None
    assert random_ensemble("CartPole", DEEP).simulator(0).cpu_network(0) is None
    assert random_ensemble("HalfCheetah").simulator(0).cpu_network(0) is None


def test_the_compiled_network_is_used_where_numba_is(monkeypatch):
    """The network is asked for once an agent."""
    for installed, network in ((False, ShallowNetwork), (True, CompiledShallowNetwork)):
        if installed:
            pytest.importorskip("numba")
        monkeypatch.setattr(jit, "available", lambda installed=installed: installed)
        assert type(random_ensemble("CartPole").simulator(0).cpu_network(0)) is network


def test_without_a_place_to_keep_the_kernel(monkeypatch):
    """It is compiled for this process alone."""
    numba = pytest.importorskip("numba")
    from persim_gym.simulators.networks.kernels.shallow import step_kernel

    # Numba compiles parts of its own, too, the first time.
    test_every_members_columns(CompiledShallowNetwork, "MountainCar", (5, 0, 3), SMALL)
    njit, kept = numba.njit, []

    def refuse(signature, **settings):
        kept.append(settings.pop("cache", False))
        if kept[-1]:
            raise RuntimeError("cannot cache function")
        return njit(signature, **settings)

    monkeypatch.setattr(numba, "njit", refuse)
    step_kernel.cache_clear()
    test_every_members_columns(CompiledShallowNetwork, "MountainCar", (5, 0, 3), SMALL)
    step_kernel.cache_clear()
    assert kept == [True, False]


@pytest.mark.parametrize("candidates", [90, 700])
@pytest.mark.parametrize("name", ["CartPole", "MountainCar"])
def test_returns_are_those_of_torchs_rollouts(make, name, candidates, monkeypatch):
    """With rollouts that end at different steps and are dropped on the way."""
    monkeypatch.setattr(jit, "available", lambda: make is CompiledShallowNetwork)
    ensemble, rng = random_ensemble(name, step_size=0.05), np.random.default_rng(0)
    starts, simulator = 0.05 * rng.normal(size=(1, ensemble.task.observation_size)), ensemble.simulator(0)
    actions = random_actions(ensemble.task, rng, 1, candidates, 20)
    fast = simulated_returns(simulator, starts)(np.array([0]), actions)
    monkeypatch.setattr(simulator, "cpu_network", lambda agent: None)
    plain = simulated_returns(simulator, starts)(np.array([0]), actions)
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)
    assert len(np.unique(plain.round(3))) > 2


def test_several_threads_share_a_network(make):
    """Each call has a buffer of its own: side by side they find what they find one after the other."""
    ensemble, rng = random_ensemble("CartPole", SMALL.with_changes(state_hidden=(512,))), np.random.default_rng(0)
    network = make(fold(ensemble, 0), None)
    states, actions = rng.normal(size=(40, 900, 4)), rng.integers(2, size=900)
    alone = [network.step(one, actions) for one in states]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: network.step(one, actions), states))
    np.testing.assert_array_equal(together, alone)
