"""Posteriors of the agents' factors against Bayesian regression written out, newcomers, updates, old files."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from support import (
    SMALL,
    perfect_walk_ensemble,
    random_actions,
    random_ensemble,
    reference_changes,
    roomy,
    simulated_log,
    walk_task,
)

import persim_gym
from persim_gym import errors, nearest_agents, personalize, refit_factors, update
from persim_gym.factors import statistics
from persim_gym.factors.refit import refit_in_turns
from persim_gym.model.normalizer import Normalizer, varies
from persim_gym.model.posterior import FactorPosterior, Prior, SufficientStatistics
from persim_gym.tasks import Task

NORMALIZED = SMALL.with_changes(normalize=True)


def brute_force(ensemble, log, agent, member):
    """Return posterior mean and covariance of one factor, by the textbook's formula on the agent's rows one by one."""
    prior, rank = ensemble.posterior.prior, ensemble.config.rank
    precision = np.linalg.inv(prior.covariance[member])
    weighted = precision @ prior.mean[member]
    normalizer = ensemble.normalizer
    units = [with_factors(ensemble, np.eye(rank)[index]) for index in range(rank)]
    for row in np.flatnonzero(log.agents == agent):
        state, action = log.observations[row].astype(np.float64), log.actions[row]
        features = np.stack([reference_changes(unit, 0, [state], [action])[member, 0] for unit in units])
        features = (features - normalizer.change_mean) / normalizer.change_scale  # (r, D)
        change = log.next_observations[row].astype(np.float64) - state
        target = (change - normalizer.change_mean) / normalizer.change_scale
        for coordinate, variance in enumerate(prior.noise[member]):
            column = features[:, coordinate]
            precision = precision + np.outer(column, column) / variance
            weighted = weighted + column * target[coordinate] / variance
    covariance = np.linalg.inv(precision)
    return covariance @ weighted, covariance


def with_factors(ensemble, factors):
    """Return the ensemble with the same factors for every agent and member."""
    parameters = dict(ensemble.parameters)
    parameters["agent.weight"] = np.broadcast_to(factors, parameters["agent.weight"].shape).astype(np.float32)
    parameters["agent.bias"] = np.zeros_like(parameters["agent.bias"])
    return replace(ensemble, parameters=parameters)


@pytest.fixture(scope="module", params=["MountainCar", "HalfCheetah"])
def refitted(request):
    """An ensemble, discrete or continuous, its posterior, and the log behind it."""
    ensemble = random_ensemble(roomy(request.param), NORMALIZED, num_agents=4)
    log = simulated_log(ensemble, [5, 1, 9, 3])
    return refit_factors(ensemble, log), log


def test_the_posterior_is_bayesian_linear_regression(refitted):
    ensemble, log = refitted
    means, covariances = ensemble.posterior.moments(range(4))
    for agent, member in ((0, 0), (1, 2), (2, 1)):
        mean, covariance = brute_force(ensemble, log, agent, member)
        scale = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(means[member, agent] / scale, mean / scale, atol=1e-3)
        np.testing.assert_allclose(
            covariances[member, agent] / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=1e-3
        )
    np.testing.assert_allclose(ensemble.agent_factors(), means, atol=1e-5)
    assert ensemble.posterior.num_transitions.tolist() == [5, 1, 9, 3]


def test_prior_and_noise_of_a_known_population_are_found():
    rng = np.random.default_rng(0)
    mean, noise = np.array([1.0, -2.0]), np.array([0.01, 0.04])
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    factors = rng.multivariate_normal(mean, covariance, size=2000)
    features = rng.normal(size=(2000, 10, 2, 2))  # agents, transitions, coordinates, factors
    changes = np.einsum("ntdi,ni->ntd", features, factors) + np.sqrt(noise) * rng.normal(size=(2000, 10, 2))
    sums = SufficientStatistics(
        np.einsum("ntdi,ntdj->ndij", features, features)[None],
        np.einsum("ntdi,ntd->ndi", features, changes)[None],
        (changes**2).sum(1)[None],
        np.full(2000, 10),
    )
    prior = Prior.estimate(sums, np.ones((1, 2000, 2)), np.ones(1, bool))
    np.testing.assert_allclose(prior.mean[0], mean, atol=0.06)
    np.testing.assert_allclose(prior.covariance[0], covariance, atol=0.06)
    np.testing.assert_allclose(prior.noise[0], noise, rtol=0.05)
    means, covariances = FactorPosterior.of(prior, sums).moments(range(2000))
    error = factors - means[0]
    surprise = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariances[0]), error)
    assert surprise.mean() == pytest.approx(2, rel=0.1)  # the posteriors are as wide as they are wrong


def linear_population(agents, count, *, spread, noise, seed):
    """Return true factors (N, 3) around (1, 0.5, −0.3) and the sums of each agent's noisy transitions."""
    rng = np.random.default_rng(seed)
    factors = np.array([1.0, 0.5, -0.3]) + spread * rng.normal(size=(agents, 3))
    features = rng.normal(size=(agents, count, 2, 3))
    changes = np.einsum("ntdi,ni->ntd", features, factors) + noise * rng.normal(size=(agents, count, 2))
    sums = SufficientStatistics(
        np.einsum("ntdi,ntdj->ndij", features, features)[None],
        np.einsum("ntdi,ntd->ndi", features, changes)[None],
        (changes**2).sum(1)[None],
        np.full(agents, count),
    )
    return factors, sums


