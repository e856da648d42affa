"""What happens when a policy acts: the same at every door, and step by step."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from support import walk_task

import persim_gym
from persim_gym.baselines.pessimistic import PessimisticVectorEnv
from persim_gym.baselines.plain_dynamics import fit_plain_dynamics
from persim_gym.collection.episodes import run
from persim_gym.collection.policies import as_policy
from persim_gym.config import PerSimConfig
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.normalizer import Normalizer
from persim_gym.rollouts import simulated_returns, true_returns
from persim_gym.tasks.equations import EquationSystem
from persim_gym.tasks.heterogeneous import HeterogeneousEnv

START = np.array([3.0, 0.0])


def push_task(limit=1):
    """A walk x' = x + a with pushes a between −1 and 1, not kept there by the system; reward x' − a², from x = 3."""
    walk = walk_task(limit=limit)

    def move(observations, actions, speeds):
        return observations + np.pad(actions, ((0, 0), (0, 1)))

    def reward(observations, actions, next_observations):
        return next_observations[..., 0] - (actions * actions).sum(-1)

    return dataclasses.replace(
        walk,
        name="Push",
        action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
        reward=reward,
        planning_objective=None,
        make_system=lambda speeds: EquationSystem(move, walk.initial_observations, speeds),
    )


def perfect_ensemble(task):
    """It is exactly the system: u = 1, v = (1, 0), w = relu(a) − relu(−a)."""
    parameters = {
        "agent.weight": np.ones((2, 3, 1)),
        "agent.bias": np.zeros((2, 1)),
        "state.0.weight": np.zeros((2, 1, 2)),
        "state.0.bias": np.zeros((2, 1, 1)),
        "state.1.weight": np.zeros((2, 2, 1)),
        "state.1.bias": np.tile([[[1.0], [0.0]]], (2, 1, 1)),
        "action.0.weight": np.tile([[[1.0], [-1.0]]], (2, 1, 1)),
        "action.0.bias": np.zeros((2, 2, 1)),
        "action.1.weight": np.tile([[[1.0, -1.0]]], (2, 1, 1)),
        "action.1.bias": np.zeros((2, 1, 1)),
    }
    return Ensemble(
        task=task,
        config=PerSimConfig(rank=1, state_hidden=(1,), action_hidden=(2,), num_members=2, normalize=False),
        parameters={name: array.astype(np.float32) for name, array in parameters.items()},
        normalizer=Normalizer.identity(2),
        agent_labels=("0", "1", "2"),
        initial_observations=START[None].astype(np.float32),
        covariates=np.ones((3, 1)),
    )


def always(action):
    """A policy that gives one action."""
    return lambda observations: np.full((len(observations), 1), action)


def stepped(env, action):
    """The reward of an environment's first step."""
    env.reset(seed=0)
    return float(env.step(np.array([action]))[1])


def vector_stepped(env, action):
    """The reward of a vector environment's first step."""
    env.reset(seed=0)
    return float(env.step(np.array([[action]]))[1][0])


def pessimistic(ensemble, action):
    """Reward in a MOReL environment that never halts; where it leads is learned from a log, and not exact."""
    log = persim_gym.collect(ensemble.task, num_agents=3, seed=0)
    dynamics = fit_plain_dynamics(log, ensemble.task, hidden=(4,), epochs=1)
    return vector_stepped(PessimisticVectorEnv(dynamics, log, threshold=np.inf, penalty=50.0, num_envs=1), action)


def candidate(score, action):
    """The return of a planner's candidate of one action."""
    return score(np.array([0]), np.full((1, 1, 1, 1), action))[0, 0]


def true_candidate(ensemble, action):
    """The return of a candidate in the true system."""
    system = ensemble.task.system(np.ones((1, 1)))
    system.reset(np.random.default_rng(0))
    return candidate(true_returns(system, ensemble.task, ensemble.task.objective), action)


def simulated_candidate(ensemble, action, **settings):
    """The return of a candidate in the simulator."""
    return candidate(simulated_returns(ensemble.simulator(0), START[None], **settings), action)


