"""A log before training: covariates by name, actions nobody tried, states to begin in."""

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from support import walk_task

import persim_gym
from persim_gym import Trajectories, errors
from persim_gym.baselines import fit_bcq, fit_cql, fit_morel
from persim_gym.data.log_and_task import check_log, start_states, with_task_covariates
from persim_gym.data.log_warnings import (
    _contradictory,
    jumping,
    untried_actions,
    warn_of_rewards,
    warn_of_terminal_flags,
)
from persim_gym.tasks import Covariate
from persim_gym.tasks.objective import TO_LEARN

TINY = persim_gym.PerSimConfig(rank=3, state_hidden=(4,), num_members=1, epochs=1, normalize=False)


def renamed(log, names):
    """The log with covariates of these names: of the log, or the agents' numbers."""
    own = dict(zip(log.covariate_names, log.covariates.T, strict=True))
    columns = [own.get(name, np.arange(log.num_agents)) for name in names]
    return dataclasses.replace(log, covariates=np.stack(columns, axis=1), covariate_names=tuple(names))


def test_covariates_go_by_their_names(cart_pole_log):
    swapped = renamed(cart_pole_log, ["length", "force"])
    ensemble = persim_gym.fit(swapped, config=TINY, validation_fraction=0, progress=False)
    np.testing.assert_array_equal(ensemble.covariates, cart_pole_log.covariates)
    newcomers = dataclasses.replace(swapped.select([1, 4]), agent_labels=("x", "y"))
    np.testing.assert_array_equal(
        persim_gym.personalize(ensemble, newcomers).agent_covariates("y"), cart_pole_log.covariates[4]
    )
    assert with_task_covariates(cart_pole_log, ensemble.task) is cart_pole_log


@pytest.mark.parametrize("names", [["force"], ["age", "length"]])
def test_some_covariates_missing(cart_pole_log, names):
    with pytest.raises(
        errors.InvalidDataError, match=f"covariates {', '.join(names)}, task CartPole has force, length"
    ):
        persim_gym.fit(renamed(cart_pole_log, names), config=TINY, progress=False)


def test_covariates_that_the_task_does_not_have(cart_pole_log):
    """They are left out, with the line that keeps them; what was trained generates and grows."""
    with pytest.warns(RuntimeWarning, match="no covariate 'age', so that of the log is left out"):
        kept = with_task_covariates(renamed(cart_pole_log, ["age", "length", "force"]), persim_gym.get_task("CartPole"))
    np.testing.assert_array_equal(kept.covariates, cart_pole_log.covariates)
    task = persim_gym.Task("Poles", spaces.Box(-100, 100, (4,)), spaces.Discrete(2), 200)
    aged = renamed(cart_pole_log, ["age"])
    with pytest.warns(RuntimeWarning, match=r"Covariate\('age', 0, 19, 9.5\), …"):
        ensemble = persim_gym.fit(aged, task=task, config=TINY, validation_fraction=0, progress=False)
    synthetic = persim_gym.generate(ensemble, [0], 1, "random", progress=False)
    assert ensemble.covariates is None and synthetic.covariates is None
    newcomer = dataclasses.replace(synthetic, agent_labels=("new",))
    assert persim_gym.personalize(ensemble, newcomer).num_agents == 21
    declared = dataclasses.replace(task, covariates=(Covariate("age", 0, 19, 9.5),))
    ensemble = persim_gym.fit(aged, task=declared, config=TINY, validation_fraction=0, progress=False)
    assert ensemble.agent_covariates(7).tolist() == [7.0]


def test_a_file_with_covariates_of_another_task(cart_pole, tmp_path):
    """It is damaged: no command of ours writes one."""
    dataclasses.replace(cart_pole, covariates=cart_pole.covariates[:, :1]).save(tmp_path / "other.persim")
    with pytest.raises(errors.FileFormatError, match="'covariates' is missing or has the wrong shape"):
        persim_gym.load(tmp_path / "other.persim")


def walks(actions, *, episodes=1):
    rows = len(actions) * episodes
    states = np.arange(2.0 * rows).reshape(rows, 2) / rows
    return Trajectories.from_arrays(
        agents=np.repeat(np.arange(episodes), len(actions)) % 2,
        observations=states,
        actions=np.tile(np.asarray(actions), (episodes,) + (1,) * (np.ndim(actions) - 1)),
        next_observations=states[:, ::-1],
        episode_starts=np.arange(0, rows, len(actions)),
        task="Walk",
    )


