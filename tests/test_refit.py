"""The closed-form refit of the state encoder's last layer, against the textbook's formula on every row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import DEEP_SKIPPING, SKIPPING, SMALL, random_ensemble, roomy, simulated_log

import persim_gym
from persim_gym import errors, refit_factors
from persim_gym.factors import refit
from persim_gym.factors.refit import refit_in_turns, refit_state_head
from persim_gym.training.errors import one_step_errors

CASES = [(task, config) for task in ("CartPole", "HalfCheetah") for config in (SMALL, SKIPPING, DEEP_SKIPPING)]


def design(ensemble, log, member):
    """Return one member's features (T, r·K), targets (T, D) and last layer (D, r·K), row by row in float64."""
    own = {name: np.asarray(array[member], np.float64) for name, array in ensemble.parameters.items()}
    normalizer, depth = ensemble.normalizer, len(ensemble.config.state_hidden)
    features, targets = [], []
    for row in range(log.num_transitions):
        state, action = np.asarray(log.observations[row], np.float64), log.actions[row]
        standard = hidden = (state - normalizer.state_mean) / normalizer.state_scale
        for layer in range(depth):
            hidden = np.maximum(own[f"state.{layer}.weight"] @ hidden + own[f"state.{layer}.bias"][:, 0], 0)
        if ensemble.task.discrete:
            w = own["action.weight"][action] + own["action.bias"]
        else:
            w = np.asarray(action, np.float64)
            for layer in range(len(ensemble.config.action_hidden) + 1):
                w = own[f"action.{layer}.weight"] @ w + own[f"action.{layer}.bias"][:, 0]
                w = np.maximum(w, 0) if layer < len(ensemble.config.action_hidden) else w
        u = own["agent.weight"][log.agents[row]] + own["agent.bias"]
        seen = np.r_[hidden, 1.0, standard] if ensemble.config.linear_skip else np.r_[hidden, 1.0]
        features.append(np.kron(u * w, seen))
        change = np.asarray(log.next_observations[row], np.float64) - state
        targets.append((change - normalizer.change_mean) / normalizer.change_scale)
    return np.array(features), np.array(targets), last_layer(ensemble, member)


def last_layer(ensemble, member):
    """Return (D, r·K): of each factor the hidden units' weights, the bias, the linear path's."""
    name = f"state.{len(ensemble.config.state_hidden)}"
    parts = [ensemble.parameters[f"{name}.weight"][member], ensemble.parameters[f"{name}.bias"][member]]
    if ensemble.config.linear_skip:
        parts.append(ensemble.parameters["state.skip"][member])
    return np.concatenate(parts, axis=1, dtype=np.float64).reshape(ensemble.task.observation_size, -1)


def shaken(ensemble, size):
    """Return the ensemble with another last layer."""
    name, rng = f"state.{len(ensemble.config.state_hidden)}.weight", np.random.default_rng(5)
    weight = ensemble.parameters[name]
    noise = size * np.abs(weight).mean() * rng.normal(size=weight.shape)
    return replace(ensemble, parameters={**ensemble.parameters, name: (weight + noise).astype(np.float32)})