DOORS = {
    "collect": lambda e, a: persim_gym.collect(e.task, policy=always(a), num_agents=1).rewards[0],
    "generate": lambda e, a: persim_gym.generate(e, [0], 1, always(a), starts=START, progress=False).rewards[0],
    "policy_returns": lambda e, a: persim_gym.policy_returns(e, always(a), agents=[0], episodes=2)[0].mean,
    "true environment": lambda e, a: stepped(HeterogeneousEnv(e.task), a),
    "environment": lambda e, a: stepped(PersonalizedEnv(e, 0), a),
    "vector environment": lambda e, a: vector_stepped(PersonalizedVectorEnv(e, 1), a),
    "planning in the true system": true_candidate,
    "planning": simulated_candidate,
    "planning along the mean": lambda e, a: simulated_candidate(e, a, propagation="mean_state"),
    "MOReL's environment": pessimistic,
}


@pytest.mark.parametrize("door", DOORS)
def test_an_action_beyond_the_bounds_earns_what_the_one_carried_out_does(door):
    """By 1 from x = 3, at a cost of 1; whatever number type the action is of."""
    ensemble = perfect_ensemble(push_task())
    for beyond in (1.0, 5.0, np.float32(5.0)):
        reward = DOORS[door](ensemble, beyond)
        assert reward == (DOORS[door](ensemble, 1.0) if door == "MOReL's environment" else 3.0)
        assert DOORS[door](ensemble, -beyond) < reward


def test_an_action_beyond_the_bounds_is_recorded_as_it_was_carried_out():
    """In logs, recorded and synthetic, and where predictions are compared with the true system."""
    ensemble = perfect_ensemble(push_task(limit=70))
    collected = persim_gym.collect(ensemble.task, policy=always(5.0), num_agents=2)
    generated = persim_gym.generate(ensemble, [0], 1, always(5.0), starts=START, progress=False)
    for log in (collected, generated):
        assert (log.actions == 1.0).all() and log.num_transitions % 70 == 0
        np.testing.assert_array_equal(log.next_observations[:, 0], log.observations[:, 0] + 1)
    assert persim_gym.prediction_error(ensemble, policy=always(5.0), agents=[0], episodes=2)[0].rmse == 0.0


class Recorder:
    """Goes right; remembers what it was told and keeps the episodes' numbers as its state."""

    takes_running = True

    def __init__(self):
        self.told = []

    def predict(self, observation, state=None, episode_start=None, deterministic=True, running=None):
        assert observation.dtype == np.float32 and episode_start.all() == (state is None)
        state = np.arange(len(observation)) if state is None else state
        self.told.append(running.tolist())
        return np.full(len(observation), 2), state


def walks(leave):
    """Three walks of different speeds from 3 to a goal at 5, which they reach after 4, 2 and 1 of at most 6 steps."""
    task, policy = walk_task(goal=5.0), Recorder()
    system = task.system(np.array([[0.5], [1.0], [2.0]]))
    steps = list(run(task, policy, system, np.random.default_rng(0), steps=6, leave=leave))
    return policy, steps


def test_all_copies_are_stepped_to_the_end():
    """And a policy that plans is told whose episodes are over."""
    policy, steps = walks(leave=False)
    running = [[True] * 3, [True, True, False], [True, False, False], [True, False, False], [False] * 3, [False] * 3]
    assert policy.told == [step.running.tolist() for step in steps] == running
    for index, step in enumerate(steps):
        np.testing.assert_array_equal(step.episodes, [0, 1, 2])
        np.testing.assert_array_equal(step.observations[:, 0], 3 + index * np.array([0.5, 1.0, 2.0]))
        np.testing.assert_array_equal(step.going_on, (running[1:] + [[False] * 3])[index])


def test_episodes_that_are_over_may_leave():
    """The others go on as they would have, and the run ends with the last."""
    policy, steps = walks(leave=True)
    assert [step.episodes.tolist() for step in steps] == [[0, 1, 2], [0, 1], [0], [0]]
    assert policy.told == [[True] * 3, [True] * 2, [True], [True]]
    for step, whole in zip(steps, walks(leave=False)[1], strict=False):
        for name in ("observations", "actions", "next_observations", "terminated"):
            np.testing.assert_array_equal(getattr(step, name), getattr(whole, name)[step.episodes])


def test_the_time_limit_holds():
    """The task's, where no number of steps is given."""
    task = walk_task(limit=7)
    policy = as_policy(lambda observations: np.ones(len(observations), int), task)
    assert len(list(run(task, policy, task.system(np.ones((2, 1))), np.random.default_rng(0)))) == 7
