"""From covariates to factors: maps against known functions, what they combine with, environments, bad input."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from support import SMALL, perfect_walk_ensemble, random_ensemble, walk_task

import persim_gym
from persim_gym import errors, fit_covariate_map, personalize, refit_factors
from persim_gym.envs import PersonalizedVectorEnv
from persim_gym.factors.covariate_prior import factors_given_covariates, with_one
from persim_gym.factors.covariates import KINDS, known_by_transitions_only
from persim_gym.model.posterior import FactorPosterior, Prior

NUM_AGENTS = 60


def walkers(function=lambda speed: speed, seed=0):
    """Walks of agents whose one factor is a function of their speed."""
    speeds = np.sort(np.random.default_rng(seed).uniform(0.5, 2.0, NUM_AGENTS))
    ensemble = perfect_walk_ensemble(walk_task(), tuple(function(speeds)))
    return replace(ensemble, covariates=speeds[:, None])


@pytest.mark.parametrize(
    ("kind", "function", "inside", "outside"),
    [
        ("ridge", lambda c: 3 - 2 * c, 1e-4, 1e-4),
        ("gp", lambda c: 3 - 2 * c, 1e-4, 1e-3),
        ("gp", lambda c: np.sin(3 * c), 1e-3, 0.1),
        ("mlp", lambda c: np.sin(3 * c), 0.05, 1.0),
    ],
)
def test_a_map_recovers_a_known_function(kind, function, inside, outside):
    """Between the known agents, and a tenth of their range beyond them."""
    covariate_map = fit_covariate_map(walkers(function), kind=kind)
    for speeds, tolerance in ((np.linspace(0.6, 1.9, 20), inside), (np.array([2.1]), outside)):
        mean, covariance = covariate_map.predict(speeds[:, None])
        np.testing.assert_allclose(mean[:, :, 0], np.tile(function(speeds), (2, 1)), atol=tolerance)
        assert covariance.shape == (2, len(speeds), 1, 1) and (covariance >= 0).all()


@pytest.mark.parametrize("kind", ["gp", "ridge"])
def test_the_maps_uncertainty_is_as_large_as_its_error(kind):
    noise = 0.1 * np.random.default_rng(1).normal(size=NUM_AGENTS)
    covariate_map = fit_covariate_map(walkers(lambda c: c + noise), kind=kind)
    mean, covariance = covariate_map.predict(np.linspace(0.6, 1.9, 20)[:, None])
    np.testing.assert_allclose(np.sqrt(covariance), 0.1, rtol=0.25)
    near, far = (np.sqrt(covariate_map.predict(np.array([[c]]))[1][0, 0, 0, 0]) for c in (1.25, 2.3))
    assert far > near


@pytest.mark.parametrize("kind", ["gp", "ridge"])
@pytest.mark.parametrize("agents", [4, 8, 15])
def test_intervals_of_few_agents_are_wide_enough(kind, agents):
    """Of 150 maps, between the known agents: 80 % and 95 % intervals cover about that much; at worst they are wide."""
    wrong = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        speeds = np.sort(rng.uniform(0.5, 2.0, agents + 1))
        factors = 1 + 0.5 * speeds + 0.1 * rng.normal(size=agents + 1)
        known = np.delete(np.arange(agents + 1), agents // 2)
        ensemble = perfect_walk_ensemble(walk_task(), tuple(factors[known]))
        covariate_map = fit_covariate_map(replace(ensemble, covariates=speeds[known, None]), kind=kind)
        mean, covariance = covariate_map.predict(speeds[[agents // 2], None])
        wrong.append((mean[0, 0, 0] - factors[agents // 2]) / np.sqrt(covariance[0, 0, 0, 0]))
    assert 0.75 < np.mean(np.abs(wrong) < 1.28) < 0.97
    assert np.mean(np.abs(wrong) < 1.96) > 0.91


@pytest.mark.parametrize("kind", ["gp", "ridge"])
@pytest.mark.parametrize("deviation", [0.01, 0.3, 1.0])
def test_agents_of_whom_little_is_known_do_not_flatten_the_map(kind, deviation):
    """Factors 1 + c/2 with deviation 0.1; transitions tell each with errors of 0.01, 0.3, 1. The slope stays 1/2."""
    rng = np.random.default_rng(0)
    speeds, probe = rng.uniform(0.5, 2.0, 300), np.linspace(0.6, 1.9, 200)
    factors = 1 + 0.5 * speeds + 0.1 * rng.normal(size=300)
    ensemble = perfect_walk_ensemble(walk_task(), tuple(factors))
    information = np.full((2, 300, 1, 1), deviation**-2)
    seen = factors + deviation * rng.normal(size=(2, 300))
    prior = Prior(np.full((2, 1), factors.mean()), np.full((2, 1, 1), factors.var()), np.ones((2, 2)))
    posterior = FactorPosterior(prior, information, information[..., 0] * seen[..., None], np.ones(300, np.int64))
    parameters = {**ensemble.parameters, "agent.weight": posterior.moments(range(300))[0].astype(np.float32)}
    known = replace(ensemble, parameters=parameters, covariates=speeds[:, None], posterior=posterior)
    mean, covariance = fit_covariate_map(known, kind=kind).predict(probe[:, None])
    for member in range(2):
        assert np.polyfit(probe, mean[member, :, 0], 1)[0] == pytest.approx(0.5, abs=0.02 + 0.15 * deviation)
        wrong = 1 + 0.5 * probe + 0.1 * rng.normal(size=200) - mean[member, :, 0]
        assert np.mean(np.abs(wrong) < 1.96 * np.sqrt(covariance[member, :, 0, 0])) > 0.91


def test_agents_hardly_known_do_not_spoil_the_map_of_others():
    """A curve of 40 agents known well stays one beside 80 of whom hardly anything is known."""
    speeds = np.concatenate([np.linspace(0.5, 2.0, 40), np.linspace(0.5, 2.0, 80)])
    factors = np.sin(3 * speeds)
    information = np.tile(np.repeat([1e8, 1.0], [40, 80])[:, None, None], (2, 1, 1, 1))
    prior = Prior(np.full((2, 1), factors.mean()), np.full((2, 1, 1), factors.var()), np.ones((2, 2)))
    posterior = FactorPosterior(prior, information, information[..., 0] * factors[:, None], np.ones(120, np.int64))
    ensemble = perfect_walk_ensemble(walk_task(), tuple(factors))
    ensemble = replace(ensemble, covariates=speeds[:, None], posterior=posterior)
    probe = np.linspace(0.6, 1.9, 20)
    together, alone = (fit_covariate_map(one) for one in (ensemble, ensemble.with_agents(range(40))))
    assert together.num_known == alone.num_known == 40
    np.testing.assert_allclose(
        together.predict(probe[:, None])[0][:, :, 0], np.tile(np.sin(3 * probe), (2, 1)), atol=1e-3
    )
    only_little = ensemble.with_agents(range(40, 120))
    assert fit_covariate_map(only_little).num_known == 80


def test_factors_of_which_each_agent_tells_one_combination():
    """Of two factors, each of 300 agents tells one combination. Over 20 logs both slopes are found, their spread is the
    stated one, and what is unknown of a factor makes up for posterior means being drawn to the line."""
    found = [_of_combinations(seed) for seed in range(20)]
    coefficients, around, stated = (np.stack(parts) for parts in zip(*found, strict=True))
    np.testing.assert_allclose(coefficients.mean(0), [[0.0, 0.0], [1.0, -0.5]], atol=0.07)
    np.testing.assert_allclose(coefficients[:, 1].std(0), stated.mean(0), rtol=0.4)
    np.testing.assert_allclose(around.mean(0), 0.25 * np.eye(2), atol=0.04)


def _of_combinations(seed):
    """Coefficients (2, 2) of factors 0, 0 + (1, −1/2)·x, covariance around them, and the slopes' deviations (2,)."""
    rng, count = np.random.default_rng(seed), 300
    x = rng.uniform(-1, 1, count)
    design = with_one(x[:, None])
    factors = design @ np.array([[0.0, 0.0], [1.0, -0.5]]) + 0.5 * rng.normal(size=(count, 2))
    directions = rng.normal(size=(count, 2))
    told = np.einsum("ni,ni->n", directions, factors) + 0.5 * rng.normal(size=count)
    prior = Prior(np.zeros((1, 2)), np.cov(factors.T)[None], np.ones((1, 2)))
    information = 4 * np.einsum("ni,nj->nij", directions, directions)[None]
    posterior = FactorPosterior(prior, information, 4 * (directions * told[:, None])[None], np.ones(count, np.int64))
    found, unknown = factors_given_covariates(posterior, x[:, None])
    coefficients = np.linalg.lstsq(design, found[0], rcond=None)[0]
    around = np.cov((found[0] - design @ coefficients).T) + unknown[0, 0, :, 0, :]
    return coefficients, around, np.sqrt(np.diag(unknown[0, 1, :, 1, :]))


