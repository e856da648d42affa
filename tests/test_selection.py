"""Keeping the members that follow the log best when they run freely."""

import dataclasses

import numpy as np
from support import reference_changes

from persim_gym import PerSimConfig, Trajectories, fit
from persim_gym.training.selection import _segments, best_members, free_running_errors


def test_free_running_errors(cart_pole, cart_pole_log):
    """Episodes of at most 50 steps are whole segments: the root mean squared standardized error, member by member."""
    assert cart_pole_log.episode_lengths.max() <= 50
    scale = cart_pole_log.observations.astype(np.float64).std(0)
    expected = np.zeros(cart_pole.num_members)
    for agent, start, end in zip(
        cart_pole_log.episode_agents, cart_pole_log.episode_starts, cart_pole_log.episode_ends, strict=True
    ):
        for member in range(cart_pole.num_members):
            state, squared = cart_pole_log.observations[start].astype(np.float64), []
            alone = cart_pole.with_members([member])
            for row in range(start, end):
                state = state + reference_changes(alone, agent, [state], [cart_pole_log.actions[row]])[0, 0]
                squared.append(((state - cart_pole_log.next_observations[row]) / scale) ** 2)
            expected[member] += np.sqrt(np.mean(squared)) / cart_pole_log.num_episodes
    np.testing.assert_allclose(free_running_errors(cart_pole, cart_pole_log), expected, rtol=1e-3)


def test_the_best_members_stay(cart_pole, cart_pole_log):
    """A member that diverges after the end of every episode is as good as before; one that does so within is last."""
    spoiled = {name: np.array(array) for name, array in cart_pole.parameters.items()}
    spoiled["state.1.bias"][2] += 1e30
    ensemble = dataclasses.replace(cart_pole, parameters=spoiled)
    errors = free_running_errors(ensemble, cart_pole_log)
    assert errors.argmax() == 2 and np.isfinite(np.delete(errors, 2)).all()
    kept = best_members(ensemble, cart_pole_log, 2)
    best = sorted(np.argsort(errors)[:2])
    np.testing.assert_array_equal(kept.parameters["state.0.weight"], cart_pole.parameters["state.0.weight"][best])


def test_what_follows_a_segment_is_not_scored(cart_pole):
    """A single step beside a long episode, with a member that overflows only later: its error is that of the step."""
    rows, start = 40, np.full((1, 4), 0.01)
    log = Trajectories.from_arrays(
        agents=[0] + [1] * rows,
        observations=np.tile(start, (rows + 1, 1)) + np.arange(rows + 1)[:, None],
        actions=np.zeros(rows + 1, int),
        next_observations=np.tile(start, (rows + 1, 1)),
        agent_labels=cart_pole.agent_labels[:2],
    )
    # Agent 0 multiplies its state at every step and overflows before step 40; agent 1 stands still.
    grow = {name: np.zeros_like(array[:1]) for name, array in cart_pole.parameters.items()}
    grow["agent.weight"][0, 0] = 1.0
    grow["action.weight"][:] = 1.0
    grow["state.0.weight"][0, :4] = np.eye(4)
    rank = cart_pole.config.rank
    for coordinate in range(4):
        grow["state.1.weight"][0, coordinate * rank, coordinate] = 1e3
    growing = dataclasses.replace(
        cart_pole,
        parameters=grow,
        config=cart_pole.config.with_changes(num_members=1),
        agent_labels=cart_pole.agent_labels,
    )
    first = growing.simulator(0).step(log.observations[:1], [0]).next_observations[0] - log.next_observations[0]
    scale = log.observations.astype(np.float64).std(0)
    still = log.observations[1] - log.next_observations[1:]
    expected = 0.5 * (np.sqrt(np.mean((first / scale) ** 2)) + np.sqrt(np.mean((still / scale) ** 2)))
    np.testing.assert_allclose(free_running_errors(growing, log), [expected], rtol=1e-3)


def test_fit_keeps_the_best_of_the_candidates(cart_pole_log):
    """Of four members trained together, the two best of them, to the bit."""
    config = PerSimConfig(
        rank=3, state_hidden=(8,), num_members=4, epochs=10, batch_size=64, normalize=False, halve_learning_rate_every=0
    )
    everyone = fit(cart_pole_log, config=config, validation_fraction=0, progress=False)
    chosen = config.with_changes(num_members=2, num_candidates=4)
    kept = fit(cart_pole_log, config=chosen, validation_fraction=0, progress=False)
    best = sorted(np.argsort(free_running_errors(everyone, cart_pole_log))[:2])
    assert kept.num_members == 2
    for name, array in everyone.parameters.items():
        np.testing.assert_array_equal(kept.parameters[name], array[best])


def test_few_long_episodes_have_several_segments():
    """None overlaps another or leaves its episode, other draws are elsewhere, and all of them are at most 512."""
    log = log_of_episodes([230, 20, 49, 1000])
    found, other = (_segments(log, np.random.default_rng(seed)) for seed in (0, 1))
    assert found.lengths.tolist() == [50] * 4 + [20, 49] + [50] * 20
    assert (found.starts[1:] >= (found.starts + found.lengths)[:-1]).all()
    for start, end, count in zip(log.episode_starts, log.episode_ends, (4, 1, 1, 20), strict=True):
        assert ((found.starts >= start) & (found.starts + found.lengths <= end)).sum() == count
    assert (found.starts[:4] != other.starts[:4]).any()
    assert len(_segments(log_of_episodes([600] * 100), np.random.default_rng(0)).starts) == 500


def test_many_episodes_have_a_segment_each():
    """Its start is drawn from all that leave room for the segment."""
    lengths = np.random.default_rng(0).integers(1, 120, 257)
    log = log_of_episodes(lengths)
    found = _segments(log, np.random.default_rng(0))
    room = lengths - np.minimum(lengths, 50)
    expected = log.episode_starts + np.random.default_rng(0).integers(0, room + 1)
    np.testing.assert_array_equal(found.starts, expected)


def log_of_episodes(lengths):
    """Episodes of agents of their own, all at rest."""
    rows = int(np.sum(lengths))
    return Trajectories.from_arrays(
        agents=np.repeat(np.arange(len(lengths)), lengths),
        observations=np.zeros((rows, 1)),
        actions=np.zeros(rows, int),
        next_observations=np.zeros((rows, 1)),
    )


def test_only_the_rows_asked_for_are_scored(cart_pole, cart_pole_log):
    """What is wrong in the others makes no difference, and where they begin and end does not either."""
    held_out = np.arange(1, cart_pole_log.num_transitions, 3)
    kept = np.setdiff1d(np.arange(cart_pole_log.num_transitions), held_out)
    before = free_running_errors(cart_pole, cart_pole_log, rows=kept)
    states = cart_pole_log.next_observations.copy()
    states[held_out] += 1.0
    spoiled = dataclasses.replace(cart_pole_log, next_observations=states)
    np.testing.assert_array_equal(free_running_errors(cart_pole, spoiled, rows=kept), before)
    assert (free_running_errors(cart_pole, spoiled) > 2 * before).all()
