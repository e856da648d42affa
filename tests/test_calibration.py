"""Forecasts against closed forms, and intervals that cover what they promise on agents they have not seen."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import make, spaces
from support import perfect_walk_ensemble, random_actions, random_ensemble, walk_task

import persim_gym
from persim_gym import calibrate, errors, forecast, refit_factors
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.model.posterior import FactorPosterior, Prior


def walkers(*, spread=0.1, noise=0.0, agents=3, members=2):
    """Walks whose speed is known to within ``spread`` and whose every step errs by ``noise``."""
    ensemble = perfect_walk_ensemble(walk_task(), tuple(np.linspace(0.5, 2.0, agents)), members)
    prior = Prior(
        np.full((members, 1), 1.25),
        np.full((members, 1, 1), 100.0),
        np.tile([max(noise, 1e-6) ** 2, 1e-12], (members, 1)),
    )
    speeds = ensemble.agent_factors().astype(np.float64)
    information = np.full((members, agents, 1, 1), spread**-2 - 0.01)
    weighted = speeds * spread**-2 - 0.0125
    counts = np.zeros(agents, np.int64)
    return replace(ensemble, posterior=FactorPosterior(prior, information, weighted, counts))


def test_uncertainty_of_the_factor_grows_along_the_horizon():
    """x_h = h·speed: its deviation is h times the speed's. The idle coordinate has next to none."""
    found = forecast(walkers(spread=0.1), 1, np.zeros((1, 2)), np.full((1, 12), 2), draws=4000)
    np.testing.assert_allclose(found.means[0, :, 0], 1.25 * np.arange(1, 13), rtol=1e-4)
    np.testing.assert_allclose(found.standard_deviations[0, :, 0], 0.1 * np.arange(1, 13), rtol=0.05)
    assert found.standard_deviations[0, :, 1].max() < 1e-4
    width = (found.upper - found.lower)[:, 0, 9, 0] / found.standard_deviations[0, 9, 0]
    np.testing.assert_allclose(width, 2 * np.array([0.6745, 1.2816, 1.9600]), rtol=1e-3)


def test_noise_adds_up_like_independent_errors():
    found = forecast(walkers(spread=1e-4, noise=0.3), [0, 2], np.zeros((2, 2)), np.zeros((2, 9), int))
    np.testing.assert_allclose(
        found.standard_deviations[:, :, 0], np.tile(0.3 * np.sqrt(np.arange(1, 10)), (2, 1)), 0.02
    )
    assert found.means[0, 0, 0] == pytest.approx(-0.5) and found.means[1, 0, 0] == pytest.approx(-2.0)


def linear_walkers(slope, *, noise, space=1e3, agents=2):
    """Agents whose two coordinates both follow s' = slope·s + noise, with members that know that exactly."""
    config = persim_gym.PerSimConfig(rank=1, state_hidden=(1,), linear_skip=True, num_members=2, normalize=False)
    task = replace(walk_task(), observation_space=spaces.Box(-space, space, (2,), np.float32))
    ensemble = random_ensemble(task, config, num_agents=agents)
    parameters = {name: np.zeros_like(array) for name, array in ensemble.parameters.items()}
    parameters["agent.weight"][:] = parameters["action.weight"][:] = 1
    parameters["state.skip"][:] = (slope - 1) * np.eye(2, dtype=np.float32)
    prior = Prior(np.ones((2, 1)), np.full((2, 1, 1), 1e-8), np.full((2, 2), noise**2))
    known = FactorPosterior(prior, np.zeros((2, agents, 1, 1)), np.zeros((2, agents, 1)), np.zeros(agents, np.int64))
    return replace(ensemble, parameters=parameters, posterior=known)


