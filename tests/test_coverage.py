"""How often intervals cover a log: counted by hand, for calibrated intervals, and on the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support import random_ensemble
from test_calibration import walk_log, walkers

import persim_gym
from persim_gym import errors, interval_coverage
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.evaluation.records import to_records


def single_steps(agents, misses, *, deviation=0.1, task=None):
    """Episodes of one step that stay where they are, but for errors of five deviations: in x where ``misses`` says."""
    states = np.zeros((len(agents), 2))
    return persim_gym.Trajectories.from_arrays(
        agents=agents,
        observations=states,
        actions=np.ones(len(agents), int),  # stay
        next_observations=states + 5 * deviation * np.array([1.0, 0.0]) * np.asarray(misses, float)[:, None],
        episode_starts=np.arange(len(agents)),
        task=task,
    )


def test_a_clock_is_covered():
    """A coordinate that always changes alike errs by rounding, and its intervals are as wide as that."""
    ensemble = walkers(spread=1e-4, noise=0.1)
    time = np.float32(0.1) * np.arange(31, dtype=np.float32)
    states = np.stack([np.zeros(31), time], axis=1)
    log = persim_gym.Trajectories.from_arrays(
        agents=["1"] * 30, observations=states[:-1], actions=np.ones(30, int), next_observations=states[1:]
    )
    normalizer = replace(ensemble.normalizer, change_mean=np.array([0.0, 0.1]), change_scale=np.array([1.0, 0.0]))
    clock = replace(ensemble, normalizer=normalizer)
    for row in interval_coverage(clock, log, horizons=(1, 10, 20), levels=(0.95,)):
        assert row.by_coordinate[1] == pytest.approx(1) and 0 < row.width[1] < 1e-4


def test_all_agents_count_alike():
    """Agent 0 is missed in one of ten steps, agent 2 in one of two: together in 30 %. The other coordinate stays."""
    ensemble = walkers(spread=1e-4, noise=0.1)
    agents = ["0"] * 10 + ["2"] * 2
    log = single_steps(agents, [1, *[0] * 10, 1])
    found = interval_coverage(ensemble, log, horizons=(1,), levels=(0.5, 0.95))
    assert [(row.horizon, row.level, row.segments, row.agents) for row in found] == [(1, 0.5, 12, 2), (1, 0.95, 12, 2)]
    for row, quantile in zip(found, (0.6745, 1.9600), strict=True):
        assert row.by_coordinate == pytest.approx((0.7, 1.0)) and row.covered == pytest.approx(0.85)
        assert row.width[0] == pytest.approx(2 * quantile * 0.1, rel=0.02) and row.width[1] < 1e-4


def test_only_the_last_of_the_steps_counts():
    """Nine steps ahead, of a log whose fifth and tenth state is far away: forecasts begin anywhere."""
    ensemble = walkers(spread=1e-4, noise=0.1)
    x = np.zeros(12)
    x[[5, 10]] = 30.0
    states = np.stack([x, np.zeros(12)], axis=1)
    log = persim_gym.Trajectories.from_arrays(
        agents=["1"] * 11, observations=states[:-1], actions=np.ones(11, int), next_observations=states[1:]
    )
    found = interval_coverage(ensemble, log, horizons=(9, 1), levels=(0.95,))
    # Nine ahead from rows 0, 1 and 2 are states 9, 10 and 11; one ahead, states 5 and 10 are missed, and what follows.
    assert [(row.horizon, row.segments, round(row.by_coordinate[0], 3)) for row in found] == [
        (1, 11, 0.636),
        (9, 3, 0.667),
    ]


def test_calibrated_intervals_cover_newcomers(known_tasks):
    """Half of their log makes them known, the other half has the errors, one offset for all steps of an agent."""

    def error(rng, shape):
        return 0.1 * rng.standard_t(2, size=(shape[0], 1)) + 0.01 * rng.normal(size=shape)

    rng = np.random.default_rng(0)
    log = walk_log(rng.uniform(0.5, 2, 100), error, 1)
    trained = persim_gym.refit_factors(replace(walkers(agents=100), agent_labels=log.agent_labels), log)
    calibrated = persim_gym.calibrate(trained, walk_log(rng.uniform(0.5, 2, 300), error, 2), draws=4)
    assert ", calibrated" in repr(calibrated) and "calibrated" not in repr(trained)
    fresh = walk_log(rng.uniform(0.5, 2, 300), error, 3)
    fresh = replace(fresh, agent_labels=tuple(f"new {label}" for label in fresh.agent_labels))
    early, late = fresh.split(0.5)
    known = persim_gym.personalize(calibrated, early)
    steps = range(2, 6)  # which have the same widths, that hold on average over them
    found = interval_coverage(known, late, horizons=steps, draws=4)
    covered = np.array([row.by_coordinate[0] for row in found]).reshape(4, 3)
    np.testing.assert_allclose(covered.mean(axis=0), [0.5, 0.8, 0.95], atol=0.06)
    assert all(row.agents == 300 and row.segments == 1000 for row in found)
    normal = interval_coverage(replace(known, calibration=None), late, horizons=steps, draws=4)
    assert abs(np.mean([row.by_coordinate[0] for row in normal if row.level == 0.8]) - 0.8) > 0.1
    assert found == interval_coverage(known, late, horizons=steps, draws=4), "the same seed, the same rows"


def test_a_model_that_diverges_covers_nothing():
    """Means that are not numbers are no intervals."""
    ensemble = walkers(spread=1e-4, noise=0.1)
    wild = replace(
        ensemble,
        parameters={**ensemble.parameters, "action.weight": 1e38 * np.ones_like(ensemble.parameters["action.weight"])},
    )
    log = single_steps(["0"] * 3, [0, 0, 0])
    assert all(row.by_coordinate[0] == 0 for row in interval_coverage(wild, log, horizons=[1]))


def test_what_is_refused(cart_pole_log):
    ensemble, log = walkers(), single_steps(["0"] * 3, [0, 0, 0])
    for message, call in (
        (r"horizons=\[7, 9\] are beyond the log's longest episode, which has 1 steps", {"horizons": [7, 9]}),
        ("horizons=0 must be a whole number", {"horizons": [0]}),
        ("horizons=5 must be a list of steps ahead", {"horizons": 5}),
        ("level 2 must be above 0 and below 1", {"levels": (2,), "horizons": [1]}),
    ):
        with pytest.raises(errors.PerSimError, match=message):
            interval_coverage(ensemble, log, **call)
    with pytest.raises(errors.UnknownNameError, match="agent 'x' is not in the ensemble"):
        interval_coverage(ensemble, replace(log, agent_labels=("x",)))
    with pytest.raises(errors.MissingStatisticsError):
        interval_coverage(replace(ensemble, posterior=None), log, horizons=[1])
    tiny = {"hidden": (8,), "iterations": 1, "max_gradient_steps": 1}
    with pytest.raises(errors.MissingStatisticsError):
        interval_coverage(fit_cadm(cart_pole_log, device="cpu", progress=False, **tiny), cart_pole_log)


def test_what_is_warned_of():
    ensemble, log = walkers(), single_steps(["0"] * 3, [0, 0, 0])
    assert {row.horizon for row in interval_coverage(ensemble, log)} == {1}  # of 1, 10 and 50, without a word
    with pytest.warns(RuntimeWarning, match="trained on this very log"):
        interval_coverage(replace(ensemble, provenance=log.source), log, horizons=[1])


def test_on_the_command_line(cart_pole, cart_pole_log, tmp_path, run_python):
    """Of some agents, printed and as JSON."""
    cart_pole.save(tmp_path / "one.persim")
    own = cart_pole_log.split(0.5)[1].select(["4", "7"])
    own.save(tmp_path / "log.st")
    code = """
import sys
from persim_gym.cli.app import main
sys.argv = "persim-gym evaluate one.persim --log log.st --agents 4 --intervals --json o.json".split()
main()
"""
    printed = run_python(code, cwd=tmp_path)
    assert "coverage of intervals" in printed and "by coordinate" in printed
    records = json.loads((tmp_path / "o.json").read_text())
    assert records["log_error"] and records["interval_coverage"]
    assert records["interval_coverage"] == to_records(interval_coverage(cart_pole, own.select(["4"])))


def test_models_without_a_posterior_are_told_before_anything_is_forecast():
    model = random_ensemble("CartPole")
    log = persim_gym.collect("CartPole", num_agents=3, seed=0)
    log = replace(log, agent_labels=model.agent_labels, covariates=None)
    with pytest.raises(errors.MissingStatisticsError, match="refit_factors"):
        interval_coverage(model, log, horizons=[1])