def test_factors_that_are_known_stay_as_they_are():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(30, 2))
    prior = Prior(np.zeros((1, 2)), np.eye(2)[None], np.ones((1, 2)))
    information = np.tile(1e8 * np.eye(2), (1, 30, 1, 1))
    posterior = FactorPosterior(prior, information, 1e8 * factors[None], np.ones(30, np.int64))
    found, unknown = factors_given_covariates(posterior, rng.uniform(-1, 1, (30, 1)))
    np.testing.assert_allclose(found[0], factors, atol=1e-6)
    assert np.abs(unknown).max() < 1e-6


def test_agents_known_by_covariates_are_no_data():
    """However many newcomers are added, the map and what it says of the next one stay as they were."""
    noise = 0.1 * np.random.default_rng(1).normal(size=NUM_AGENTS)
    for ensemble in (walkers(lambda c: c + noise), refit_walkers(walkers(lambda c: c + noise))):
        newcomers = {f"n{i}": {"speed": speed} for i, speed in enumerate(np.linspace(0.5, 2.0, 100))}
        once = personalize(ensemble, covariates=newcomers)
        twice = personalize(once, covariates={"z": {"speed": 1.0}})
        before, after = fit_covariate_map(ensemble), fit_covariate_map(twice)
        assert after.num_known == before.num_known == NUM_AGENTS
        point = np.array([[1.0]])
        np.testing.assert_array_equal(before.predict(point)[1], after.predict(point)[1])


