"""Prediction error and returns against slow implementations, perfect simulators and worked cases."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces
from support import SMALL, perfect_walk_ensemble, random_ensemble, reference_changes, walk_task
from test_tasks import gymnasium_cart_pole

from persim_gym import (
    Ensemble,
    MPCAgent,
    get_task,
    mpc_returns,
    policy_returns,
    prediction_error,
    true_mpc_returns,
    value_iteration_returns,
)
from persim_gym.collection.policies import as_policy
from persim_gym.errors import InvalidActionError, InvalidArgumentError, PerSimError, UnknownNameError
from persim_gym.evaluation.prediction import mean_predictor_errors, trajectory_scores
from persim_gym.evaluation.records import to_records
from persim_gym.evaluation.returns import run_episodes
from persim_gym.plotting import plot_frames
from persim_gym.registration import find_model
from persim_gym.tasks.cart_pole import dynamics
from persim_gym.tasks.equations import EquationSystem

STARTS = np.random.default_rng(7).uniform(-0.05, 0.05, (6, 4))


def balance(observations):
    """Push to where the pole leans, which keeps it up for a while."""
    return (np.asarray(observations)[:, 2] > 0.02).astype(int)


@pytest.fixture
def cart_pole_from_known_starts():
    """Random weights, in a CartPole whose six episodes always begin in `STARTS`."""

    def initial_observations(rng, count):
        return STARTS[:count].copy()

    task = dataclasses.replace(
        get_task("CartPole"),
        initial_observations=initial_observations,
        make_system=lambda covariates: EquationSystem(dynamics, initial_observations, covariates),
    )
    ensemble = random_ensemble(task, SMALL, num_agents=5, step_size=0.02)
    return dataclasses.replace(ensemble, covariates=np.array(task.test_agents))


def slow_prediction_error(ensemble, agent, aggregate):
    """Section 4 of the specification, one episode, one member and one step at a time; RMSE and R² of each episode."""
    results = []
    for start in STARTS:
        states, actions, over = [start], [], False
        while len(states) < 61 and not over:
            actions.append(int(balance(np.float32(states[-1][None]))[0]))
            after, _, over = gymnasium_cart_pole(states[-1], actions[-1], *ensemble.covariates[agent])
            states.append(after)
        assert len(states) > 12
        predicted = []
        for member in range(ensemble.num_members):
            alone, current, path = ensemble.with_members([member]), None, {}
            for index in range(1, len(states)):
                current = states[index - 1] if index <= 10 else current
                current = current + reference_changes(alone, agent, [current], [actions[index - 1]])[0, 0]
                path[index] = current
            predicted.append([path[index] for index in range(10, len(states))])
        predicted = (np.mean if aggregate == "mean" else np.median)(predicted, axis=0)
        true = np.array(states[10:])
        rmse = np.sqrt(np.mean((true - predicted) ** 2))
        variances = np.array([np.var(true[:, d]) for d in range(4)])
        r2 = np.array([1 - np.mean((true[:, d] - predicted[:, d]) ** 2) / variances[d] for d in range(4)])
        results.append((rmse, np.average(r2, weights=variances), len(states)))
    return np.array(results)


@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_prediction_error_is_the_specifications(cart_pole_from_known_starts, aggregate):
    """For agents whose episodes end at different steps, some before index 60, some not."""
    rows = prediction_error(
        cart_pole_from_known_starts, policy=balance, agents=[0, 1, "agent 3"], episodes=len(STARTS), aggregate=aggregate
    )
    lengths = []
    for agent, row in zip((0, 1, 3), rows, strict=True):
        expected = slow_prediction_error(cart_pole_from_known_starts, agent, aggregate)
        assert row.rmse == pytest.approx(expected[:, 0].mean(), rel=1e-3)
        assert row.rmse_std == pytest.approx(expected[:, 0].std(), rel=1e-2, abs=1e-6)
        assert row.rmse_median == pytest.approx(np.median(expected[:, 0]), rel=1e-3)
        assert row.r2 == pytest.approx(np.median(expected[:, 1]), rel=1e-3)
        assert (row.agent, row.episodes, row.redrawn) == (f"agent {agent}", 6, 0)
        assert row.covariates == get_task("CartPole").test_agents[agent]
        lengths.extend(expected[:, 2])
    assert min(lengths) < 61 == max(lengths)


def test_a_perfect_simulator_has_no_error():
    """RMSE 0 and R² 1 along a walk; with another agent's covariates as the truth, an error of known size."""
    ensemble = perfect_walk_ensemble(walk_task(limit=100))
    for row in prediction_error(ensemble, policy=lambda observations: np.full(len(observations), 2), episodes=3):
        assert row.rmse == pytest.approx(0, abs=1e-4) and row.r2 == pytest.approx(1, abs=1e-6)
    (row,) = prediction_error(
        ensemble,
        policy=lambda observations: np.full(len(observations), 2),
        agents=["0"],
        episodes=2,
        covariates={"0": [2.0]},
    )
    # The truth moves by 2, the simulator by 0.5; after k free steps it is 1.5·k behind in one of two coordinates.
    assert row.rmse == pytest.approx(np.sqrt(np.mean(np.square(1.5 * np.arange(1, 52))) / 2), rel=1e-5)


