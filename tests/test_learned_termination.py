"""Termination that was learned is a probability: episodes draw it, planners weigh with it, what is sure stays sure."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from support import perfect_walk_ensemble, walk_task

import persim_gym
from persim_gym import Task, Trajectories, ValueIterationAgent, generate
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.model.outcomes import Outcome, OutcomeScaling
from persim_gym.rollouts import simulated_returns
from persim_gym.tasks.objective import TO_LEARN
from persim_gym.tasks.rules import ended
from persim_gym.training.preparation import split


def episode_of_risk(rng):
    """Rows (state, action, next state, whether it ended): the risk of a step is 0.25 above 0.5, else 0.02."""
    state, rows = rng.normal(), []
    for _ in range(60):
        action = rng.integers(2)
        after = 0.8 * state + 0.3 * (2 * action - 1) + 0.1 * rng.normal()
        rows.append(([state], action, [after], rng.random() < (0.25 if after > 0.5 else 0.02)))
        state = after
        if rows[-1][3]:
            break
    return rows


@pytest.fixture(scope="module")
def risky():
    """A log of ten agents whose episodes end by chance, and what was learned from it."""
    rng = np.random.default_rng(0)
    episodes = [episode_of_risk(rng) for _ in range(400)]
    names = ("observations", "actions", "next_observations", "terminated")
    columns = zip(*[row for rows in episodes for row in rows], strict=True)
    lengths = [len(rows) for rows in episodes]
    log = Trajectories.from_arrays(
        **dict(zip(names, map(np.array, columns), strict=True)),
        agents=np.repeat(np.arange(400) // 40, lengths),
        episode_starts=np.cumsum([0, *lengths[:-1]]),
    )
    task = Task(
        "Risk", spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(2), 60, reward=lambda s, a, n: 0 * n[..., 0] + 1.0
    )
    config = persim_gym.PerSimConfig(
        rank=2, state_hidden=(32,), num_members=2, epochs=24, batch_size=64, learning_rate=1e-2,
        halve_learning_rate_every=6,
    )  # fmt: skip
    return log, persim_gym.fit(log, task=task, config=config, seed=0, progress=False)


def walk(slope, intercept, **changes):
    """A walk on a line of three agents, whose episodes end with logit slope·max(x, 0) + intercept."""
    task = dataclasses.replace(walk_task(start=0.0), terminated=TO_LEARN, planning_objective=None, **changes)
    ensemble = perfect_walk_ensemble(task)
    arrays = {name: np.zeros_like(array) for name, array in ensemble.parameters.items()}
    arrays["agent.weight"] += 1
    arrays["state.0.weight"][:, 0, 0] = 1
    arrays["state.1.weight"] = np.full((2, 1, 1), slope, np.float32)
    arrays["state.1.bias"] = np.full((2, 1, 1), intercept, np.float32)
    arrays["action.weight"] = np.ones((2, 1, 1), np.float32)
    outcome = Outcome(arrays, OutcomeScaling(np.zeros(2), np.ones(2), np.zeros(1), np.ones(1)))
    return dataclasses.replace(ensemble, outcomes={"terminated": outcome})


def test_a_good_risk_is_not_doubted(risky):
    """It expects as many ends on held-out rows as there are, and tells them, although it never reaches one half."""
    log, ensemble = risky
    _, held_out = split(log.num_transitions, 0.2, 0)
    found, true = ensemble.provenance, np.where(log.next_observations[:, 0] > 0.5, 0.25, 0.02)
    ends = found["terminations_held_out"]
    assert ends == log.terminated[held_out].sum() and found["terminations_missed"] == 1
    assert found["terminations_expected"] == pytest.approx(true[held_out].sum(), rel=0.15)
    assert f", ends {ends}, expected {found['terminations_expected']:.1f}" in repr(ensemble)

    def entropy(risk):
        return -np.where(log.terminated[held_out], np.log(risk), np.log(1 - risk)).mean()

    best = 1 - entropy(true[held_out]) / entropy(log.terminated.mean())
    assert found["termination_skill"] == pytest.approx(best, abs=0.05) and best > 0.1


def test_simulated_episodes_last_as_long_as_logged_ones(risky):
    """In generated logs, in many environments and in one; the seed decides."""
    log, ensemble = risky
    logged = log.episode_lengths.mean()
    made = generate(ensemble, agents=range(10), episodes_per_agent=40, policy="random", progress=False)
    assert made.episode_lengths.mean() == pytest.approx(logged, rel=0.2)
    again = generate(ensemble, agents=range(10), episodes_per_agent=40, policy="random", progress=False)
    np.testing.assert_array_equal(made.terminated, again.terminated)
    env = PersonalizedVectorEnv(ensemble, 50, agent=3)
    assert vector_lengths(env) == pytest.approx(logged, rel=0.2)
    assert vector_lengths(env) == vector_lengths(env) != vector_lengths(env, seed=1)
    lengths = single_lengths(PersonalizedEnv(ensemble, 3), 100)
    assert np.mean(lengths) == pytest.approx(logged, rel=0.2)
    assert single_lengths(PersonalizedEnv(ensemble, 3), 10) == lengths[:10]


def vector_lengths(env, seed=0, steps=200):
    """Return the mean length of episodes in all copies: steps, but for those that reset one, for each end."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    ends = 0
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(rng.integers(2, size=env.num_envs))
        ends += (terminated | truncated).sum()
    return (steps * env.num_envs - ends) / ends