def test_what_a_map_said_of_agents_with_transitions_is_no_data():
    """Nor after an update; but once their factors are learned from a log, they are."""
    noise = 0.1 * np.random.default_rng(1).normal(size=NUM_AGENTS)
    ensemble = refit_walkers(walkers(lambda c: c + noise))
    labels = [f"n{i}" for i in range(20)]
    newcomers = {label: {"speed": speed} for label, speed in zip(labels, np.linspace(0.5, 2.0, 20), strict=True)}
    log = replace(resting_log(ensemble).select(range(20)), agent_labels=tuple(labels))
    before, point = fit_covariate_map(ensemble), np.array([[1.0]])
    at_once = personalize(ensemble, log, covariates=newcomers)
    later = persim_gym.update(personalize(ensemble, covariates=newcomers), log)
    for grown in (at_once, later):
        after = fit_covariate_map(personalize(grown, covariates={"z": {"speed": 1.0}}))
        assert after.num_known == NUM_AGENTS
        for one, other in zip(before.predict(point), after.predict(point), strict=True):
            np.testing.assert_array_equal(one, other)
    assert fit_covariate_map(refit_factors(at_once, resting_log(at_once))).num_known == NUM_AGENTS + 20


def test_an_agent_that_was_dropped_may_come_back_known_by_transitions():
    """What a map once said of its label is forgotten."""
    ensemble = refit_walkers(walkers())
    log = replace(resting_log(ensemble).select([0]), agent_labels=("x",), covariates=np.array([[1.0]]))
    log = replace(log, covariate_names=("speed",))
    grown = personalize(ensemble, covariates={"x": {"speed": 1.0}, "y": {"speed": 1.2}})
    back = personalize(grown.with_agents([*ensemble.agent_labels, "y"]), log)
    assert known_by_transitions_only(back).tolist() == [*[True] * NUM_AGENTS, False, True]
    assert fit_covariate_map(back).num_known == NUM_AGENTS + 1