def test_actions_nobody_tried():
    log = walks([0, 0, 1, 0], episodes=2)
    with pytest.warns(RuntimeWarning, match="no row of the log has action 2: what simulators and planners do"):
        ensemble = persim_gym.fit(log, task=walk_task(), config=TINY, validation_fraction=0, progress=False)
    assert ensemble.provenance["untried_actions"] == [2]
    pushed = dataclasses.replace(walk_task(), action_space=spaces.Box(-1, 1, (2,), np.float32))
    with pytest.warns(RuntimeWarning, match="action 1 never varies"):
        assert untried_actions(walks([[0.1, 0.5], [0.2, 0.5]], episodes=2), pushed) == [1]
    assert untried_actions(walks([0, 1, 2], episodes=2), walk_task()) == []


def test_actions_beyond_their_bounds_by_rounding():
    """As much as is granted to states: a millionth of the bound, which float32 rounds large numbers by."""
    task = dataclasses.replace(walk_task(), action_space=spaces.Box(0, 1000, (1,), np.float32))
    check_log(walks(np.float32([[0.0], [1000.0001], [2.0]])), task)
    for beyond in (1000.01, -0.01):
        with pytest.raises(errors.InvalidDataError, match="in row 1 is outside the action space"):
            check_log(walks(np.float32([[0.0], [beyond], [2.0]])), task)


def flagged_walk(terminated, last=5.1):
    """Five rows of each of two agents, which come to 3.5, 4, 4.5, 5 and ``last``."""
    reached = np.array([[3.5, 0.0], [4.0, 0.0], [4.5, 0.0], [5.0, 0.0], [last, 0.0]], np.float32)
    return Trajectories.from_arrays(
        agents=np.repeat(np.arange(2), 5), observations=np.tile(reached - np.float32(0.5), (2, 1)),
        actions=np.arange(10) % 3, next_observations=np.tile(reached, (2, 1)), rewards=-np.ones(10),
        terminated=terminated, episode_starts=np.arange(10),
    )  # fmt: skip


TRUE_FLAGS = np.tile([False, False, False, True, True], 2)


@pytest.mark.parametrize("learner", ["fit", "fit_bcq", "fit_cql", "fit_morel"])
def test_flags_that_the_tasks_rule_contradicts(learner):
    """All that learns from them says which, before it begins: warnings are errors here."""
    short = {"agent": 1, "steps": 1}
    fit, more = {
        "fit": (persim_gym.fit, {"config": TINY}),
        "fit_bcq": (fit_bcq, short),
        "fit_cql": (fit_cql, short),
        "fit_morel": (fit_morel, {"agent": 1, "epochs": 1, "policy_steps": 1}),
    }[learner]
    flags = TRUE_FLAGS.copy()
    flags[[1, 2]], flags[8] = True, False
    with pytest.raises(RuntimeWarning) as told:
        fit(flagged_walk(flags), task=walk_task(goal=4.9), progress=False, **more)
    assert str(told.value) == (
        "the log's terminal flags are not what the termination rule of task Walk says: row 1 is flagged as terminated, "
        "but the rule says no of its next state (such rows: 2; if time limits ended these episodes, flag them as "
        "truncated instead); row 8 is not flagged, but the rule says yes (such rows: 1). Simulators follow the rule, "
        "BCQ and CQL the flags"
    )


def test_flags_that_say_what_the_rule_does_or_nothing():
    """A log without flags, and a rule that is to be learned, contradict nothing."""
    task = walk_task(goal=5.0)
    for flags in (TRUE_FLAGS, np.zeros(10, bool)):
        warn_of_terminal_flags(flagged_walk(flags), task)
    learned = dataclasses.replace(task, terminated=TO_LEARN, planning_objective=None)
    warn_of_terminal_flags(flagged_walk(~TRUE_FLAGS), learned)


def test_a_rule_that_says_yes_of_most_rows_of_a_log_without_flags():
    message = r"task Walk says yes in 8 of 10 rows, the first of them row 1, and the log's flags in none"
    with pytest.raises(RuntimeWarning, match=message):
        persim_gym.fit(flagged_walk(np.zeros(10, bool)), task=walk_task(goal=4.0), config=TINY, progress=False)