@pytest.mark.parametrize("size", [1.0, 0.1, 0.01, 1e-4])
def test_it_does_not_matter_how_small_the_factors_begin(size):
    """As they are where training was cut short."""
    factors, sums = linear_population(60, 20, spread=0.3, noise=0.1, seed=0)
    prior = Prior.estimate(sums, np.full((1, 60, 3), size), np.ones(2, bool))
    means, _ = FactorPosterior.of(prior, sums).moments(range(60))
    np.testing.assert_allclose(np.sqrt(prior.noise[0]), 0.1, rtol=0.1)
    assert np.sqrt(((means[0] - factors) ** 2).mean()) < 0.03


def test_agents_that_are_nearly_alike_are_found_to_be():
    """Short logs say little of each agent, and much of how alike all are, once the iterations have converged."""
    factors, sums = linear_population(1000, 3, spread=0.03, noise=1.0, seed=0)
    prior = Prior.estimate(sums, np.ones((1, 1000, 3)), np.ones(2, bool))
    means, _ = FactorPosterior.of(prior, sums).moments(range(1000))
    assert np.sqrt(np.linalg.eigvalsh(prior.covariance[0])).max() < 0.12
    assert np.sqrt(((means[0] - factors) ** 2).mean()) < 0.045


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_few_agents_do_not_make_the_posterior_of_a_newcomer_sure(agents):
    """Intervals of 95 % cover most of the newcomers' factors, and these are found, however few agents were trained."""
    covered, errors = [], []
    for seed in range(10):
        factors, sums = linear_population(agents, 50, spread=0.3, noise=0.3, seed=seed)
        prior = Prior.estimate(sums, factors[None], np.ones(2, bool))
        newcomers, own = linear_population(20, 20, spread=0.3, noise=0.3, seed=100 + seed)
        means, covariances = FactorPosterior.of(prior, own).moments(range(20))
        error = means[0] - newcomers
        covered.append(np.abs(error) < 1.96 * np.sqrt(np.einsum("nii->ni", covariances[0])))
        errors.append(error)
    assert np.mean(covered) > 0.8  # by priors that have collapsed 0.02 to 0.31
    assert np.sqrt(np.mean(np.square(errors))) < 0.075  # least squares: about 0.3 / √40


def test_personalize_warns_of_an_ensemble_of_too_few_agents(refitted):
    ensemble, log = refitted
    three = refit_factors(ensemble.with_agents(range(3)), log.select(range(3)))
    told = "the ensemble was trained on 3 agents for rank 3, too few to tell how agents differ"
    with pytest.warns(RuntimeWarning, match=told):
        grown = personalize(three, renamed(log.select([3]), "someone"))
    with pytest.warns(RuntimeWarning, match=told):  # however many newcomers there are
        personalize(grown, renamed(log.select([2]), "someone else"))


