"""Value iteration against problems with a known solution, and in the real MountainCar."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from support import random_ensemble

from persim_gym import Ensemble, PerSimConfig, get_task
from persim_gym.errors import InvalidArgumentError, InvalidStateError, NonFiniteReturnError
from persim_gym.evaluation.returns import run_episodes
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.parameters import parameter_shapes
from persim_gym.planning.value_iteration import Grid, ValueIterationAgent, make_grid, simulated_step, value_iteration
from persim_gym.tasks import PlanningObjective


def grid_of(*shape, low=0.0, high=1.0):
    return Grid(np.full(len(shape), low), np.full(len(shape), high), shape)


@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 4, 2)])
def test_interpolation_is_exact_for_multilinear_functions(shape):
    grid = grid_of(*shape, low=-1.0, high=2.0)
    states = np.random.default_rng(0).uniform(-1, 2, (100, len(shape)))
    points, weights = grid.corners(states)
    values = (1 + grid.points).prod(axis=1)
    assert np.allclose((weights * values[points]).sum(axis=0), (1 + states).prod(axis=1), atol=1e-5)
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-6)


def test_states_outside_count_as_the_nearest_of_the_box():
    grid = grid_of(5, 5)
    points, weights = grid.corners(np.array([[-3.0, 0.5], [2.0, 9.0]]))
    nearest = (weights[..., None] * grid.points[points]).sum(axis=0)
    assert np.allclose(nearest, [[0.0, 0.5], [1.0, 1.0]])


def test_steps_to_the_end_of_a_corridor():
    # One coordinate, moves of ±0.1, reward −1 a step, the end is at 0: −V is the number of steps, at most 10.
    objective = PlanningObjective(lambda s, a, n: 0 * n[..., 0] - 1.0, lambda n: n[..., 0] <= 0.05)
    found = value_iteration(
        lambda states, action: states + (0.1, -0.1)[action], num_actions=2, objective=objective, grid=grid_of(11)
    )
    assert np.allclose(found.values, -np.arange(11), atol=1e-4)
    assert found.action_values(np.array([[0.5]])).argmax(axis=0).tolist() == [1]
    assert found.sweeps <= 12 and found.change <= 1e-3


def test_the_tolerance_is_in_units_of_the_rewards():
    """Small or large, they are planned for as those of ±1."""
    for scale in (1e-5, 1.0, 1e5):
        objective = PlanningObjective(lambda s, a, n, scale=scale: 0 * n[..., 0] - scale, lambda n: n[..., 0] <= 0.05)
        found = value_iteration(
            lambda states, action: states + (0.1, -0.1)[action], num_actions=2, objective=objective, grid=grid_of(11)
        )
        assert np.allclose(found.values / scale, -np.arange(11), atol=1e-4) and found.sweeps == 11


def test_discounted_return_of_a_constant_reward():
    objective = PlanningObjective(lambda s, a, n: 0 * n[..., 0] + 1.0)
    found = value_iteration(
        lambda states, action: states, num_actions=1, objective=objective, grid=grid_of(3), discount=0.9, tolerance=1e-5
    )
    assert np.allclose(found.values, 10.0, atol=1e-3)


def test_no_more_sweeps_than_steps_in_an_episode():
    objective = PlanningObjective(lambda s, a, n: 0 * n[..., 0] - 1.0)
    found = value_iteration(
        lambda states, action: states, num_actions=1, objective=objective, grid=grid_of(3), max_sweeps=7
    )
    assert found.sweeps == 7 and np.allclose(found.values, -7.0)


def test_a_model_that_diverges_is_no_model():
    objective = PlanningObjective(lambda s, a, n: 0 * n[..., 0] - 1.0)
    with pytest.raises(NonFiniteReturnError, match="diverges"):
        value_iteration(lambda s, action: s * np.nan, num_actions=1, objective=objective, grid=grid_of(3))


def test_a_reward_that_is_not_a_number_is_no_reward():
    objective = PlanningObjective(lambda s, a, n: n[..., 0] * np.nan)
    with pytest.raises(NonFiniteReturnError, match="the reward of some states of the grid is not a finite number"):
        value_iteration(lambda s, action: s, num_actions=1, objective=objective, grid=grid_of(3))


def test_mountain_car_is_solved():
    # The optimum on a 601 × 561 grid, measured with another implementation: −44.6, −96.7, −118.3.
    task = get_task("MountainCar")
    for gravity, optimum in ((0.0001, -44.6), (0.0025, -96.7), (0.0035, -118.3)):
        system = task.system(np.full((10, 1), gravity))
        agent = ValueIterationAgent(system, task=task, points=(151, 141))
        returns, _ = run_episodes(task, agent, system, np.random.default_rng(1))
        assert returns.mean() == pytest.approx(optimum, abs=6)


def test_the_environment_of_an_agent_is_accepted_and_one_observation_too():
    env = gym.make("Heterogeneous-MountainCar-v0", gravity=0.001)
    observation, _ = env.reset(seed=0)
    agent = ValueIterationAgent(env, points=(31, 29))
    action, state = agent.predict(observation)
    assert state is None and np.ndim(action) == 0
    assert env.action_space.contains(action)
    assert np.array_equal(env.unwrapped.system.observe()[0].astype(np.float32), observation)  # planning moved nothing


def ensemble_of(task):
    """Return an ensemble with random parameters."""
    config = PerSimConfig(rank=2, state_hidden=(8,), num_members=3, normalize=False)
    shapes = parameter_shapes(
        config, num_agents=2, observation_size=task.observation_size, action_size=task.action_size, discrete=True
    )
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, (shape, _) in shapes.items()}
    initial = np.zeros((1, task.observation_size), np.float32)
    return Ensemble(task, config, parameters, Normalizer.identity(task.observation_size), ("a", "b"), initial)


def test_the_simulated_step_is_the_mean_of_the_members():
    simulator = ensemble_of(get_task("MountainCar")).simulator("b")
    states = np.random.default_rng(1).uniform(-0.05, 0.05, (20_000, 2))
    expected = simulator.step(states, np.full(len(states), 2)).next_observations
    assert np.allclose(simulated_step(simulator)(states, 2), expected, atol=1e-6)
    agent = ValueIterationAgent(simulator, points=9, max_sweeps=5)
    assert agent.predict(np.zeros((3, 2)))[0].shape == (3,)


def test_it_plans_as_far_ahead_as_an_episode_lasts():
    """Where every step costs 1 and nothing ends an episode, the values are its length."""
    task = dataclasses.replace(
        get_task("MountainCar"), name="Short", max_episode_steps=7, terminated=lambda states: states[..., 0] > 1e9,
        reward=lambda states, actions, reached: 0 * reached[..., 0] - 1.0,
    )  # fmt: skip
    found = ValueIterationAgent(ensemble_of(task).simulator(0), points=3).value_function
    assert found.sweeps == 7 and np.allclose(found.values, -7)


def test_the_grid_is_the_tasks_own_where_it_names_one():
    task = get_task("CartPole")
    assert (make_grid(task).low.tolist(), make_grid(task).high.tolist()) == tuple(map(list, task.grid_bounds))
    assert make_grid(task, bounds=([-1] * 4, [1] * 4)).high.tolist() == [1] * 4


def test_what_cannot_be_planned_says_why():
    simulator = ensemble_of(get_task("CartPole")).simulator(0)
    with pytest.raises(InvalidArgumentError, match="does not bound velocity, angular velocity; give bounds"):
        make_grid(dataclasses.replace(get_task("CartPole"), grid_bounds=None))
    with pytest.raises(InvalidArgumentError, match="at least 2 a coordinate and at most 2,000,000 in all"):
        make_grid(get_task("MountainCar"), points=1)
    with pytest.raises(InvalidStateError, match="finite"):
        ValueIterationAgent(gym.make("Heterogeneous-MountainCar-v0"), points=5, max_sweeps=1).predict([np.nan, 0.0])
    with pytest.raises(InvalidArgumentError, match="low below high"):
        make_grid(get_task("MountainCar"), bounds=([0.0, 0.0], [0.0, 1.0]))
    with pytest.raises(InvalidArgumentError, match="discrete actions"):
        ValueIterationAgent(gym.make("Heterogeneous-HalfCheetah-v0"))
    with pytest.raises(InvalidArgumentError, match="give a simulator"):
        ValueIterationAgent(object())
    with pytest.raises(InvalidArgumentError, match="the simulator has 2"):
        simulated_step(ensemble_of(get_task("CartPole")).simulator(agents=[0, 1]))
    for setting, wrong in (
        ("discount", 0.0), ("discount", 1.1), ("tolerance", -1.0), ("max_sweeps", 0), ("max_sweeps", 2.5),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match=rf"{setting}={wrong}"):
            ValueIterationAgent(simulator, points=3, bounds=([-1] * 4, [1] * 4), **{setting: wrong})
    agent = ValueIterationAgent(simulator, points=3, bounds=([-1] * 4, [1] * 4), max_sweeps=2)
    with pytest.raises(InvalidStateError, match=r"shape \(E, 4\); got shape \(3, 2\)"):
        agent.predict(np.zeros((3, 2)))


def test_points_as_a_list_or_an_array():
    """One number for all coordinates, or one each, as Python's numbers or NumPy's."""
    task = get_task("MountainCar")
    for points in (5, np.int64(5), [5, 5], np.array([5, 5])):
        assert make_grid(task, points=points, bounds=([-1, -1], [1, 1])).shape == (5, 5)


def test_no_observations_no_actions():
    ensemble = random_ensemble("MountainCar")
    agent = ValueIterationAgent(ensemble.simulator(0), points=5)
    assert agent.predict(np.zeros((0, 2)))[0].shape == (0,)
    with pytest.raises(InvalidArgumentError, match="objective=5 must be a"):
        ValueIterationAgent(ensemble.simulator(0), points=5, objective=5)