def test_short_episodes_are_drawn_again():
    """Starting next to the goal, an episode has nothing to score; half of them do, and they are counted."""
    task = walk_task(goal=30.0, limit=100)

    def initial_observations(rng, count):
        return np.stack([np.where(rng.random(count) < 0.5, 0.0, 25.0), np.zeros(count)], axis=1)

    make_system = task.make_system

    def far_or_near(covariates):
        system = make_system(covariates)
        system._initial_observations = initial_observations
        return system

    ensemble = perfect_walk_ensemble(dataclasses.replace(task, make_system=far_or_near))
    (row,) = prediction_error(
        ensemble, policy=lambda observations: np.full(len(observations), 2), agents=[1], episodes=40
    )
    assert row.episodes == 40 and 15 < row.redrawn < 80
    assert row.rmse == pytest.approx(0, abs=1e-4)


def test_an_episode_is_scored_that_lasts_to_index_12():
    """One state from index 10 on would have no variance, two are enough: the walk that ends a step earlier is not."""
    measure = partial(prediction_error, policy=lambda observations: np.full(len(observations), 2), agents=[1])
    (row,) = measure(perfect_walk_ensemble(walk_task(start=18.0, goal=30.0, limit=100)), episodes=2)
    assert row.redrawn == 0 and row.rmse == pytest.approx(0, abs=1e-4)
    with pytest.raises(PerSimError, match="end before step 12"):
        measure(perfect_walk_ensemble(walk_task(start=19.0, goal=30.0, limit=100)), episodes=2)


def test_scores_equal_scikit_learns():
    """R² weighted by variance and RMSE over the valid part of each trajectory; what comes after it does not count."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true = np.cumsum(rng.normal(size=(5, 20, 3)), axis=1) * [1, 5, 0.1]
    predicted = true + rng.normal(size=true.shape)
    lengths = [20, 15, 8, 3, 2]
    valid = np.arange(20) < np.array(lengths)[:, None]
    predicted[1, 15:] = 1e6
    rmse, r2 = trajectory_scores(true, predicted, valid)
    for row, length in enumerate(lengths):
        pair = true[row, :length], predicted[row, :length]
        assert r2[row] == pytest.approx(metrics.r2_score(*pair, multioutput="variance_weighted"))
        assert rmse[row] == pytest.approx(metrics.mean_squared_error(*pair) ** 0.5)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_comes_after_the_end_does_not_count(broken):
    """Not even a prediction that has diverged by then."""
    true = np.array([[[0.0], [1.0], [2.0], [3.0]]])
    predicted = np.array([[[0.5], [1.5], [broken], [broken]]])
    rmse, r2 = trajectory_scores(true, predicted, np.array([[True, True, False, False]]))
    np.testing.assert_allclose(rmse, [0.5])
    np.testing.assert_allclose(r2, [1 - 0.5 / 0.5])


def test_returns_of_policies():
    """An idle MountainCar earns −500 in 500 steps; a CartPole earns its length; random ones differ by seed."""
    car = dataclasses.replace(
        random_ensemble("MountainCar", num_agents=5), covariates=np.array(get_task("MountainCar").test_agents)
    )
    (row,) = policy_returns(car, lambda observations: np.ones(len(observations), int), agents=[3], episodes=3)
    assert (row.mean, row.std, row.length, row.episodes) == (-500.0, 0.0, 500.0, 3)
    assert row.covariates == (0.0025,)


def test_returns_equal_single_episodes(cart_pole_from_known_starts):
    """Each episode of the lockstep run, played alone in Gymnasium's CartPole."""
    rows = policy_returns(cart_pole_from_known_starts, balance, episodes=len(STARTS))
    assert [row.agent for row in rows] == [f"agent {agent}" for agent in range(5)]
    for row, covariates in zip(rows, get_task("CartPole").test_agents, strict=True):
        lengths = []
        for start in STARTS:
            state, over, length = start, False, 0
            while not over and length < 200:
                state, _, over = gymnasium_cart_pole(state, balance(np.float32(state[None]))[0], *covariates)
                length += 1
            lengths.append(length)
        assert (row.mean, row.length) == (np.mean(lengths), np.mean(lengths))
        assert row.std == pytest.approx(np.std(lengths))
    assert len({row.mean for row in rows}) == 5


