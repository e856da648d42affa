"""Threads and torch's settings: who computes with which, and that nobody's stay changed."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from support import DEEP, SMALL, default_dtype, random_ensemble
from threadpoolctl import threadpool_info

import persim_gym
from persim_gym import MPCAgent, devices
from persim_gym.baselines import fit_cadm, fit_joint
from persim_gym.factors.covariates import fit_covariate_map
from persim_gym.rollouts import simulated_returns
from persim_gym.rollouts.batching import pieces
from persim_gym.threads import limited_threads, run_in_threads, useful_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_small_network_is_worth_one_thread(two_threads):
    assert [useful_threads(layers) for layers in ((), (256,), (257,), (8, 8))] == [1, 1, 2, 2]
    with limited_threads((256,)):
        assert torch.get_num_threads() == 1
    with limited_threads((8, 8)):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


def test_pieces_are_done_side_by_side_and_each_by_one_thread(two_threads):
    meeting, seen = threading.Barrier(2, timeout=30), []

    def work(piece):
        meeting.wait()  # passes only if both are under way
        seen.append((piece, torch.get_num_threads()))

    run_in_threads(work, [1, 2], 2)
    assert sorted(seen) == [(1, 1), (2, 1)] and torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        run_in_threads(lambda piece: 1 / piece, [1, 0], 2)
    assert torch.get_num_threads() == 2


def test_products_are_of_bfloat16_only_where_asked_for_and_worth_it(monkeypatch):
    """On a CPU that has such products, or has not."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for has_products, medium in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has_products: has, raising=False)
        assert devices.products_dtype("medium", cpu) is medium
        assert devices.products_dtype("high", cpu) is devices.products_dtype("highest", cpu) is torch.float32
        assert devices.products_dtype("medium", torch.device("meta")) is torch.float32
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # as on a Mac, where nobody can be asked
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    assert devices.products_dtype("medium", cpu) is torch.float32


def test_the_precision_of_products_is_put_back():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), devices.matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before


USERS_SETTINGS = [lambda: default_dtype(torch.float64), torch.no_grad, torch.inference_mode]
SMALL_CADM = {"hidden": (8,), "encoder_hidden": (8,), "iterations": 1, "max_epochs": 1, "config": "PE-TS CaDM"}


def learned(log, learner):
    """What a learner finds, as arrays."""
    if learner == "covariate map":
        return [fit_covariate_map(personalized_by(log), kind="mlp").predict(np.array([[9.0, 0.5]]))[0]]
    if learner == "cadm":
        return list(fit_cadm(log, device="cpu", progress=False, **SMALL_CADM).parameters.values())
    fit = {"fit": persim_gym.fit, "joint": fit_joint}[learner]
    small = {"epochs": 1, "state_hidden": (8, 8), "num_members": 2}
    return list(fit(log, device="cpu", progress=False, **small).parameters.values())


def personalized_by(log):
    """An ensemble that knows the covariates of a log's agents, without their posterior."""
    ensemble = random_ensemble("CartPole", SMALL, num_agents=log.num_agents)
    return dataclasses.replace(ensemble, covariates=log.covariates)


@pytest.mark.parametrize("learner", ["fit", "joint", "cadm", "covariate map"])
def test_training_is_the_same_whatever_torchs_settings_are(learner, monkeypatch):
    monkeypatch.setattr("persim_gym.factors.covariates._MLP_STEPS", 20)
    log = persim_gym.collect("CartPole", num_agents=6, seed=0)
    expected = learned(log, learner)
    for settings in USERS_SETTINGS:
        with settings():
            before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            found = learned(log, learner)
            assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_users_torch_settings_come_back_after_an_error():
    with default_dtype(torch.float64), torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            devices.with_torch_defaults(lambda: 1 / 0)()
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()