@pytest.mark.parametrize("slope", [1.1, 0.5, 0.0])
def test_noise_goes_through_the_dynamics(slope):
    """The variance after h steps of s' = slope·s + noise is noise²·(1 + slope² + … + slope^(2h − 2))."""
    start = np.array([[1.0, -2.0], [0.0, 3.0]])
    found = forecast(linear_walkers(slope, noise=0.1), [0, 1], start, np.zeros((2, 30), int))
    variance = 0.01 * np.cumsum(slope ** (2.0 * np.arange(30)))
    expected = np.broadcast_to(np.sqrt(variance)[:, None], found.standard_deviations.shape)
    np.testing.assert_allclose(found.standard_deviations, expected, rtol=0.02)
    trend = start[:, None] * (slope ** np.arange(1.0, 31.0))[:, None]
    np.testing.assert_allclose(found.means, trend, rtol=1e-4, atol=1e-4)


def test_intervals_stay_within_the_space_where_states_do():
    ensemble = linear_walkers(0.9, noise=1.0, space=1.5)
    free = forecast(ensemble, 0, np.full((1, 2), 1.0), np.zeros((1, 20), int))
    assert free.lower.min() < -2 and free.upper.max() > 2
    kept = replace(ensemble, config=ensemble.config.with_changes(clip_states=True))
    found = forecast(kept, 0, np.full((1, 2), 1.0), np.zeros((1, 20), int))
    assert found.lower.min() == -1.5 and found.upper.max() == 1.5
    assert found.standard_deviations.max() < 1.5 < free.standard_deviations[0, -1, 0]


def test_the_centre_is_that_of_the_distribution():
    """Where training has left a factor far from its posterior, the forecast is of the posterior."""
    ensemble = walkers(spread=0.1)
    weight = ensemble.parameters["agent.weight"] + np.float32(0.8)
    found = forecast(
        replace(ensemble, parameters={**ensemble.parameters, "agent.weight": weight}),
        1, np.zeros((1, 2)), np.full((1, 4), 2),
    )  # fmt: skip
    np.testing.assert_allclose(found.means[0, :, 0], 1.25 * np.arange(1, 5), rtol=1e-4)


def test_a_step_knows_disagreement_factor_and_noise():
    """σ² = disagreement² + spread² + noise², for a step of one speed."""
    ensemble = walkers(spread=0.1, noise=0.2)
    weight = ensemble.parameters["agent.weight"].copy()
    weight[1] += 0.6  # members 0.6 apart disagree by 0.3
    ensemble = replace(ensemble, parameters={**ensemble.parameters, "agent.weight": weight})
    for simulator, states, actions in (
        (ensemble.simulator(0), np.zeros((2, 2)), np.array([2, 1])),
        (ensemble.simulator(agents=[0, 2]), np.zeros((2, 2)), np.array([2, 1])),
    ):
        step = simulator.step(states, actions, uncertainty=True)
        expected = [np.sqrt(0.3**2 + 0.1**2 + 0.2**2), 0.2]
        np.testing.assert_allclose(step.standard_deviation[:, 0], expected, rtol=1e-4)
    assert simulator.step(states, actions).standard_deviation is None


@pytest.mark.parametrize("task", ["CartPole", "HalfCheetah"])
def test_a_step_and_a_forecast_of_one_step_agree(task):
    ensemble = random_ensemble(task, num_agents=2, step_size=0.01)
    rng = np.random.default_rng(0)
    states = 0.01 * rng.normal(size=(30, ensemble.task.observation_size))
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(["agent 0", "agent 1"], 15),
        observations=states,
        actions=random_actions(ensemble.task, rng, 30),
        next_observations=states + 0.01 * rng.normal(size=states.shape),
        task=task,
    )
    ensemble = refit_factors(ensemble, log)
    actions = random_actions(ensemble.task, rng, 4, 1)
    step = ensemble.simulator(1).step(states[:4], actions[:, 0], uncertainty=True)
    found = forecast(ensemble, 1, states[:4], actions, draws=3000)
    np.testing.assert_allclose(found.means[:, 0], step.next_observations, atol=1e-6)
    np.testing.assert_allclose(found.standard_deviations[:, 0], step.standard_deviation, rtol=0.05)