def test_mpc_in_a_perfect_simulator_equals_mpc_in_the_true_system():
    """The walk home: the same plans, the same returns, of a closed form; and better than random."""
    ensemble = perfect_walk_ensemble(walk_task(start=4.0, limit=10))
    settings = {"episodes": 2, "horizon": 4, "num_candidates": 300}
    learned, true = mpc_returns(ensemble, **settings), true_mpc_returns(ensemble, **settings)
    for row, perfect, speed in zip(learned, true, (0.5, 1.0, 2.0), strict=True):
        assert (row.mean, row.std, row.length) == (perfect.mean, perfect.std, perfect.length)
        best = -sum(max(4.0 - speed * step, 0) for step in range(1, 11))
        assert row.mean == pytest.approx(best, abs=1e-5) and row.length == 10
    random = policy_returns(ensemble, "random", episodes=2)
    assert all(bad.mean < good.mean for bad, good in zip(random, learned, strict=True))


def test_the_seed_decides_where_episodes_begin():
    """Of a policy that draws nothing itself."""
    ensemble = dataclasses.replace(
        random_ensemble("CartPole", num_agents=5), covariates=np.array(get_task("CartPole").test_agents)
    )
    for measure in (partial(policy_returns, ensemble, balance), partial(prediction_error, ensemble, policy=balance)):
        one, again, other = (measure(agents=[1], episodes=3, seed=seed) for seed in (0, 0, 1))
        assert one == again != other


def test_every_agent_has_random_numbers_of_its_own():
    """Of twins, alike in the model and in truth: what is drawn for one says nothing of the other."""
    walkers, planner = perfect_walk_ensemble(walk_task(limit=10), (1.0, 1.0)), {"horizon": 3, "num_candidates": 2}
    poles = random_ensemble("CartPole", SMALL, num_agents=2, step_size=0.02)
    alike = {**poles.parameters, "agent.weight": poles.parameters["agent.weight"][:, [0, 0]]}
    poles = dataclasses.replace(poles, parameters=alike, covariates=np.tile([10.0, 0.5], (2, 1)))
    for rows in (
        policy_returns(walkers, "random", episodes=4),
        mpc_returns(walkers, episodes=4, **planner),
        true_mpc_returns(walkers, episodes=4, **planner),
        policy_returns(poles, balance, episodes=4),
    ):
        assert rows[0].mean != rows[1].mean
    one, other = prediction_error(poles, policy=balance, episodes=4)
    assert one.rmse != other.rmse


def test_unknown_truth_can_be_given():
    """A log without covariates: they are asked for, by label."""
    ensemble = dataclasses.replace(perfect_walk_ensemble(walk_task()), covariates=None)
    with pytest.raises(ValueError, match="covariates"):
        policy_returns(ensemble, "random", agents=["1"], episodes=1)
    (row,) = policy_returns(ensemble, "random", agents=["1"], episodes=1, covariates={"1": [2.0]})
    assert row.covariates == (2.0,)
    common = {"agents": ["1"], "episodes": 1}
    assert policy_returns(ensemble, "random", covariates={"1": {"speed": 2}}, **common) == [row]
    planner = {"horizon": 2, "num_candidates": 5}
    for measure in (
        partial(mpc_returns, **planner),
        partial(true_mpc_returns, **planner),
        value_iteration_returns,
        partial(prediction_error, policy="random"),
    ):
        settings = {"points": 21, "bounds": ([-9, -9], [9, 9])} if measure is value_iteration_returns else {}
        named, ordered = (
            measure(ensemble, covariates={"1": given}, **common, **settings) for given in ({"speed": 2}, [2.0])
        )
        assert named == ordered and named[0].covariates == (2.0,)
    with pytest.raises(UnknownNameError, match="no covariate 'pace'"):
        policy_returns(ensemble, "random", covariates={"1": {"pace": 2}}, **common)
    with pytest.raises(InvalidArgumentError, match="lack 'speed'"):
        policy_returns(ensemble, "random", covariates={"1": {}}, **common)


def test_the_test_agents_are_measured_if_none_are_named():
    """By their covariates, wherever they stand; all agents where no test agent is among them."""
    ensemble = dataclasses.replace(
        random_ensemble("CartPole", num_agents=7),
        covariates=np.array([(7.0, 0.3), *get_task("CartPole").test_agents, (13.0, 0.7)]),
    )

    def measured(ensemble):
        return [row.agent for row in policy_returns(ensemble, balance, episodes=1)]

    assert measured(ensemble) == [f"agent {index}" for index in range(1, 6)]
    assert measured(ensemble.with_agents([6, 3, 0])) == ["agent 3"]
    assert measured(ensemble.with_agents([6, 0])) == ["agent 6", "agent 0"]