def test_a_shipped_model_is_personalized_by_covariates_again():
    """Newcomers known by covariates and transitions do not make the next map fail."""
    ensemble = persim_gym.load("CartPole").with_agents(range(30))
    drawn = persim_gym.collect("CartPole", num_agents=10, seed=3).select(range(5, 10))
    rows = (drawn.episode_starts[:, None] + np.arange(5)).ravel()
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(5), 5),
        observations=drawn.observations[rows],
        actions=drawn.actions[rows],
        next_observations=drawn.next_observations[rows],
        agent_labels=[f"n{i}" for i in range(5)],
        task="CartPole",
    )
    names = ensemble.task.covariate_names
    covariates = {f"n{i}": dict(zip(names, drawn.covariates[i], strict=True)) for i in range(5)}
    grown = personalize(ensemble, log, covariates=covariates)
    again = personalize(grown, covariates={"x": covariates["n0"]})
    assert again.num_agents == 36 and np.isfinite(again.agent_factors()).all()


def test_agents_known_by_covariates_change_no_distance():
    """What is known of them is of no transition, and distances are over transitions."""
    ensemble, _ = learned()
    newcomers = {f"n{i}": {"force": 5.0 + i, "length": 0.4} for i in range(10)}
    before = persim_gym.nearest_agents(ensemble, 0, 20)
    grown = personalize(ensemble, covariates=newcomers, covariate_map=fit_covariate_map(ensemble, kind="ridge"))
    after = [pair for pair in persim_gym.nearest_agents(grown, 0, 30) if not pair[0].startswith("n")]
    assert [label for label, _ in after] == [label for label, _ in before]
    np.testing.assert_allclose([distance for _, distance in after], [distance for _, distance in before])
    with pytest.raises(errors.MissingStatisticsError, match="none of the ensemble's 2 agents is known by transitions"):
        persim_gym.nearest_agents(grown.with_agents(["n0", "n9"]), "n0")  # not that they are alike


def refit_walkers(ensemble):
    """The ensemble with posteriors, given five transitions of each agent."""
    return refit_factors(ensemble, resting_log(ensemble))


def resting_log(ensemble):
    """Five transitions of each agent of the ensemble."""
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(ensemble.num_agents), 5),
        observations=np.zeros((5 * ensemble.num_agents, 2)),
        actions=np.tile([0, 1, 2, 1, 2], ensemble.num_agents),
        next_observations=np.zeros((5 * ensemble.num_agents, 2)),
        agent_labels=ensemble.agent_labels,
    )


def test_a_fraction_of_the_covariates_is_enough_and_agents_without_are_left_out():
    ensemble = walkers()
    covariates = ensemble.covariates.copy()
    covariates[10:] = np.nan
    covariate_map = fit_covariate_map(replace(ensemble, covariates=covariates), kind="ridge", fraction=0.5)
    assert covariate_map.num_known == 5 and covariate_map.high[0] <= covariates[9, 0]
    np.testing.assert_allclose(covariate_map.predict(np.array([[0.6]]))[0][:, 0, 0], 0.6, atol=1e-3)
    drawn = [fit_covariate_map(ensemble, kind="ridge", fraction=0.3, seed=seed) for seed in (0, 1, 2, 0)]
    ranges = [(*one.low, *one.high) for one in drawn]
    assert len(set(ranges)) > 1 and ranges[0] == ranges[3]
    one, other, again = (fit_covariate_map(ensemble, kind="mlp", fraction=0.5, seed=seed) for seed in (0, 1, 0))
    point = np.array([[1.0]])
    assert one.predict(point)[0].tolist() == again.predict(point)[0].tolist() != other.predict(point)[0].tolist()


