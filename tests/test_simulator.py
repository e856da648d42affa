"""Folded and unfolded predictions against the paper's sum, taken one row at a time."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from support import DEEP, DEEP_SKIPPING, SKIPPING, SMALL, random_actions, random_ensemble, reference_changes

from persim_gym.model.factorization import predict
from persim_gym.simulators.factor_simulator import FactorSimulator
from persim_gym.simulators.networks.agent_network import AgentNetwork
from persim_gym.simulators.networks.folding import fold
from persim_gym.simulators.networks.kernels import jit
from persim_gym.simulators.networks.steppers import CompiledMeanStepper, MeanStepper, SingleStepper, mean_stepper

CASES = {
    "discrete": ("CartPole", SMALL),
    "discrete, deep, normalized": ("CartPole", DEEP),
    "continuous": ("HalfCheetah", SMALL),
    "continuous, deep, normalized": ("HalfCheetah", DEEP),
    "discrete, linear path": ("CartPole", SKIPPING),
    "continuous, deep, normalized, linear path": ("HalfCheetah", DEEP_SKIPPING),
}


@pytest.fixture(params=CASES)
def case(request):
    """An ensemble with random weights, 7 states, 7 actions."""
    ensemble, rng = random_ensemble(*CASES[request.param], num_agents=4), np.random.default_rng(1)
    states = rng.normal(size=(7, ensemble.task.observation_size))
    return ensemble, states, random_actions(ensemble.task, rng, 7)


def test_every_agents_step_is_the_papers_sum(case):
    """Each member's next state; their mean; and as disagreement their deviation."""
    ensemble, states, actions = case
    for agent in range(4):
        simulator = ensemble.simulator(agent)
        expected = states + reference_changes(ensemble, agent, states, actions)
        np.testing.assert_allclose(simulator.step_members(states, actions), expected, atol=1e-5)
        prediction = simulator.step(states, actions)
        np.testing.assert_allclose(prediction.next_observations, expected.mean(0), atol=1e-5)
        np.testing.assert_allclose(prediction.disagreement, expected.std(0), atol=1e-5)


def test_one_row_for_each_agent(case):
    """Bound to many agents, given by index or label, repeated or not: row b is agent b's."""
    ensemble, states, actions = case
    agents = [3, 0, 1, 1, 2, 0, 3]
    expected = np.concatenate(
        [states[[b]] + reference_changes(ensemble, agent, states[[b]], actions[[b]]) for b, agent in enumerate(agents)],
        axis=1,
    )
    mixed = [agent if b % 2 else f"agent {agent}" for b, agent in enumerate(agents)]
    np.testing.assert_allclose(ensemble.simulator(agents=mixed).step_members(states, actions), expected, atol=1e-5)


def test_rollouts_follow_each_members_own_trajectory(case):
    """Five steps, every member from its own prediction; for one agent and for many."""
    ensemble, states, _ = case
    actions = random_actions(ensemble.task, np.random.default_rng(2), 7, 5)
    agents = [1, 1, 1, 1, 1, 1, 2]
    expected = np.empty((ensemble.num_members, 7, 5, states.shape[1]))
    for member in range(ensemble.num_members):
        alone, current = ensemble.with_members([member]), states
        for step in range(5):
            change = [
                reference_changes(alone, agent, current[[b]], actions[[b], step])[0, 0]
                for b, agent in enumerate(agents)
            ]
            current = current + np.array(change)
            expected[member, :, step] = current
    one, many = ensemble.simulator(1), ensemble.simulator(agents=agents)
    np.testing.assert_allclose(one.rollout(states, actions)[:, :6], expected[:, :6], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many.rollout(states, actions), expected, rtol=1e-4, atol=1e-5)


