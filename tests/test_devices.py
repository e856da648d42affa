"""Threads: who computes with how many, and that nobody's number stays changed."""

import threading

import numpy as np
import pytest
import torch
from support import DEEP, SMALL, random_ensemble
from threadpoolctl import threadpool_info

import persim_gym
from persim_gym import devices
from persim_gym.rollouts import _pieces, simulated_returns


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_small_network_is_worth_one_thread(two_threads):
    assert [devices.threads_worth(layers) for layers in ((256,), (257,), (8, 8))] == [1, 2, 2]
    with devices.threads_for((256,)):
        assert torch.get_num_threads() == 1
    with devices.threads_for((8, 8)):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


def test_pieces_are_done_side_by_side_and_each_by_one_thread(two_threads):
    meeting, seen = threading.Barrier(2, timeout=30), []

    def work(piece):
        meeting.wait()  # passes only if both are under way
        seen.append((piece, torch.get_num_threads()))

    devices.in_threads(work, [1, 2], 2)
    assert sorted(seen) == [(1, 1), (2, 1)] and torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        devices.in_threads(lambda piece: 1 / piece, [1, 0], 2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("environments", "candidates", "threads", "count"), [
    (1, 200, 1, 1), (1, 200, 2, 2), (4, 200, 2, 4), (3, 7, 2, 6), (1, 3, 8, 3), (6, 10, 4, 12),
])  # fmt: skip
def test_every_candidate_is_in_one_piece(environments, candidates, threads, count):
    seen = np.zeros((environments, candidates), int)
    pieces = _pieces(environments, candidates, threads)
    for row, part in pieces:
        assert part.stop > part.start
        seen[row, part] += 1
    assert (seen == 1).all() and len(pieces) == count


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