def walk_log(speeds, error, seed, steps=20):
    """Walks at random of agents with these speeds, their steps disturbed by ``error``, a function of (rng, shape)."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(3, size=(len(speeds), steps))
    change = speeds[:, None] * (actions - 1) + error(rng, actions.shape)
    x = np.concatenate([np.zeros((len(speeds), 1)), np.cumsum(change, axis=1)], axis=1)
    idle = 0.01 * rng.normal(size=x.shape)
    states = np.stack([x, idle], axis=2)
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(len(speeds)), steps),
        observations=states[:, :-1].reshape(-1, 2),
        actions=actions.reshape(-1),
        next_observations=states[:, 1:].reshape(-1, 2),
        task="Walk",
    )


def test_calibrated_intervals_cover_where_normal_ones_do_not(tmp_path, known_tasks):
    """Errors with heavy tails, and correlated: one offset for a whole trajectory."""
    persim_gym.register_task(walk_task())

    def error(rng, shape):
        return 0.1 * rng.standard_t(2, size=(shape[0], 1)) + 0.01 * rng.normal(size=shape)

    rng = np.random.default_rng(0)
    ensemble = walkers(agents=100)
    log = walk_log(rng.uniform(0.5, 2, 100), error, 1)
    ensemble = refit_factors(replace(ensemble, agent_labels=log.agent_labels), log)
    calibrated = calibrate(ensemble, walk_log(rng.uniform(0.5, 2, 300), error, 2), draws=4)
    calibrated.save(tmp_path / "calibrated.persim")
    calibrated = persim_gym.load(tmp_path / "calibrated.persim")
    fresh = walk_log(rng.uniform(0.5, 2, 300), error, 3)
    early = np.flatnonzero(np.arange(fresh.num_transitions) % 20 < 10)
    known = persim_gym.personalize(calibrated, rows_of(fresh, early))
    first = np.arange(300) * 20 + 10
    rows = first[:, None] + np.arange(10)
    agents = list(range(100, 400))
    found = forecast(known, agents, fresh.observations[first], fresh.actions[rows], levels=(0.5, 0.8, 0.95))
    true = fresh.next_observations[rows]
    covered = ((true >= found.lower) & (true <= found.upper))[..., 0].mean(axis=(1, 2))
    np.testing.assert_allclose(covered, [0.5, 0.8, 0.95], atol=0.06)
    plain = forecast(replace(known, calibration=None), agents, fresh.observations[first], fresh.actions[rows])
    normal = ((true >= plain.lower) & (true <= plain.upper))[..., 0].mean(axis=(1, 2))
    assert abs(normal[1] - 0.8) > 0.1


def test_a_long_log_counts_as_one_agent():
    """Thirty-nine agents of eight steps err by 0.1, as predicted; one of a thousand steps errs by a twentieth of it."""
    rng = np.random.default_rng(0)
    counts, noise = np.array([8] * 39 + [1000]), np.array([0.1] * 39 + [0.005])
    agents = np.repeat(np.arange(40), counts)
    states = np.zeros((len(agents), 2))
    log = persim_gym.Trajectories.from_arrays(
        agents=agents,
        observations=states,
        actions=np.ones(len(agents), int),
        next_observations=states + noise[agents][:, None] * rng.normal(size=states.shape),
        episode_starts=np.arange(len(agents)),
        task=walk_task(),
    )
    widths = calibrate(walkers(spread=1e-3, noise=0.1), log).calibration[1, 0]  # of 80 %, a step ahead
    assert 1 < widths[0] < 1.7  # 1.28 of a normal distribution; with equal weights of steps 0.25


def test_widths_are_those_that_hold_for_one_agent_more():
    """Twenty agents that err by 1 … 20 deviations: of 21 the next one is within the 11th, 17th, 19th, 20th of these."""
    size = np.tile([0.0, 1.0], 20) * np.repeat(np.arange(1, 21), 2)
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(20), 2),
        observations=np.zeros((40, 2)),
        actions=np.ones(40, int),
        next_observations=0.1 * np.stack([size, size], axis=1),
        episode_starts=np.arange(40),
        task=walk_task(),
    )
    widths = calibrate(walkers(spread=1e-3, noise=0.1), log).calibration
    np.testing.assert_allclose(widths[:, 0, 0], [11, 17, 19, 20], rtol=1e-3)
    np.testing.assert_array_equal(widths[:, 1:], np.repeat(widths[:, :1], 3, axis=1))  # nothing is known farther ahead


def test_an_agent_is_known_by_its_first_half_and_errs_along_its_second():
    """The first half says nothing; in the second all walk 30 times faster than the prior's deviation of 10 allows."""
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(20), 2),
        observations=np.zeros((40, 2)),
        actions=np.tile([1, 2], 20),
        next_observations=np.tile([[0.0, 0.0], [301.25, 0.0]], (20, 1)),
        episode_starts=np.arange(40),
        task=walk_task(),
    )
    np.testing.assert_allclose(calibrate(walkers(), log, draws=500).calibration[1, 0, 0], 30, rtol=0.1)