def test_rewards_that_the_tasks_function_contradicts():
    """Those that were rounded, or were not given, contradict nothing."""
    log, task = flagged_walk(np.zeros(10, bool)), walk_task()
    with pytest.raises(RuntimeWarning, match=r"says: -1 in row 0, where the function says -3.5 \(such rows: 10 of 10"):
        persim_gym.fit(log, task=task, config=TINY, progress=False)
    rewards = -log.next_observations[:, 0]
    warn_of_rewards(dataclasses.replace(log, rewards=rewards.astype(np.float16).astype(np.float32)), task)
    warn_of_rewards(dataclasses.replace(log, rewards=np.zeros_like(rewards)), task)
    rewards[7] += 0.5
    with pytest.warns(RuntimeWarning, match=r"-4 in row 7, where the function says -4.5 \(such rows: 1 of 10\)"):
        warn_of_rewards(dataclasses.replace(log, rewards=rewards), task)


def test_a_reward_that_is_not_a_number_of_the_logs_states():
    task = dataclasses.replace(walk_task(), reward=lambda states, actions, reached: (4.2 - reached[..., 0]) ** 0.5)
    with pytest.raises(errors.InvalidDataError, match=r"returns nan of row 2 of the log \(such rows: 6 of 10\)"):
        with np.errstate(invalid="ignore"):
            warn_of_rewards(flagged_walk(TRUE_FLAGS), task)


@pytest.mark.parametrize(("goal", "last", "reached"), [(5.1, 5.1, True), (5.3, 5.29999999, False)])
def test_flags_of_states_that_float32_has_moved_over_the_boundary(goal, last, reached):
    """They were set before the states were rounded; a state that is farther off contradicts."""
    assert (np.float32(last) >= np.float64(goal)) != reached
    flags = np.tile([False, False, False, False, reached], 2)
    states = flagged_walk(flags, last).next_observations.astype(np.float64)
    assert _contradictory(flags, states, walk_task(goal=goal)).tolist() == []
    far = walk_task(goal=goal + (1e-5 if reached else -1e-5))
    assert _contradictory(flags, states, far).tolist() == [4, 9]


def test_changes_that_float32_cannot_tell_apart():
    """Beside a clock, whose changes are alike but for rounding, of which nobody needs to hear."""
    rng, clock = np.random.default_rng(0), 0.1 * np.arange(60)
    driven = 1e6 + np.append(0, 0.0625 * rng.integers(2, size=60).cumsum())
    before = np.stack([clock, driven[:-1]], axis=1).astype(np.float32)
    after = np.stack([clock + 0.1, driven[1:]], axis=1).astype(np.float32)
    log = Trajectories.from_arrays(
        agents=np.zeros(60, int), observations=before, actions=rng.integers(3, size=60), next_observations=after
    )
    wide = dataclasses.replace(walk_task(limit=60), observation_space=spaces.Box(-1e7, 1e7, (2,), np.float32))
    with pytest.warns(RuntimeWarning, match=r"idle changes by 0\.0\d+ on average.* of values up to 1e\+06") as told:
        persim_gym.fit(log, task=wide, config=TINY, validation_fraction=0, progress=False)
    assert len(told) == 1


def test_a_rank_of_more_than_there_are_agents():
    log = walks([0, 1, 2], episodes=2)
    with pytest.raises(RuntimeWarning, match="rank=3 is more than the 2 agents of the log"):
        persim_gym.fit(log, task=walk_task(), config=TINY, rank=3, progress=False)
    persim_gym.fit(log, task=walk_task(), config=TINY, rank=2, validation_fraction=0, progress=False)


def test_another_task_of_the_same_name_is_registered(known_tasks):
    """As when a cell of a notebook is run again: the file would load with the first one's functions."""
    log, task = walks([0, 1, 2], episodes=2), walk_task()
    persim_gym.register_task(task)
    persim_gym.fit(log, task=task, config=TINY, validation_fraction=0, progress=False)
    with pytest.raises(RuntimeWarning, match=r"another task named 'Walk' is registered.*replace=True"):
        persim_gym.fit(log, task=walk_task(), config=TINY, validation_fraction=0, progress=False)


def test_episodes_begin_in_states_of_all_agents():
    """Of more episodes than are kept, not the first ones only; of fewer, all as they are."""
    log = walks([0], episodes=40)
    chosen = start_states(log, 5)
    np.testing.assert_array_equal(chosen, log.observations[[0, 9, 19, 29, 39]])
    np.testing.assert_array_equal(start_states(log, 40), log.observations)


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