def test_a_single_state_without_torch(case):
    """`SingleStepper`: every member's change of one state."""
    ensemble, states, actions = case
    for agent in range(4):
        stepper = SingleStepper(fold(ensemble, agent))
        expected = reference_changes(ensemble, agent, states, actions)
        for row, (state, action) in enumerate(zip(states, actions, strict=True)):
            np.testing.assert_allclose(stepper.changes(state, action), expected[:, row], atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("config", [SMALL, SKIPPING])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_mean_and_deviation_of_a_single_state(members, config, compiled, monkeypatch):
    """`MeanStepper` and `CompiledMeanStepper`: against the paper's sum; a deviation of one member is zero."""
    if compiled:
        pytest.importorskip("numba")
    monkeypatch.setattr(jit, "available", lambda: compiled)
    ensemble = random_ensemble("CartPole", config.with_changes(num_members=members, normalize=True))
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(9, 4)), random_actions(ensemble.task, rng, 9)
    stepper = mean_stepper(fold(ensemble, 2))
    assert isinstance(stepper, CompiledMeanStepper if compiled else MeanStepper)
    changes = reference_changes(ensemble, 2, states, actions)
    for row, (state, action) in enumerate(zip(states, actions, strict=True)):
        after, deviation = stepper(state, action)
        np.testing.assert_allclose(after, state + changes[:, row].mean(0), atol=1e-5)
        np.testing.assert_allclose(deviation, changes[:, row].std(0), atol=1e-5)
    for value in (np.nan, 1e39):
        assert not np.isfinite(stepper.guarded(np.full(4, value), 0)[0]).all()


@pytest.mark.parametrize("copies", [1, 100], ids=["state-major", "feature-major"])
def test_folded_network_equals_plain_prediction(case, copies):
    """`AgentNetwork`, all members and a slice of them, against `factorization.predict` with normalization around it."""
    ensemble, states, actions = case
    states, actions = np.repeat(states, copies, 0), np.repeat(actions, copies, 0)
    agent, members, batch = 2, ensemble.num_members, len(states)
    parameters = {name: torch.tensor(array) for name, array in ensemble.parameters.items()}
    normalizer = ensemble.normalizer
    standardized = (states - normalizer.state_mean) / normalizer.state_scale
    rows = (agent + ensemble.num_agents * torch.arange(members)).repeat_interleave(batch)
    if ensemble.task.discrete:
        moves = (torch.tensor(actions) + ensemble.task.action_size * torch.arange(members)[:, None]).reshape(-1)
    else:
        moves = torch.tensor(actions.T, dtype=torch.float32).expand(members, -1, -1)
    inputs = torch.tensor(standardized.T, dtype=torch.float32).expand(members, -1, -1)
    plain = predict(parameters, inputs, rows, moves).numpy()
    plain = plain * normalizer.change_scale[:, None] + normalizer.change_mean[:, None]

    network = AgentNetwork(fold(ensemble, agent), None, torch.device("cpu"))
    stacked = torch.tensor(states.T, dtype=torch.float32).expand(members, -1, -1).contiguous()
    for part in (slice(0, members), slice(1, 2)):
        moves = torch.tensor(actions)
        if not ensemble.task.discrete:
            moves = network.action_factors(moves.T.float(), part)
        np.testing.assert_allclose(network.changes(stacked[part], moves, part), plain[part], atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "config"), [("CartPole", SMALL), ("CartPole", DEEP), ("HalfCheetah", DEEP)])
def test_every_members_states_are_kept_within_the_space_where_the_settings_say_so(name, config, compiled, monkeypatch):
    """For one agent and for several, a step and a rollout at a time; elsewhere they go where they go."""
    if compiled:
        pytest.importorskip("numba")
    monkeypatch.setattr(jit, "available", lambda: compiled)
    free, rng = random_ensemble(name, config, step_size=0.5), np.random.default_rng(1)
    size = free.task.observation_size
    low, high = np.full(size, -0.3, np.float32), np.full(size, 0.4, np.float32)
    task = dataclasses.replace(free.task, observation_space=gymnasium.spaces.Box(low, high))
    kept = dataclasses.replace(free, task=task, config=config.with_changes(clip_states=True))
    states, actions = rng.uniform(-0.3, 0.4, (7, size)), random_actions(task, rng, 7, 3)
    for bound in ({"agent": 1}, {"agents": [1, 0, 2, 2, 1, 0, 1]}):
        beyond = free.simulator(**bound).step_members(states, actions[:, 0])
        within = kept.simulator(**bound).step_members(states, actions[:, 0])
        np.testing.assert_allclose(within, np.clip(beyond, low, high), atol=1e-5)
        assert (beyond < low).any() and (beyond > high).any()
        paths = kept.simulator(**bound).rollout(states, actions)
        np.testing.assert_allclose(paths[:, :, 0], within, atol=1e-5)
        assert (paths >= low).all() and (paths <= high).all()