@pytest.mark.parametrize(("task", "config"), CASES)
def test_ridge_regression_of_every_member(task, config, monkeypatch):
    """In batches that cut through an agent's transitions, several groups of them at a time; with few rows, too."""
    monkeypatch.setattr(refit, "_BATCH", 11)
    monkeypatch.setattr(refit, "_GROUPS_AT_ONCE", 2)
    ensemble = random_ensemble(task, config, num_agents=4)
    log = simulated_log(ensemble, [70, 1, 90, 35], noise=0.05)
    ensemble = shaken(ensemble, 0.5)
    found = refit_state_head(replace(ensemble, calibration=np.ones((4, 4, ensemble.task.observation_size))), log)
    assert found.posterior is None and found.calibration is None
    for member in range(config.num_members):
        features, targets, before = design(ensemble, log, member)
        gram = features.T @ features
        gram += refit._RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        expected = before + np.linalg.solve(gram, features.T @ (targets - features @ before.T)).T
        change = np.abs(expected - before).max()
        np.testing.assert_allclose(last_layer(found, member), expected, atol=1e-3 * change)
        assert change > 0.1 * np.abs(before).mean()
    few = np.array([3, 71, 72, 100, 190])
    by_rows = refit._solve(ensemble.with_members([0]), log, few, torch.device("cpu"))
    features, targets, before = design(ensemble, log, 0)
    assert len(few) < features.shape[1]
    gram = features[few].T @ features[few]
    gram += refit._RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    expected = np.linalg.solve(gram, features[few].T @ (targets - features @ before.T)[few]).T
    np.testing.assert_allclose(by_rows, expected, atol=1e-3 * np.abs(expected).max())
    for name in set(found.parameters) - {f"state.{len(config.state_hidden)}.{kind}" for kind in ("weight", "bias")}:
        if name != "state.skip":
            np.testing.assert_array_equal(found.parameters[name], ensemble.parameters[name])


def wrong_in_both(seed=0):
    """An ensemble whose last layer and factors are not those that made a log, the log, and the error along it."""
    config = SKIPPING.with_changes(num_members=1)
    truth = random_ensemble(roomy("MountainCar"), config, num_agents=20, seed=seed)
    log = simulated_log(truth, [60] * 20, noise=1e-4)
    wrong = shaken(truth, 0.3)
    factors = wrong.parameters["agent.weight"]
    blurred = factors + 0.1 * np.random.default_rng(0).normal(size=factors.shape).astype(np.float32)
    wrong = replace(wrong, parameters={**wrong.parameters, "agent.weight": blurred})
    return wrong, log, lambda ensemble: np.sqrt(one_step_errors(ensemble, log)[0].mean())


def test_turns_find_what_made_the_data():
    """From a last layer and factors that are both wrong, to an error near the noise."""
    wrong, log, error = wrong_in_both()
    found = refit_in_turns(wrong, log, rounds=20)
    assert error(wrong) > 20e-4 and error(found) < 2e-4
    assert found.posterior.num_transitions.tolist() == [60] * 20


def test_turns_get_farther_than_one_step_after_the_other():
    """For that each begins some way along the last one's change."""
    plain, log, error = wrong_in_both(seed=1)
    found = refit_in_turns(plain, log, rounds=6)
    for _ in range(6):
        plain = refit_state_head(refit_factors(plain, log), log)
    assert error(found) < 0.6 * error(refit_factors(plain, log))


def test_fit_refits_in_turns(cart_pole_log):
    """The training is the same; the error on the log is less; the ensemble remembers how it was made."""
    config = persim_gym.PerSimConfig(
        rank=3, num_members=2, num_candidates=3, state_hidden=(16,), epochs=3, refit_factors=True
    )
    plain, refitted = (
        persim_gym.fit(cart_pole_log, config=c, validation_fraction=0, seed=0, progress=False)
        for c in (config, config.with_changes(refit_rounds=2))
    )
    np.testing.assert_array_equal(plain.parameters["state.0.weight"], refitted.parameters["state.0.weight"])
    assert (
        one_step_errors(refitted, cart_pole_log)[:-1].mean() < 0.5 * one_step_errors(plain, cart_pole_log)[:-1].mean()
    )
    assert refitted.config.refit_rounds == 2 and refitted.posterior is not None
    means, _ = refitted.posterior.moments(range(20))
    np.testing.assert_allclose(means, refitted.agent_factors(), atol=1e-5)


def test_bad_settings():
    with pytest.raises(errors.InvalidArgumentError, match="refit_rounds=-1 must be a whole number of at least 0"):
        persim_gym.PerSimConfig(refit_rounds=-1)
    with pytest.raises(errors.InvalidArgumentError, match="refit_rounds=3 needs refit_factors=True"):
        persim_gym.PerSimConfig(refit_rounds=3)
