"""Leaving out candidates that cannot be the best changes neither the winner nor any score that is given."""

import math

import numpy as np
import pytest
from support import perfect_walk_ensemble, random_ensemble, walk_task

from persim_gym import load
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.planning import MPCAgent
from persim_gym.registration import SHIPPED_MODELS
from persim_gym.rollouts import simulated_returns
from persim_gym.tasks import PlanningObjective


@pytest.mark.parametrize("agent", range(4))
def test_pruned_search_finds_the_same_plan(agent):
    """Against scoring every candidate by every member of the shipped ensemble."""
    ensemble = load(SHIPPED_MODELS / "CartPole.persim")
    rng = np.random.default_rng(agent)
    observations = rng.uniform(-0.05, 0.05, (2, 4))
    actions = rng.integers(2, size=(2, 400, 30))
    simulator = ensemble.simulator(agent)
    every = simulated_returns(simulator, observations)(np.arange(2), actions)
    pruned = simulated_returns(simulator, observations, best_only=True)(np.arange(2), actions)
    given = np.isfinite(pruned)
    assert (pruned.argmax(axis=1) == every.argmax(axis=1)).all()
    np.testing.assert_allclose(pruned[given], every[given], atol=1e-4)
    assert not given.all(), "nothing was left out, so the test says nothing"


def test_the_median_leaves_nothing_out():
    """What some members say bounds the mean of all, not their median: every score is given, as without pruning."""
    simulator = load(SHIPPED_MODELS / "CartPole.persim").simulator(0, aggregate="median")
    actions = np.random.default_rng(0).integers(2, size=(1, 400, 30))
    every, best_only = (
        simulated_returns(simulator, np.zeros((1, 4)), best_only=one)(np.arange(1), actions) for one in (False, True)
    )
    np.testing.assert_array_equal(best_only, every)


def test_many_particles_are_asked_one_after_the_other(cart_pole_log):
    """Twenty particles of five members that draw nothing: the plan is that of asking all of them at once."""
    few = {"hidden": (16, 16), "encoder_hidden": (8,), "iterations": 1, "max_gradient_steps": 300}
    model = fit_cadm(cart_pole_log, num_members=5, num_particles=20, progress=False, device="cpu", **few)
    rng = np.random.default_rng(3)
    observations, actions = rng.uniform(-0.05, 0.05, (3, 4)), rng.integers(2, size=(3, 300, 30))
    simulator = model.simulator(0)
    every = simulated_returns(simulator, observations)(np.arange(3), actions)
    pruned = simulated_returns(simulator, observations, best_only=True)(np.arange(3), actions)
    given = np.isfinite(pruned)
    np.testing.assert_allclose(pruned[given], every[given], atol=1e-4)
    best = pruned.max(axis=1)
    np.testing.assert_allclose(best, every.max(axis=1), atol=1e-4)
    assert not given.all(), "nothing was left out, so the test says nothing"


@pytest.mark.parametrize("planner", ["random_shooting", "cem"])
def test_only_planners_that_want_the_best_prune(planner):
    """Random shooting leaves steps of members out; elites need every score."""
    discrete = planner == "random_shooting"
    ensemble = perfect_walk_ensemble(walk_task()) if discrete else random_ensemble("HalfCheetah")
    simulator, asked = ensemble.simulator(0), 0

    def reward(states, actions, next_states):
        nonlocal asked
        asked += math.prod(next_states.shape[:-1])
        return -(1 + actions if discrete else abs(actions[..., 0])) + 0 * next_states[..., 0]

    settings = {"num_candidates": 2000, "horizon": 5, "propagation": "per_member"}
    settings |= {} if discrete else {"num_rounds": 1}
    agent = MPCAgent(simulator, planner=planner, objective=PlanningObjective(reward, max_reward=0.0), **settings)
    agent.predict(np.zeros(simulator.task.observation_size, np.float32))
    everything = 2000 * 5 * simulator.num_members
    assert (0 < asked < everything) if discrete else asked == everything