def test_few_draws_are_as_wide_as_many():
    """The variance over three paths, of four hundred agents on average, is that of the factors they are drawn from."""
    found = forecast(walkers(agents=400), list(range(400)), np.zeros((400, 2)), np.full((400, 1), 2), draws=3)
    assert np.square(found.standard_deviations[:, 0, 0]).mean() == pytest.approx(0.1**2, rel=0.1)
    np.testing.assert_allclose(found.means[:, 0, 0], np.linspace(0.5, 2.0, 400), rtol=1e-4)


def test_new_posteriors_need_a_new_calibration():
    ensemble = calibrated(walkers(agents=3))
    log = walk_log(np.array([0.5, 1.0, 2.0]), quiet, 0)
    assert refit_factors(replace(ensemble, agent_labels=log.agent_labels), log).calibration is None


def rows_of(log, rows):
    """Return some rows of every agent under new names."""
    return persim_gym.Trajectories.from_arrays(
        agents=log.agents[rows],
        agent_labels=[f"new {label}" for label in log.agent_labels],
        observations=log.observations[rows],
        actions=log.actions[rows],
        next_observations=log.next_observations[rows],
        task=log.task,
    )


def test_each_episode_in_posterior_mode_has_a_factor_of_its_own():
    """The speed is constant within an episode, and over episodes distributed as the posterior."""
    env = PersonalizedEnv(walkers(spread=0.1), 1, ensemble="posterior")
    speeds = []
    for episode in range(300):
        env.reset(seed=0 if episode == 0 else None, options={"state": np.zeros(2)})
        first, second = env.step(2)[0][0], env.step(2)[0][0]
        assert second == pytest.approx(2 * first, rel=1e-5)
        speeds.append(first)
    assert np.mean(speeds) == pytest.approx(1.25, abs=0.02) and np.std(speeds) == pytest.approx(0.1, rel=0.15)
    env.reset(seed=0, options={"state": np.zeros(2)})
    assert env.step(2)[0][0] == speeds[0]


@pytest.mark.parametrize("agent", [1, [1] * 400])
def test_each_environment_of_a_vector_draws_a_factor_at_its_own_reset(agent):
    """The speed is constant within an episode, drawn anew where one begins, and distributed as the posterior."""
    vector = PersonalizedVectorEnv(walkers(spread=0.1), 400, agent, ensemble="posterior", autoreset_mode="disabled")
    vector.reset(seed=0, options={"state": np.zeros(2)})
    right = np.full(400, 2)
    speeds = vector.step(right)[0][:, 0]
    np.testing.assert_allclose(vector.step(right)[0][:, 0], 2 * speeds, rtol=1e-5)
    assert np.mean(speeds) == pytest.approx(1.25, abs=0.02) and np.std(speeds) == pytest.approx(0.1, rel=0.15)
    mask = np.arange(400) < 100
    vector.reset(options={"state": np.zeros(2), "reset_mask": mask})
    states, *_, info = vector.step(right)
    np.testing.assert_allclose(states[~mask, 0], 3 * speeds[~mask], rtol=1e-5)
    assert (np.abs(states[mask, 0] - speeds[mask]) > 1e-6).all()
    assert (info["disagreement"][:, 0] > 0).all()
    vector.reset(seed=0, options={"state": np.zeros(2)})
    np.testing.assert_array_equal(vector.step(right)[0][:, 0], speeds)