def test_large_batches_are_stepped_in_parts(case):
    """Each row as in a small batch, for one agent and for an agent a row; the deviation too."""
    ensemble, states, actions = case
    repeats = 700  # 4 900 rows, more than are stepped at a time
    many_states, many_actions = np.tile(states, (repeats, 1)), np.concatenate([actions] * repeats)
    agents = np.random.default_rng(0).integers(4, size=len(many_states))
    one, many = ensemble.simulator(3), ensemble.simulator(agents=agents.tolist())
    small = one.step(states, actions)
    found = one.step(many_states, many_actions)
    np.testing.assert_allclose(found.next_observations, np.tile(small.next_observations, (repeats, 1)), atol=1e-5)
    np.testing.assert_allclose(found.disagreement, np.tile(small.disagreement, (repeats, 1)), atol=1e-5)
    found = many.step_members(many_states, many_actions)
    for agent in range(4):
        expected = ensemble.simulator(agent).step_members(states, actions)
        for row in np.flatnonzero(agents == agent)[[0, -1]]:
            np.testing.assert_allclose(found[:, row], expected[:, row % 7], atol=1e-5)


def test_the_median_survives_a_diverging_member(case):
    """One member far off moves the mean, not the median."""
    ensemble, states, actions = case
    parameters = {name: np.array(array) for name, array in ensemble.parameters.items()}
    parameters["agent.bias"][1] += 1e6
    spoiled = dataclasses.replace(ensemble, parameters=parameters)
    members = states + reference_changes(spoiled, 0, states, actions)
    found = spoiled.simulator(0, aggregate="median").step(states, actions).next_observations
    np.testing.assert_allclose(found, np.median(members, axis=0), atol=1e-4)
    assert np.abs(spoiled.simulator(0).step(states, actions).next_observations).max() > 100 * np.abs(found).max()


def test_the_median_survives_a_member_that_is_no_number_any_more(case):
    """Alone it is left out; where no member has a number, neither has the median."""
    ensemble, states, actions = case
    parameters = {name: np.array(array) for name, array in ensemble.parameters.items()}
    parameters["agent.bias"][1] = np.nan
    found = replaced(ensemble, parameters).simulator(0, aggregate="median").step(states, actions).next_observations
    others = np.delete(states + reference_changes(ensemble, 0, states, actions), 1, axis=0)
    np.testing.assert_allclose(found, np.median(others, axis=0), atol=1e-5)
    parameters["agent.bias"][:] = np.nan
    none = replaced(ensemble, parameters).simulator(0, aggregate="median").step(states, actions)
    assert np.isnan(none.next_observations).all()


def replaced(ensemble, parameters):
    return dataclasses.replace(ensemble, parameters=parameters)


def test_factors_that_are_set_are_whole_factors(case):
    """Setting an agent's own changes nothing, another agent's makes the row that agent's, after steps too."""
    ensemble, states, actions = case
    assert np.abs(ensemble.parameters["agent.bias"]).min() > 0
    simulator = FactorSimulator(ensemble, np.zeros(7, int), own_factors=True)
    first = ensemble.simulator(0).step_members(states, actions)
    np.testing.assert_allclose(simulator.step_members(states, actions), first, atol=1e-5)
    simulator.set_factors(np.arange(3), ensemble.agent_factors([0, 0, 0]))
    np.testing.assert_allclose(simulator.step_members(states, actions), first, atol=1e-5)
    simulator.set_factors(np.array([1, 6]), ensemble.agent_factors([3, 2]))
    found = simulator.step_members(states, actions)
    for row, agent in ((1, 3), (6, 2)):
        expected = states[[row]] + reference_changes(ensemble, agent, states[[row]], actions[[row]])
        np.testing.assert_allclose(found[:, [row]], expected, atol=1e-5)
        first[:, row] = found[:, row]
    np.testing.assert_allclose(found, first, atol=1e-5)


def test_binding_does_not_change_the_ensemble(case):
    """Folding reads; the same simulator twice gives the same bits."""
    ensemble, states, actions = case
    before = {name: np.array(array) for name, array in ensemble.parameters.items()}
    first = ensemble.simulator(0).step(states, actions).next_observations
    np.testing.assert_array_equal(ensemble.simulator(0).step(states, actions).next_observations, first)
    for name, array in before.items():
        np.testing.assert_array_equal(ensemble.parameters[name], array)