def test_rows_are_json():
    """Every number is a plain one."""
    ensemble = perfect_walk_ensemble(walk_task(limit=100))
    rows = [*prediction_error(ensemble, policy="random", episodes=2), *policy_returns(ensemble, "random", episodes=2)]
    records = json.loads(json.dumps(to_records(rows)))
    assert [record["agent"] for record in records] == ["0", "1", "2"] * 2
    assert records[0]["rmse"] == rows[0].rmse and records[3]["mean"] == rows[3].mean


def test_continuous_actions_can_be_planned_in_the_true_system():
    """A walk with pushes between −1 and 1 instead of three directions: home in four steps, then staying there."""
    task = walk_task(start=3.5, limit=8)
    continuous = dataclasses.replace(
        task,
        action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
        make_system=lambda covariates: EquationSystem(
            lambda observations, actions, speeds: observations + speeds * np.pad(np.asarray(actions), ((0, 0), (0, 1))),
            task.initial_observations,
            covariates,
        ),
    )
    system = continuous.system([[1.0], [1.0]])
    agent = MPCAgent(system, task=continuous, horizon=5, num_candidates=200, num_elites=20)
    returns, lengths = run_episodes(continuous, agent, system, np.random.default_rng(0))
    np.testing.assert_allclose(returns, -(2.5 + 1.5 + 0.5), atol=0.8)
    np.testing.assert_array_equal(lengths, [8, 8])


def test_true_and_predicted_frames(cart_pole, tmp_path):
    """A row for each agent, a column for each horizon; the picture has content."""
    pytest.importorskip("pygame")
    image = pytest.importorskip("matplotlib.image")
    path = plot_frames(cart_pole, tmp_path / "frames.png", agents=[0, 4], horizons=[1, 5])
    pixels = image.imread(path)[..., :3]
    assert pixels.shape[1] > pixels.shape[0] > 300
    assert pixels.std() > 0.02
    with pytest.raises(InvalidArgumentError, match="horizons"):
        plot_frames(cart_pole, path, agents=[0], horizons=[0])


def test_value_iteration_acts_in_the_true_system():
    """What `ValueIterationAgent` plans in a shipped simulator holds in the true MountainCar."""
    row = value_iteration_returns(Ensemble.load(find_model("MountainCar")), agents=[0], episodes=4, points=101)[0]
    assert row.policy == "value iteration in the simulator" and row.episodes == 4
    assert -50 < row.mean <= -40


def test_the_error_of_predicting_the_mean():
    """Of cars that are never pushed: their own spread over the steps 10 to 60, whatever the gravity."""
    task, gravities = get_task("MountainCar"), [(0.0005,), (0.003,)]
    found = mean_predictor_errors(
        task, policy=lambda observations: np.ones(len(observations), int), covariates=gravities, episodes=7, seed=3
    )
    for agent, gravity in enumerate(gravities):
        system = task.system(np.tile(gravity, (7, 1)))
        states = [system.reset(np.random.default_rng([3, agent]))]
        for _ in range(60):
            states.append(system.step(np.ones(7, int)))
        scored = np.stack(states)[10:]
        expected = np.sqrt(scored.var(axis=0).mean(axis=1)).mean()
        assert found[agent] == pytest.approx(expected) and expected > 1e-3


@pytest.mark.parametrize("policy", [lambda o: np.full(len(o), 7), lambda o: np.full(len(o), 0.9), lambda o: 1])
def test_actions_that_the_task_does_not_have(policy):
    """They are refused, not handed to the true system."""
    ensemble = perfect_walk_ensemble(walk_task())
    for measure in (policy_returns, lambda e, p, **k: prediction_error(e, policy=p, **k)):
        with pytest.raises(InvalidActionError, match="whole numbers from 0 to 2"):
            measure(ensemble, policy, episodes=2, agents=[0])


def test_a_reward_after_the_end_of_an_episode_does_no_harm():
    """Where the true system goes on to what is no number."""
    task = walk_task(goal=4.0)
    task = dataclasses.replace(task, reward=lambda s, a, n: np.where(n[..., 0] > 4.5, np.inf, -1.0))
    system = task.system(np.full((3, 1), 0.5))
    policy = as_policy(lambda observations: np.full(len(observations), 2), task)
    returns, lengths = run_episodes(task, policy, system, np.random.default_rng(0))
    assert np.isfinite(returns).all() and (returns == -lengths).all()


def test_covariates_given_are_checked():
    ensemble = perfect_walk_ensemble(walk_task())
    with pytest.raises(InvalidArgumentError, match="must be a finite number"):
        policy_returns(ensemble, "random", agents=[0], episodes=1, covariates={"0": [np.nan]})
    with pytest.raises(InvalidArgumentError, match="seed=-1"):
        policy_returns(ensemble, "random", agents=[0], episodes=1, seed=-1)