def test_a_single_environment_may_be_a_vector_in_posterior_mode():
    vector = PersonalizedVectorEnv(walkers(spread=0.1), 1, 1, ensemble="posterior", autoreset_mode="same_step")
    speeds = []
    for _ in range(20):
        vector.reset(options={"state": np.zeros(2)})
        speeds.append(float(vector.step(np.array([2]))[0][0, 0]))
    assert len(set(speeds)) == 20


def test_info_tells_the_uncertainty(cart_pole, tmp_path, registry):
    cart_pole.save(tmp_path / "model.persim")
    persim_gym.register_ensemble(tmp_path / "model.persim", name="Sure")
    env = make("PerSim-Sure-agent1-v0", uncertainty=True, ensemble="posterior")
    env.reset(seed=0)
    info = env.step(1)[4]
    assert info["standard_deviation"].shape == (4,) and (info["standard_deviation"] > 0).all()
    assert "standard_deviation" not in step_info(make("PerSim-Sure-agent1-v0"))


def step_info(env):
    """Return what a first step says."""
    env.reset(seed=0)
    return env.step(0)[4]


ACTION, INVALID, MISSING, UNKNOWN, DATA = (
    errors.InvalidActionError,
    errors.InvalidArgumentError,
    errors.MissingStatisticsError,
    errors.UnknownNameError,
    errors.InvalidDataError,
)


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (INVALID, "level 1.5 must be", lambda e: go(e, levels=[1.5])),
        (INVALID, "level='a' must be a finite number", lambda e: go(e, levels=["a"])),
        (INVALID, "levels=.* must be one probability or more", lambda e: go(e, levels=[[0.5], [0.5, 0.9]])),
        (ACTION, r"shape \(1, H\), got \[\[0, 1\], \[0\]\]", lambda e: go(e, actions=[[0, 1], [0]])),
        (ACTION, r"shape \(1, H\), got .* of shape \(1,\)", lambda e: go(e, actions=[0])),
        (ACTION, r"actions of shape \(1, 0\) are none", lambda e: go(e, actions=np.zeros((1, 0), int))),
        (INVALID, "draws=0 must be", lambda e: go(e, draws=0)),
        (INVALID, "draws=2 must be a whole number of at least 3", lambda e: go(e, draws=2)),
        (INVALID, "level 0.7 is not calibrated; levels are 0.5, 0.8", lambda e: go(calibrated(e), levels=[0.7])),
        (UNKNOWN, "no agent 7", lambda e: go(e, agents=7)),
        (MISSING, "refit_factors", lambda e: go(bare(e))),
        (MISSING, "refit_factors", lambda e: PersonalizedEnv(bare(e), ensemble="posterior")),
        (MISSING, "refit_factors", lambda e: PersonalizedVectorEnv(bare(e), 2, ensemble="posterior")),
        (INVALID, "ensemble='all' must be one of aggregate", lambda e: PersonalizedVectorEnv(e, 2, ensemble="all")),
        (INVALID, "own_factors=True", lambda e: e.simulator(0).set_factors([0], np.zeros((2, 1, 1)))),
        (MISSING, "refit_factors", lambda e: PersonalizedEnv(bare(e), uncertainty=True)),
        (MISSING, "refit_factors", lambda e: bare(e).simulator(0).step(np.zeros((1, 2)), [0], uncertainty=True)),
        (MISSING, "refit_factors", lambda e: calibrate(bare(e), walk_log(np.ones(2), quiet, 0))),
        (DATA, "2 agents, 2 of them with a second half", lambda e: calibrate(e, walk_log(np.ones(2), quiet, 0))),
    ],
)
def test_intervals_need_known_levels_agents_and_posteriors(kind, message, call):
    with pytest.raises(kind, match=message) as caught:
        call(walkers())
    assert isinstance(caught.value, errors.PerSimError)