def test_prior_covariates_and_transitions_are_one_posterior():
    """The combination is the product of the map's Gaussian with the transitions' likelihood."""
    ensemble, log = learned()
    covariates = {"newcomer": {"force": 9.0, "length": 0.4}}
    covariate_map = fit_covariate_map(ensemble, kind="ridge")
    mean, covariance = covariate_map.predict(np.array([[9.0, 0.4]]))
    own = replace(log.select([3]), agent_labels=("newcomer",))
    by_map = personalize(ensemble, covariates=covariates, covariate_map=covariate_map)
    np.testing.assert_allclose(by_map.posterior.moments([20])[0], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(by_map.posterior.moments([20])[1], covariance, rtol=1e-4, atol=1e-9)
    both = personalize(ensemble, own, covariates=covariates, covariate_map=covariate_map)
    alone = personalize(ensemble, own)
    information = alone.posterior.information[:, [20]]
    precision = np.linalg.inv(covariance) + information
    weighted = np.einsum("mnij,mnj->mni", np.linalg.inv(covariance), mean) + alone.posterior.information_vector[:, [20]]
    expected = np.einsum("mnij,mnj->mni", np.linalg.inv(precision), weighted)
    np.testing.assert_allclose(both.posterior.moments([20])[0], expected, rtol=1e-4, atol=1e-6)
    assert both.agent_covariates("newcomer").tolist() == [9.0, 0.4]


def learned():
    """A CartPole ensemble with covariates and posteriors, and its log."""
    log = persim_gym.collect("CartPole", num_agents=20, seed=0)
    ensemble = random_ensemble("CartPole", SMALL, num_agents=20)
    ensemble = replace(ensemble, agent_labels=log.agent_labels, covariates=log.covariates)
    return refit_factors(ensemble, log), log


def test_environments_of_agents_never_seen(tmp_path, known_tasks, registry):
    """By covariates at `gym.make`, and by label where a personalized ensemble has been registered."""
    persim_gym.register_task(walk_task())
    ensemble = walkers()
    persim_gym.register_ensemble(save(ensemble, tmp_path / "walk.persim"), name="Walkers")
    env = gymnasium.make("PerSim-Walkers-v0", covariates={"speed": 1.2345})
    env.reset(options={"state": np.array([3.0, 0.0])})
    assert env.step(2)[0][0] == pytest.approx(4.2345, abs=1e-3)
    assert env.unwrapped.covariates.tolist() == [1.2345]
    saved = save(env.unwrapped.ensemble, tmp_path / "seen.persim")  # with the agent never seen
    persim_gym.register_ensemble(saved, name="Seen")
    again = gymnasium.make("PerSim-Seen-v0", covariates={"speed": 1.2345}).unwrapped
    assert again.agent == NUM_AGENTS and again.ensemble.num_agents == NUM_AGENTS + 1
    several = PersonalizedVectorEnv(again.ensemble, 2, covariates=[{"speed": 1.2345}, {"speed": 0.75}])
    assert several.simulator.agents.tolist() == [NUM_AGENTS, NUM_AGENTS + 1]
    grown = personalize(ensemble, covariates={"newcomer": {"speed": 0.75}})
    ids = persim_gym.register_ensemble(save(grown, tmp_path / "grown.persim"), name="Grown")
    assert ids[-1] == f"PerSim-Grown-agent{NUM_AGENTS}-v0"
    for made in (gymnasium.make("PerSim-Grown-v0", agent="newcomer"), gymnasium.make(ids[-1])):
        made.reset(options={"state": np.array([3.0, 0.0])})
        assert made.step(2)[0][0] == pytest.approx(3.75, abs=1e-3)


def test_a_vector_of_agents_never_seen(tmp_path, known_tasks, registry):
    """Environments of one such agent or of several, two of them alike, through `gym.make_vec`."""
    persim_gym.register_task(walk_task())
    persim_gym.register_ensemble(save(walkers(), tmp_path / "walk.persim"), name="Walkers")
    several = [{"speed": speed} for speed in (0.75, 1.5, 0.75)]
    for covariates, expected in (({"speed": 1.2345}, [1.2345] * 3), (several, [0.75, 1.5, 0.75])):
        vector = gymnasium.make_vec(
            "PerSim-Walkers-v0", num_envs=3, vectorization_mode="vector_entry_point", covariates=covariates
        )
        vector.reset(options={"state": np.array([3.0, 0.0])})
        np.testing.assert_allclose(vector.step(np.full(3, 2))[0][:, 0] - 3.0, expected, atol=1e-3)
    with pytest.raises(errors.InvalidArgumentError, match="2 agents were given for num_envs=3"):
        persim_gym.envs.PersonalizedVectorEnv(walkers(), 3, covariates=several[:2])
    with pytest.raises(errors.InvalidArgumentError, match="either agent=0 or covariates="):
        persim_gym.envs.PersonalizedVectorEnv(walkers(), 3, 0, covariates=several)
    with pytest.raises(errors.InvalidArgumentError, match="one environment has one agent, not 2"):
        persim_gym.envs.PersonalizedEnv(walkers(), covariates=several[1:])
    with pytest.raises(errors.UnknownNameError, match="no agent 1.5"):
        persim_gym.envs.PersonalizedVectorEnv(walkers(), 3, 1.5)
    with pytest.raises(errors.InvalidArgumentError, match="covariates= is empty"):
        persim_gym.envs.PersonalizedVectorEnv(walkers(), 3, covariates=[])


def test_a_shipped_model_is_personalized_by_covariates():
    """The environment of the paper's appendix: gravity beyond the training range, near enough not to warn."""
    env = gymnasium.make("PerSim-MountainCar-v0", covariates={"gravity": 0.004})
    real = gymnasium.make("Heterogeneous-MountainCar-v0", gravity=0.004)
    start = {"state": np.array([-0.4, 0.0])}
    env.reset(options=start), real.reset(options=start)
    for _ in range(50):
        simulated, true = env.step(2)[0], real.step(2)[0]
    np.testing.assert_allclose(simulated, true, atol=0.01)


def save(ensemble, path):
    """Write the ensemble's file and return its name."""
    ensemble.save(path)
    return path


def test_far_outside_the_range_warns_with_the_distance():
    with pytest.warns(RuntimeWarning, match=r"speed=8 lies 4 times the known agents' range outside it \(speed=0"):
        personalize(walkers(), covariates={"fast": {"speed": 8.0}})


def test_a_covariate_that_never_varied_says_nothing_of_its_effect():
    """However small its unit; the map is that of the agents alike, and one like them is no extrapolation."""
    ensemble = walkers()
    alike = fit_covariate_map(replace(ensemble, covariates=np.full_like(ensemble.covariates, 0.0025)))
    assert alike.distance(np.array([[0.0025], [0.00250000001], [0.2], [0.001]])).tolist() == [0, 0, np.inf, np.inf]
    with pytest.warns(RuntimeWarning, match=r"speed=0.2: a covariate that all known agents have alike \(speed=0.0025"):
        mean, _ = alike.predict(np.array([[0.2]]))
    np.testing.assert_array_equal(mean, alike.predict(np.array([[0.0025]]))[0])


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (errors.UnknownNameError, "no covariate 'gravity'; it has speed", lambda e: by_covariates(e, {"gravity": 1.0})),
        (errors.InvalidArgumentError, r"covariates {} lack 'speed'", lambda e: by_covariates(e, {})),
        (errors.InvalidArgumentError, "speed=nan of task Walk must be", lambda e: by_covariates(e, {"speed": np.nan})),
        (errors.InvalidArgumentError, "speed=fast of task Walk", lambda e: by_covariates(e, {"speed": "fast"})),
        (errors.InvalidArgumentError, "speed=-1", lambda e: by_covariates(e, {"speed": -1})),
        (errors.UnknownNameError, "no covariate map 'tree'; there are gp", lambda e: fit_covariate_map(e, kind="tree")),
        (errors.InvalidArgumentError, "fraction=0 must be", lambda e: fit_covariate_map(e, fraction=0)),
        (errors.InvalidArgumentError, "fraction='x' must be", lambda e: fit_covariate_map(e, fraction="x")),
        (errors.InvalidArgumentError, "fraction=0.01 of them are 1;", lambda e: fit_covariate_map(e, fraction=0.01)),
        (
            errors.InvalidArgumentError,
            "the covariates of 0 of the ensemble's agents are known",
            lambda e: by_covariates(replace(e, covariates=None), {"speed": 1.0}),
        ),
        (
            errors.MissingStatisticsError,
            "refit_factors",
            lambda e: personalize(e, agents=["x", "y"], covariates={"x": {"speed": 1.0}}),
        ),
        (
            errors.InvalidArgumentError,
            "either agent=3 or covariates={'speed': 1.0}",
            lambda e: persim_gym.envs.PersonalizedEnv(e, 3, covariates={"speed": 1.0}),
        ),
    ],
)  # fmt: skip
def test_unusable_covariates_and_maps_are_refused(kind, message, call):
    import persim_gym.envs  # noqa: F401

    with pytest.raises(kind, match=message) as caught:
        call(walkers())
    assert isinstance(caught.value, errors.PerSimError)


def by_covariates(ensemble, values):
    """Personalize one newcomer by covariates."""
    return personalize(ensemble, covariates={"newcomer": values})


def test_every_kind_is_tested():
    assert set(KINDS) == {"gp", "ridge", "mlp"}