def test_personalize_knows_on_how_many_agents_an_ensemble_was_trained(refitted, tmp_path):
    """When most of them have been left out, too."""
    ensemble, log = refitted
    known = replace(ensemble, task=persim_gym.get_task(ensemble.task.name))
    known.with_agents([0]).save(tmp_path / "one.persim")
    read_again = replace(persim_gym.load(tmp_path / "one.persim"), task=ensemble.task)
    for one in (ensemble.with_agents([0]), read_again):
        assert personalize(one, renamed(log.select([3]), "someone")).num_agents == 2  # and no warning


def test_refitting_finds_the_factors_that_made_the_data():
    truth = random_ensemble(roomy("MountainCar"), NORMALIZED, num_agents=30)
    log = simulated_log(truth, [20] * 30)
    blurred = with_factors(truth, truth.agent_factors().mean(axis=(0, 1)))
    refitted = refit_factors(blurred, log)
    np.testing.assert_allclose(refitted.agent_factors()[0], truth.agent_factors()[0], atol=0.15)
    kept = refit_factors(blurred, log, replace_factors=False)
    np.testing.assert_array_equal(kept.agent_factors(), blurred.agent_factors())


def test_updates_in_any_order_are_the_batch(refitted):
    ensemble, _ = refitted
    task, labels = ensemble.task, ["anna", "ben"]
    log = simulated_log(ensemble, [6, 4], seed=1, labels=labels)
    at_once = personalize(ensemble, log)
    parts = [slice_rows(log, [0, 1, 6]), slice_rows(log, [2, 3, 4, 5]), slice_rows(log, [7, 8, 9])]
    piecewise = personalize(ensemble, parts[0])
    for part in (parts[2], parts[1]):
        piecewise = update(piecewise, part)
    assert piecewise.agent_labels == (*ensemble.agent_labels, *labels)
    assert piecewise.posterior.num_transitions.tolist()[-2:] == [6, 4]
    for one, other in zip(piecewise.posterior.moments([4, 5]), at_once.posterior.moments([4, 5]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(piecewise.agent_factors([4, 5]), at_once.agent_factors([4, 5]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(at_once.agent_factors(range(4)), ensemble.agent_factors())
    state = np.zeros((1, task.observation_size))
    assert at_once.simulator("ben").step(state, random_actions(task, np.random.default_rng(0), 1)) is not None


def slice_rows(log, rows):
    """Return some rows of a log, each an episode of its own."""
    labels = list(dict.fromkeys(log.agent_labels[agent] for agent in log.agents[rows]))
    return persim_gym.Trajectories.from_arrays(
        agents=[labels.index(log.agent_labels[agent]) for agent in log.agents[rows]],
        agent_labels=labels,
        observations=log.observations[rows],
        actions=log.actions[rows],
        next_observations=log.next_observations[rows],
        truncated=np.ones(len(rows), bool),
        task=log.task,
    )


def test_a_newcomer_is_predicted_like_the_agent_it_is():
    """Transitions of a known agent under another name give its factor again, nearer with more of them."""
    ensemble = random_ensemble(roomy("MountainCar"), NORMALIZED, num_agents=12)
    ensemble = refit_factors(ensemble, simulated_log(ensemble, [30] * 12))
    distances = []
    for count in (1, 4, 40):
        log = simulated_log(ensemble, [count if agent == 3 else 1 for agent in range(12)], seed=2)
        newcomer = personalize(ensemble, renamed(log.select([3]), "someone"))
        (label, distance), *_ = nearest_agents(newcomer, "someone", 3)
        distances.append(distance)
    assert label == "agent 3" and distance < 0.3 * nearest_agents(newcomer, "someone", 3)[1][1]
    assert distances[2] < 0.5 * distances[0]


def test_distances_are_those_of_what_the_model_predicts():
    """Of two agents' changes over the rows of the log, in units of the noise: the root mean square of all members."""
    ensemble = random_ensemble(roomy("MountainCar"), NORMALIZED, num_agents=5)
    log = simulated_log(ensemble, [9, 4, 12, 7, 5], noise=0.01)
    ensemble = refit_factors(ensemble, log)
    noise = np.sqrt(ensemble.posterior.prior.noise) * ensemble.normalizer.change_scale
    changes = [reference_changes(ensemble, agent, log.observations, log.actions) for agent in range(5)]
    expected = [np.sqrt(np.square((one - changes[2]) / noise[:, None]).mean()) for one in changes]
    found = nearest_agents(ensemble, 2, 9)
    assert [label for label, _ in found] == [f"agent {agent}" for agent in np.argsort(expected)[1:]]
    np.testing.assert_allclose([distance for _, distance in found], np.sort(expected)[1:], rtol=1e-4)


def renamed(log, *labels):
    """Return the log with other names for its agents."""
    return replace(log, agent_labels=labels)


def test_a_newcomer_without_a_transition_is_the_mean_agent(refitted):
    ensemble, _ = refitted
    with pytest.warns(RuntimeWarning, match=r"newcomer 'dora' has no transition \(1 such"):
        newcomer = personalize(ensemble, None, agents=["dora"])
    np.testing.assert_allclose(newcomer.agent_factors([4])[:, 0], ensemble.posterior.prior.mean, rtol=1e-5, atol=1e-6)
    log = simulated_log(ensemble, [3, 2], seed=3, labels=["eve", "fred"])
    with pytest.warns(RuntimeWarning, match="'dora'"):
        both = personalize(ensemble, log, agents=["fred", "dora"])
    assert both.agent_labels[4:] == ("fred", "dora")
    alone = personalize(ensemble, log.select(["fred"]))
    np.testing.assert_array_equal(both.agent_factors([4]), alone.agent_factors([4]))


@pytest.mark.parametrize("kind", ["constant", "contradictory", "huge"])
def test_odd_data_leave_the_posterior_finite(refitted, kind):
    ensemble, _ = refitted
    size = ensemble.task.observation_size
    states = np.zeros((40, size)) if kind != "huge" else np.full((40, size), 1e6)
    actions = np.zeros(40, int) if ensemble.task.discrete else np.zeros((40, ensemble.task.action_size))
    after = states.copy() if kind == "constant" else states + np.where(np.arange(40) % 2, 5.0, -5.0)[:, None]
    log = persim_gym.Trajectories.from_arrays(
        agents=np.zeros(40, int), agent_labels=["odd"], observations=states, actions=actions,
        next_observations=after, task=ensemble.task.name,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, covariance = personalize(ensemble, log).posterior.moments([4])
    assert np.isfinite(mean).all() and np.isfinite(covariance).all()
    assert (np.linalg.eigvalsh(covariance) >= 0).all()


def test_the_posterior_is_saved_and_follows_the_members(refitted, tmp_path):
    ensemble = replace(refitted[0], task=persim_gym.get_task(refitted[0].task.name))
    ensemble.save(tmp_path / "file.persim")
    loaded = persim_gym.load(tmp_path / "file.persim")
    for name, array in ensemble.posterior.to_arrays().items():
        np.testing.assert_array_equal(loaded.posterior.to_arrays()[name], array)
    assert set(loaded.parameters) == set(ensemble.parameters)
    some = ensemble.with_members([2, 0])
    np.testing.assert_array_equal(some.posterior.moments([1])[0], ensemble.posterior.moments([1])[0][[2, 0]])


def test_a_file_without_statistics_is_read_and_says_what_makes_them(tmp_path):
    path = tmp_path / "bare.persim"
    random_ensemble("CartPole").save(path)
    bare = persim_gym.load(path)
    assert bare.posterior is None
    log = simulated_log(bare, [2, 2, 2])
    log = replace(log, observations=0.1 * log.observations, next_observations=0.1 * log.next_observations)
    for call in (
        lambda: personalize(bare, renamed(log, "x", "y", "z")),
        lambda: update(bare, log),
        lambda: nearest_agents(bare, 0),
    ):
        with pytest.raises(errors.MissingStatisticsError, match=r"persim_gym\.refit_factors\(ensemble, log\)"):
            call()
    assert update(refit_factors(bare, log), log).posterior.num_transitions.tolist() == [4, 4, 4]


def test_a_damaged_posterior_is_refused(refitted, tmp_path):
    ensemble = replace(refitted[0], task=persim_gym.get_task(refitted[0].task.name))
    path = tmp_path / "file.persim"
    posterior = ensemble.posterior
    cut = replace(posterior, information_vector=posterior.information_vector[:, :1])
    replace(ensemble, posterior=cut).save(path)
    with pytest.raises(errors.FileFormatError, match=r"'posterior\.weighted' is missing or has the wrong shape"):
        persim_gym.load(path)


def test_draws_have_the_posterior_as_their_distribution(refitted):
    ensemble, _ = refitted
    mean, covariance = ensemble.posterior.moments([1])
    drawn = ensemble.posterior.draw([1], np.random.default_rng(0), 20_000)[:, :, 0]
    scale = np.sqrt(np.einsum("mii->mi", covariance[:, 0]))
    np.testing.assert_allclose((drawn.mean(0) - mean[:, 0]) / scale, 0, atol=0.05)
    np.testing.assert_allclose(drawn.std(0) / scale, 1, atol=0.05)


def test_newcomers_keep_or_lack_covariates(cart_pole, cart_pole_log):
    log = renamed(persim_gym.collect("CartPole", num_agents=2, seed=5), "x", "y")
    ensemble = refit_factors(cart_pole, cart_pole_log)
    newcomers = personalize(ensemble, log)
    np.testing.assert_array_equal(newcomers.agent_covariates("y"), log.covariates[1])
    unknown = personalize(ensemble, replace(log, covariates=None, covariate_names=()))
    np.testing.assert_array_equal(unknown.agent_covariates(3), ensemble.covariates[3])
    with pytest.raises(errors.InvalidArgumentError, match="covariates of agent 'x' are not recorded"):
        unknown.agent_covariates("x")


def test_an_update_tells_covariates_that_were_not_known(cart_pole, cart_pole_log):
    """In whatever order the log has them; those of other agents stay as they are."""
    log = renamed(persim_gym.collect("CartPole", num_agents=2, seed=5), "x", "y")
    more = replace(log.select(["y"]), covariates=log.covariates[1:, ::-1], covariate_names=log.covariate_names[::-1])
    bare = replace(log, covariates=None, covariate_names=())
    trained = refit_factors(cart_pole, cart_pole_log)
    for ensemble in (trained, replace(trained, covariates=None)):
        updated = update(personalize(ensemble, bare), more)
        np.testing.assert_array_equal(updated.agent_covariates("y"), log.covariates[1])
        assert np.isnan(updated.covariates[-2]).all()
        expected = np.nan if ensemble.covariates is None else ensemble.covariates
        np.testing.assert_array_equal(updated.covariates[:-2], np.broadcast_to(expected, (trained.num_agents, 2)))
    unknown = replace(trained, covariates=None)
    assert update(unknown, renamed(bare.select(["x"]), "0")).covariates is None


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (errors.InvalidDataError, "the log is of 2 agents", lambda e, log: refit_factors(e, log.select([0, 1]))),
        (errors.InvalidArgumentError, "agent 'agent 0' is in the ensemble already", personalize),
        (errors.InvalidArgumentError, "one newcomer or more", lambda e, log: personalize(e, None)),
        (errors.InvalidArgumentError, "named once", lambda e, log: personalize(e, log, agents=["a", "a"])),
        (errors.UnknownNameError, "'nobody' is not in", lambda e, log: update(e, renamed(log.select([0]), "nobody"))),
        (errors.InvalidArgumentError, "count=0 must be", lambda e, log: nearest_agents(e, 0, 0)),
        (errors.UnknownNameError, "labelled 'nobody'", lambda e, log: nearest_agents(e, "nobody")),
        (errors.InvalidDataError, "observation coordinates, task", lambda e, log: personalize(e, cart_pole_rows())),
        (
            errors.InvalidDataError, "observation coordinates, task",
            lambda e, log: update(e, renamed(cart_pole_rows(), "agent 0")),
        ),
    ],
)  # fmt: skip
def test_factors_are_inferred_of_matching_agents_only(refitted, kind, message, call):
    ensemble, log = refitted
    with pytest.raises(kind, match=message) as caught:
        call(ensemble, log)
    assert isinstance(caught.value, errors.PerSimError)


def cart_pole_rows():
    """Return a log of CartPole."""
    return renamed(persim_gym.collect("CartPole", num_agents=1, seed=0), "stranger")


@pytest.mark.parametrize("refit", [False, True])
def test_fit_learns_the_posteriors_and_uses_them_if_told_so(cart_pole_log, refit):
    config = persim_gym.PerSimConfig(
        rank=3, num_members=4, num_candidates=6, state_hidden=(16,), normalize=False, epochs=3, refit_factors=refit
    )
    ensemble = persim_gym.fit(cart_pole_log, config=config, validation_fraction=0, seed=0, progress=False)
    assert ensemble.config == config and ensemble.posterior.prior.mean.shape == (4, 3)
    means, _ = ensemble.posterior.moments(range(20))
    assert np.allclose(means, ensemble.agent_factors(), atol=1e-5) == refit


def test_many_agents_are_done_a_block_at_a_time(refitted, monkeypatch):
    """Blocks change nothing but the prior's sample."""
    ensemble, log = refitted
    newcomers = simulated_log(ensemble, [6, 4, 1], seed=1, labels=["anna", "ben", "carl"])
    whole = personalize(ensemble, newcomers)
    monkeypatch.setattr(statistics, "AGENTS_AT_ONCE", 2)
    np.testing.assert_allclose(personalize(ensemble, newcomers).agent_factors(), whole.agent_factors(), atol=1e-5)
    sampled = refit_factors(ensemble, log)  # prior of the first and the last agent
    assert sampled.posterior.num_transitions.tolist() == [5, 1, 9, 3]
    assert np.isfinite(sampled.agent_factors()).all()


def flagged_task():
    """A number that moves, and a flag that is 0 or 1."""
    return Task(
        name="Flagged",
        observation_space=spaces.Box(np.array([-50.0, 0.0], np.float32), np.array([50.0, 1.0], np.float32)),
        action_space=spaces.Discrete(2),
        max_episode_steps=40,
        reward=lambda observations, actions, next_observations: 0.0 * next_observations[..., 0],
        terminated=lambda next_observations: next_observations[..., 0] > 49,
    )


def flagged_log(gains=(0.5, 1.0, 1.5, 2.0), *, constant=False, seed=0, labels=None):
    """An action moves the number by the agent's gain; the flag follows a coin, or never changes."""
    rng, count = np.random.default_rng(seed), 60
    agents, steps = np.repeat(np.arange(len(gains)), count), rng.integers(2, size=count * len(gains))
    flag = np.zeros((len(agents) + 1, 1)) if constant else rng.integers(2, size=(len(agents) + 1, 1)).astype(float)
    number = rng.normal(size=(len(agents), 1))
    moved = number + np.array(gains)[agents][:, None] * (2 * steps[:, None] - 1)
    return persim_gym.Trajectories.from_arrays(
        agents=agents, observations=np.hstack([number, flag[:-1]]), actions=steps,
        next_observations=np.hstack([moved, flag[1:]]), agent_labels=labels or [str(gain) for gain in gains],
        episode_starts=np.arange(len(agents)),
    )  # fmt: skip


@pytest.mark.parametrize("constant", [False, True])
def test_a_coordinate_that_lives_on_its_bounds_or_never_changes_hides_nothing(constant):
    """Newcomers are told apart by the other one, and the trained agents' factors stay theirs."""
    config = persim_gym.PerSimConfig(
        rank=3, state_hidden=(16,), num_members=2, epochs=150, batch_size=32, learning_rate=5e-3,
        halve_learning_rate_every=50, clip_states=True, refit_factors=True,
    )  # fmt: skip
    known = persim_gym.fit(
        flagged_log(constant=constant), task=flagged_task(), config=config, validation_fraction=0, progress=False
    )
    assert known.posterior.num_transitions.tolist() == [60] * 4
    assert np.isinf(known.posterior.prior.noise).tolist() == [[False, constant]] * 2
    grown = personalize(known, flagged_log((0.8, 1.7), constant=constant, seed=1, labels=["weak", "strong"]))
    for agent, gain in (("0.5", 0.5), ("2.0", 2.0), ("weak", 0.8), ("strong", 1.7)):
        moved = grown.simulator(agent).step([[0.0, 0.0]], [1]).next_observations[0, 0]
        assert moved == pytest.approx(gain, abs=0.2), agent
    assert nearest_agents(grown, "strong", 2)[0][0] in ("1.5", "2.0")


def test_a_coordinate_that_always_changes_alike_says_nothing_of_factors():
    """A constant column, and a clock, beside one that the factors move: prior and posterior are as without them."""
    rng = np.random.default_rng(0)
    true = rng.normal(1.0, 0.4, (1, 60, 2))
    features = rng.normal(size=(60, 25, 2))
    changes = np.einsum("ntr,nr->nt", features, true[0]) + rng.normal(size=(60, 25))
    grams, products = np.einsum("ntr,nts->nrs", features, features), np.einsum("ntr,nt->nr", features, changes)
    squares = np.square(changes).sum(1)
    alone = SufficientStatistics(grams[None, :, None], products[None, :, None], squares[None, :, None], np.full(60, 25))
    beside = SufficientStatistics(
        np.stack([grams] * 2, 1)[None],
        np.stack([products, 0 * products], 1)[None],
        np.stack([squares, 0 * squares], 1)[None],
        np.full(60, 25),
    )
    found = []
    for sums, informative in ((alone, [True]), (beside, [True, False])):
        prior = Prior.estimate(sums, np.ones((1, 60, 2)), np.array(informative))
        found.append(FactorPosterior.of(prior, sums).moments(range(60))[0])
        assert prior.noise_of_predictions[0, 0] == pytest.approx(1, rel=0.1)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    assert prior.noise_of_predictions[0, 1] == 0
    slope = (found[0] * true).sum() / np.square(true).sum()
    assert slope == pytest.approx(1, abs=0.05)


def test_rounding_is_no_variation():
    """A clock in steps of a tenth, a constant, one that moves: in float32, as logs are kept."""
    clock = np.arange(200, dtype=np.float64) * 0.1
    moving = np.random.default_rng(0).normal(size=200)
    before = np.column_stack([clock, np.full(200, 0.3), moving]).astype(np.float32).astype(np.float64)
    after = np.column_stack([clock + 0.1, np.full(200, 0.3) + 2e-8, -moving]).astype(np.float32).astype(np.float64)
    assert varies(before, before).tolist() == [True, False, True]
    assert varies(after - before, before).tolist() == [False, False, True]
    normalizer = Normalizer.of(before, after)
    assert normalizer.change_scale[:2].tolist() == [0, 0] and normalizer.change_divisor[:2].tolist() == [1, 1]


def test_every_row_rounds_by_itself():
    """A sensor of one agent that is stuck far off does not hide what another's says."""
    before = np.where(np.arange(90) < 30, 1e6, 0.5)[:, None]
    after = before + np.where(np.arange(90) < 30, 0, np.where(np.arange(90) % 2, 0.05, -0.05))[:, None]
    assert varies(after - before, before).all() and Normalizer.of(before, after).change_scale > 0
    steady = before + 0.05  # in float32 nobody can tell this from the same step everywhere
    assert not varies(steady.astype(np.float32).astype(np.float64) - before, before).any()


def test_a_log_in_which_nothing_changes():
    """It is learned, and its agents have a posterior."""
    log = flagged_log(constant=True)
    still = replace(log, next_observations=log.observations)
    known = persim_gym.fit(still, task=flagged_task(), config=SMALL.with_changes(epochs=2), progress=False)
    assert np.isfinite(known.posterior.moments(range(4))[1]).all()


def test_what_a_bound_cuts_short_is_left_out():
    """A coordinate that comes from within and ends on its bound; not one that begins there."""
    ensemble = random_ensemble("MountainCar", SMALL.with_changes(clip_states=True), num_agents=1)
    low, high = ensemble.task.observation_space.low, ensemble.task.observation_space.high
    before = np.array([[0.0, 0.0], [low[0], 0.0], [0.0, high[1]], [0.2, 0.0], [0.5, low[1]]], np.float32)
    after = np.array([[low[0], 0.0], [low[0], 0.01], [0.1, high[1]], [0.2, 0.01], [high[0], 0.0]], np.float32)
    log = persim_gym.Trajectories.from_arrays(
        agents=np.zeros(5, int), observations=before, actions=np.zeros(5, int), next_observations=after,
        episode_starts=np.arange(5),
    )  # fmt: skip
    assert statistics.usable_rows(ensemble, log, None).tolist() == [1, 2, 3]
    assert statistics.usable_rows(ensemble, log, np.array([0, 3])).tolist() == [3]
    free = replace(ensemble, config=SMALL)
    assert statistics.usable_rows(free, log, None).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("all_of_them", [False, True])
def test_who_is_only_seen_ending_on_a_bound_keeps_its_factors(all_of_them):
    """Its transitions do not say by how much it would have gone on, and the mean of all others is not it."""
    config = SMALL.with_changes(clip_states=True, refit_factors=True, refit_rounds=2)
    ensemble = random_ensemble("MountainCar", config, num_agents=2)
    high = ensemble.task.observation_space.high[0]
    before = np.random.default_rng(0).uniform(-0.5, 0.3, (40, 2)) * [1, 0.1]
    after = before + [0.01, 0.0]
    after[: 40 if all_of_them else 20, 0] = high
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(["agent 0", "agent 1"], 20), observations=before, actions=[0, 1] * 20,
        next_observations=after, episode_starts=np.arange(40), task="MountainCar",
    )  # fmt: skip
    refitted = refit_in_turns(ensemble, log, rounds=2)
    moved = np.abs(refitted.agent_factors() - ensemble.agent_factors()).max(axis=(0, 2))
    assert moved[0] == 0 and (moved[1] == 0) == all_of_them
    assert refitted.posterior.num_transitions.tolist() == [0, 0 if all_of_them else 20]


def test_a_bound_of_whole_numbers_cuts_nothing_short():
    """A score from 0 to 2 that gets to an end of its range: to leave these rows out would be to choose by outcome."""
    task = flagged_task()
    scored = replace(task, observation_space=spaces.Box(0, 2, task.observation_space.shape))
    ensemble = random_ensemble(scored, SMALL.with_changes(clip_states=True), num_agents=1)
    before, after = np.ones((3, task.observation_size)), np.ones((3, task.observation_size))
    after[1] = 2
    for fraction, kept in ((0.0, [0, 1, 2]), (0.5, [0, 2])):
        before[2], after[2] = 1 + fraction, 1
        log = persim_gym.Trajectories.from_arrays(
            agents=np.zeros(3, int), observations=before, actions=np.zeros(3, int), next_observations=after
        )
        assert statistics.usable_rows(ensemble, log, None).tolist() == kept


def test_what_is_learned_later_is_in_the_provenance(refitted):
    """Synthetic transitions leave their mark for good, and the same ones twice are noticed."""
    ensemble, log = refitted
    ensemble = replace(ensemble, provenance=log.source)
    synthetic = replace(log, provenance={"synthetic": True}, rewards=log.rewards + 1)
    newcomers = replace(synthetic, agent_labels=("w", "x", "y", "z"))
    for grown in (update(ensemble, synthetic), personalize(ensemble, newcomers)):
        assert grown.provenance["updates"] == [synthetic.source] and grown.provenance["data_digest"] == log.digest
        assert "learned from synthetic data in part" in repr(grown)
        assert update(grown, replace(log, rewards=log.rewards + 2)).provenance["data"]["synthetic"] == "in part"
    for known, again in ((ensemble, log), (update(ensemble, synthetic), synthetic)):
        with pytest.warns(RuntimeWarning, match="has learned from these very transitions before"):
            update(known, again)
    assert "synthetic" not in update(ensemble, replace(log, rewards=log.rewards + 1)).provenance["data"]


@pytest.mark.parametrize("call", [persim_gym.log_error, update, refit_factors])
def test_other_agents_of_the_same_labels_are_refused(call):
    """Where both sides know covariates that differ; what only one of them knows contradicts nothing."""
    task = walk_task()
    log = persim_gym.collect(task, num_agents=3, seed=0)
    ensemble = refit_factors(perfect_walk_ensemble(task), log)
    others = persim_gym.collect(task, covariates=log.covariates + [[0], [0.25], [0]], seed=0)
    with pytest.raises(errors.InvalidDataError, match="agent '1' has speed 1.25 in the log and 1 in the ensemble"):
        call(ensemble, others)
    unknown = replace(ensemble, covariates=np.where([[True], [False], [True]], log.covariates, np.nan))
    for known, given in ((ensemble, log), (ensemble, replace(others, covariates=None)), (unknown, others)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that `update` was given this log before
            call(known, given)