@pytest.mark.parametrize(
    "call",
    [
        lambda e, log: go(e, device="abacus"),
        lambda e, log: calibrate(e, log, device="abacus"),
        lambda e, log: persim_gym.personalize(e, replace(log, agent_labels=("a", "b")), device="abacus"),
        lambda e, log: persim_gym.update(e, log, device="abacus"),
        lambda e, log: persim_gym.plot_trajectories(e, "never.png", agents=[0], log=log, device="abacus"),
    ],
)
def test_they_compute_where_they_are_told_to(call):
    with pytest.raises(errors.InvalidArgumentError, match="device='abacus'"):
        call(walkers(), walk_log(np.ones(2), quiet, 0))


def bare(ensemble):
    """Return the ensemble without statistics."""
    return replace(ensemble, posterior=None)


def go(ensemble, agents=0, **settings):
    """Forecast one step."""
    actions = settings.pop("actions", np.zeros((1, 1), int))
    return forecast(ensemble, agents, np.zeros((1, 2)), actions, **settings)


def calibrated(ensemble):
    """Return the ensemble with made-up widths."""
    return replace(ensemble, calibration=np.ones((4, 4, 2)))


def quiet(rng, shape):
    """No error."""
    return np.zeros(shape)


def test_intervals_stay_within_the_observation_space():
    ensemble = walkers(spread=0.1)
    low, high = np.array([-1.0, -0.5], np.float32), np.array([1.0, 0.5], np.float32)
    task = replace(ensemble.task, observation_space=spaces.Box(low, high))
    config = ensemble.config.with_changes(clip_states=True)
    future = forecast(replace(ensemble, task=task, config=config), 1, np.zeros((1, 2)), np.full((1, 40), 2))
    assert (future.lower >= low).all() and (future.upper <= high).all()
    assert (future.lower <= future.means).all() and (future.means <= future.upper).all()
    assert future.upper[-1, 0, -1, 0] == 1.0


def test_a_forecast_begins_in_a_state():
    with pytest.raises(errors.InvalidStateError, match="must be finite, got nan as x"):
        forecast(walkers(spread=0.1), 1, [[np.nan, 0.0]], np.ones((1, 3), int))
    beyond = walkers(spread=0.1).task.observation_space.high + np.ones((1, 2))
    with pytest.raises(errors.InvalidStateError, match="x = .* is outside its range"):
        forecast(walkers(spread=0.1), 1, beyond, np.ones((1, 3), int))


def test_calibrating_on_the_training_log_is_told():
    quiet = np.random.default_rng(0)
    log = walk_log(quiet.uniform(0.5, 2, 30), lambda rng, shape: 0.1 * rng.normal(size=shape), 0)
    trained = replace(walkers(spread=1e-3, noise=0.1), provenance=log.source)
    with pytest.warns(RuntimeWarning, match="was trained on this very log"):
        calibrate(trained, log, draws=3)


def test_calibrating_on_the_agents_that_were_trained_on_is_told():
    """By a part of their log; a log of another origin may have the same labels."""
    log = walk_log(np.linspace(0.5, 2, 30), lambda rng, shape: 0.1 * rng.normal(size=shape), 0)
    log = replace(log, provenance={"table": "ward.csv"})
    kept, held_out = log.split(0.5)
    trained = replace(walkers(spread=1e-3, noise=0.1), agent_labels=log.agent_labels, provenance=kept.source)
    with pytest.warns(RuntimeWarning, match=r"trained on 30 of the log's 30 agents.*by='agent'"):
        calibrate(trained, held_out, draws=3)
    others = replace(held_out, agent_labels=(*log.agent_labels[:2], *map(str, range(100, 128))))
    with pytest.warns(RuntimeWarning, match="trained on 2 of the log's 30 agents"):
        calibrate(trained, others, draws=3)
    calibrate(trained, replace(held_out, provenance={"table": "another.csv"}), draws=3)


def test_newcomers_are_no_agents_that_were_trained_on():
    log = walk_log(np.linspace(0.5, 2, 30), lambda rng, shape: 0.1 * rng.normal(size=shape), 0)
    log = replace(log, agent_labels=tuple(map(str, range(100, 130))), provenance={"table": "ward.csv"})
    trained = replace(walkers(spread=1e-3, noise=0.1), provenance={"data": log.provenance})
    calibrate(persim_gym.personalize(trained, log), log, draws=3)  # without a warning