@pytest.mark.parametrize("propagation", ["per_member", "mean_state"])
def test_plans_are_the_same_whatever_torchs_default_dtype_is(propagation):
    """Those of a model that draws its next states among them."""
    log = persim_gym.collect("CartPole", num_agents=3, seed=0)
    model = fit_cadm(log, device="cpu", progress=False, **SMALL_CADM)

    def planned():
        agent = MPCAgent(model.simulator(0), num_candidates=9, horizon=4, propagation=propagation)
        return agent.plan(np.zeros((1, 4))), model.simulator(0).rollout(np.zeros((1, 4)), np.ones((1, 4), int))

    plan, paths = planned()
    with default_dtype(torch.float64):
        other, others_paths = planned()
    np.testing.assert_array_equal(paths, others_paths)
    np.testing.assert_array_equal(plan.returns, other.returns)


@pytest.mark.parametrize(("together", "candidates", "threads", "most", "count"), [
    ([0], 200, 1, None, 1), ([0], 200, 2, None, 2), ([0, 1, 2, 3], 200, 2, None, 4), ([0, 1, 2], 7, 2, None, 6),
    ([0], 3, 8, None, 3), ([0, 1, 2, 3, 4, 5], 10, 4, None, 12),
    ([7, 7, 7], 30, 1, 256, 1), ([7, 7, 7], 30, 2, 256, 2), ([7, 7, 2], 200, 1, 256, 3), ([7] * 5, 200, 2, 256, 4),
])  # fmt: skip
def test_every_candidate_is_in_one_piece(together, candidates, threads, most, count):
    """No piece is of environments that differ, or longer than it may be."""
    seen = np.zeros(len(together) * candidates, int)
    kinds = np.repeat(together, candidates)
    found = pieces(np.array(together), candidates, threads, most)
    for part in found:
        assert len(set(kinds[part])) == 1 and (most is None or part.stop - part.start <= most)
        seen[part] += 1
    assert (seen == 1).all() and len(found) == count


@pytest.mark.parametrize("propagation", ["per_member", "mean_state"])
@pytest.mark.parametrize("agents", [[1], [1, 1, 0, 0]], ids=["one agent", "two agents"])
def test_environments_scored_together_score_as_alone(agents, propagation):
    """Four of them with 90 candidates each, so that two share a piece and one is cut."""
    ensemble, rng = random_ensemble("HalfCheetah", DEEP), np.random.default_rng(0)
    starts, actions = 0.05 * rng.normal(size=(4, 18)), rng.uniform(-1, 1, (4, 90, 6, 6))
    found = simulated_returns(ensemble.simulator(agents=agents), starts, propagation=propagation)(np.arange(4), actions)
    for row, agent in enumerate(np.broadcast_to(agents, 4).tolist()):
        alone = simulated_returns(ensemble.simulator(agent), starts[[row]], propagation=propagation)
        np.testing.assert_allclose(found[row], alone(np.array([0]), actions[[row]])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["CartPole", "HalfCheetah"])
@pytest.mark.parametrize("propagation", ["per_member", "mean_state"])
def test_two_threads_find_what_one_finds(name, propagation, two_threads):
    ensemble = random_ensemble(name, DEEP)
    task, rng = ensemble.task, np.random.default_rng(0)
    starts = rng.normal(size=(3, task.observation_size)) * 0.05
    shape = (3, 5, 6)
    actions = rng.integers(task.action_size, size=shape) if task.discrete else rng.uniform(-1, 1, (*shape, 6))
    score = simulated_returns(ensemble.simulator(agents=[0, 1, 2]), starts, propagation=propagation)
    together = score(np.arange(3), actions)
    torch.set_num_threads(1)
    np.testing.assert_allclose(together, score(np.arange(3), actions), rtol=1e-4, atol=1e-4)


def test_numpy_has_one_thread_while_it_takes_turns_with_a_simulator():
    before, seen = blas_threads(), []

    def policy(observations):
        seen.append(blas_threads())
        return np.zeros(len(observations), int)

    persim_gym.generate(random_ensemble("CartPole", SMALL), [0], 2, policy=policy, progress=False)
    assert seen and all(threads == {1} for threads in seen) and blas_threads() == before
