"""Warnings of what a log cannot teach: actions that no row has, and coordinates that wrap around."""

import numpy as np
import pytest
from gymnasium import spaces

import persim_gym
from persim_gym.log_warnings import jumping


def rotation(wrapped):
    """Angle and angular velocity (rad, rad/s) of 20 pendulums of 100 steps that are turned at random."""
    rng, states = np.random.default_rng(0), []
    for _ in range(20):
        angle, velocity = rng.uniform(-3, 3), rng.normal()
        for _ in range(101):
            states.append((angle, velocity))
            velocity = 0.97 * velocity + rng.choice([-0.1, 0.1])
            angle = angle + 0.5 * velocity
            angle = (angle + np.pi) % (2 * np.pi) - np.pi if wrapped else angle
    states = np.array(states, np.float32).reshape(20, 101, 2)
    return states[:, :-1].reshape(-1, 2), states[:, 1:].reshape(-1, 2)


def test_what_wraps_and_what_does_not():
    """An angle does; not an angle that is counted on, flags, scores, resets to a middle value, or noise."""
    assert jumping(*rotation(wrapped=True))[1].tolist() == [True, False]
    assert jumping(*rotation(wrapped=False))[1].tolist() == [False, False]
    hours = np.arange(2000)[:, None] % 24
    assert jumping(hours[:-1], hours[1:])[1].all()
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=2000))
    others = np.stack(
        [rng.integers(0, 2, 2000), rng.integers(0, 5, 2000), rng.normal(size=2000), walk, np.full(2000, 3.0)], axis=1
    )
    assert not jumping(others[:-1], others[1:])[1].any()


@pytest.mark.parametrize("task", ["MountainCar", "CartPole"])
def test_the_built_in_tasks_do_not_wrap(task):
    log = persim_gym.collect(task, num_agents=20, seed=0)
    assert not jumping(log.observations, log.next_observations)[1].any()


def fitted(log, actions):
    """One epoch on a log of angles and velocities."""
    task = persim_gym.Task(
        name="Turn",
        observation_space=spaces.Box(-np.inf, np.inf, (2,)),
        action_space=spaces.Discrete(actions),
        max_episode_steps=100,
        reward=lambda observations, actions, next_observations: next_observations[..., 0] * 0,
        terminated=lambda next_observations: next_observations[..., 0] > 1e9,
        observation_names=("angle", "velocity"),
    )
    return persim_gym.fit(log, task=task, epochs=1, validation_fraction=0, progress=False)


def turning(wrapped):
    """The log of `rotation`, with actions 0 and 2."""
    before, after = rotation(wrapped)
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(20), 100),
        observations=before,
        actions=np.arange(len(before)) % 2 * 2,
        next_observations=after,
    )


def test_fit_warns_of_angles():
    with pytest.warns(RuntimeWarning) as caught:
        fitted(turning(wrapped=True), 3)
    assert sum("angle jumps by about its whole range in" in str(warning.message) for warning in caught) == 1
    assert not any("velocity" in str(warning.message) for warning in caught)


def test_fit_warns_of_actions_that_no_row_has():
    with pytest.warns(RuntimeWarning, match=r"no row of the log has action 1, 3 \(2 of 4\)"):
        fitted(turning(wrapped=False), 4)