def single_lengths(env, episodes):
    """Return the lengths of so many episodes."""
    rng, lengths = np.random.default_rng(0), []
    for episode in range(episodes):
        env.reset(seed=0 if episode == 0 else None)
        lengths.append(0)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(rng.integers(2))
            lengths[-1] += 1
            over = terminated or truncated
    return lengths


def test_a_sharp_region_ends_episodes_exactly_there():
    """Probabilities of 0.00005 before and 0.99995 after the edge at 3.25 are taken for 0 and 1."""
    ensemble = walk(40.0, -130.0, max_episode_steps=400)
    near = np.array([[3.0, 0.0], [3.25, 0.0], [3.5, 0.0]])
    assert ensemble.simulator(0).task.terminated.probability(near).tolist() == [0.0, 0.5, 1.0]
    log = generate(ensemble, agents=[0, 1, 2], episodes_per_agent=100, policy="random", progress=False)
    np.testing.assert_array_equal(log.terminated, log.next_observations[:, 0] > 3.25)
    assert log.terminated.sum() > 200
    vector = PersonalizedVectorEnv(ensemble, 200, agent=0, autoreset_mode="same_step")
    single = PersonalizedEnv(ensemble, 1)
    vector.reset(seed=0)
    for climb in range(1, 8):
        terminated = vector.step(np.full(200, 2))[2]
        assert (terminated == (climb / 2 > 3.25)).all()
    for seed in range(50):
        single.reset(seed=seed)
        assert [single.step(2)[2] for _ in range(4)] == [False, False, False, True]


def test_planners_weigh_with_survival():
    """With a risk of 0.1 a step, rewards of 1 are worth 1 + 0.9 + 0.81 + …; random shooting and value iteration."""
    ensemble = walk(0.0, np.log(0.1 / 0.9), reward=lambda s, a, n: 0 * n[..., 0] + 1.0)
    simulator, expected = ensemble.simulator(1), (1 - 0.9**8) / 0.1
    actions = np.random.default_rng(0).integers(3, size=(1, 5, 8))
    for propagation in ("per_member", "mean_state"):
        returns = simulated_returns(simulator, np.zeros((1, 2)), propagation=propagation)(np.array([0]), actions)
        np.testing.assert_allclose(returns, expected, rtol=1e-5)
    agent = ValueIterationAgent(simulator, points=3, bounds=([-5, 0], [5, 1]), max_sweeps=8)
    np.testing.assert_allclose(agent.value_function.values, expected, rtol=1e-5)


def test_a_given_rule_draws_nothing():
    """Its environments' random numbers are what they were."""
    rng = np.random.default_rng(0)
    states = np.array([[3.0, 0.0], [5.0, 0.0]])
    assert ended(walk_task(goal=4.0), states, rng).tolist() == [False, True]
    assert rng.random() == np.random.default_rng(0).random()
