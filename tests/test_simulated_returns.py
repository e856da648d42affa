"""Returns of policies in the simulators: against true systems, episodes recorded one by one, and the members alone."""

import dataclasses
import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import perfect_walk_ensemble, random_ensemble, walk_task

from persim_gym import generate, load, policy_returns, simulated_policy_returns
from persim_gym.errors import InvalidArgumentError, PerSimError, UnknownNameError
from persim_gym.evaluation.records import to_records


def lean(observations):
    """Push to where the pole leans."""
    return (observations[:, 2] > 0).astype(int)


def test_a_perfect_simulator_tells_the_true_return():
    """The walk home, whatever speed; all members are the truth."""
    walk = perfect_walk_ensemble(walk_task(start=3.0, goal=4.0, limit=12))

    def home(observations):
        return np.where(observations[:, 0] > 0, 0, 1)

    true = policy_returns(walk, home, episodes=3)
    rows = simulated_policy_returns(walk, home, episodes=3, starts="task")
    assert [(row.agent, row.mean, row.std, row.length) for row in rows] == [
        (row.agent, row.mean, row.std, row.length) for row in true
    ]
    assert all(row.members == (row.mean,) * 2 and row.episodes == 3 and row.policy == "home" for row in rows)
    assert rows[0].mean == -2.5 - 2 - 1.5 - 1 - 0.5


@pytest.mark.parametrize("policy", [lean, "random"])
def test_the_members_are_asked_one_by_one(policy):
    """From the same first states, with the same draws."""
    ensemble = random_ensemble("CartPole", num_agents=4, step_size=0.02)
    common = {"episodes": 6, "seed": 2, "max_episode_steps": 30, "starts": "task"}
    first, second = simulated_policy_returns(ensemble, policy, agents=[3, 1], **common)
    assert (first.agent, second.agent) == ("agent 3", "agent 1") and first.episodes == 6
    log = generate(ensemble, [3, 1], 6, policy, seed=2, max_episode_steps=30, starts="task", progress=False)
    returns = log.episode_returns.reshape(2, 6)
    np.testing.assert_allclose([first.mean, second.mean], returns.mean(axis=1))
    np.testing.assert_allclose([first.std, second.std], returns.std(axis=1))
    assert len(first.members) == 3 and len(set(first.members)) > 1
    for member, mean in enumerate(first.members):
        alone, _ = simulated_policy_returns(ensemble.with_members([member]), policy, agents=[3, 1], **common)
        assert alone.mean == mean == alone.members[0]
    assert len(simulated_policy_returns(ensemble, policy, episodes=1)) == 4, "all agents, if none are named"
    (middle, _) = simulated_policy_returns(ensemble, policy, agents=[3, 1], aggregate="median", **common)
    assert middle.members == first.members
    assert to_records([first])[0]["members"] == list(first.members)


def test_shipped_models_know_what_is_familiar():
    """Random actions, which the log has, seldom lead out of it; agent 4, whose pole is short, is left out."""
    for name in ("CartPole", "MountainCar"):
        rows = simulated_policy_returns(load(name), "random", agents=range(4), episodes=3, max_episode_steps=20)
        assert np.mean([row.unfamiliar for row in rows]) < 0.1


def test_steps_unlike_the_log_s_are_counted(recwarn):
    """Those on which the members disagree by more than they do in the log; if they are many it is warned of, once."""
    ensemble = random_ensemble("CartPole", num_agents=4, step_size=0.02)
    common = {"agents": [3, 1], "episodes": 6, "seed": 2, "max_episode_steps": 30, "starts": "task"}
    unknown = simulated_policy_returns(ensemble, lean, **common)
    assert all(np.isnan(row.unfamiliar) for row in unknown) and to_records(unknown)[0]["unfamiliar"] is None
    log = generate(ensemble, [3, 1], 6, lean, seed=2, max_episode_steps=30, starts="task", progress=False)
    found = [ensemble.simulator(agent).step(log.observations[own], log.actions[own]).disagreement
             for agent, own in ((3, log.agents == 0), (1, log.agents == 1))]  # fmt: skip
    assert [row.terminated for row in unknown] == [log.terminated[log.agents == agent].sum() / 6 for agent in (0, 1)]
    for part, warned in ((0.01, False), (2.4, True)):
        limits = np.quantile(np.concatenate(found), 1 - part / 4, axis=0)
        known = dataclasses.replace(ensemble, provenance={"familiar_disagreement": limits.tolist()})
        recwarn.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            rows = simulated_policy_returns(known, lean, **common)
        shares = [(one > limits).any(axis=1).mean() for one in found]
        np.testing.assert_allclose([row.unfamiliar for row in rows], shares)
        assert len(recwarn) == (warned and max(shares) >= 0.5) == warned
        assert [(row.mean, row.members) for row in rows] == [(row.mean, row.members) for row in unknown]
    worst = rows[int(np.argmax(shares))].agent
    assert f"agent {worst!r} takes {max(shares):.0%} of its simulated steps" in str(recwarn[0].message)
    (alone, *_) = simulated_policy_returns(known.with_members([0]), lean, **common)
    assert np.isnan(alone.unfamiliar), "a single member disagrees with nobody"


def test_labels_that_look_like_indices_are_no_trap():
    """With none named, every agent is measured once, under its own label."""
    walk = perfect_walk_ensemble(walk_task(limit=3)).with_agents([2, 0, 1])
    rows = simulated_policy_returns(walk, lambda observations: np.full(len(observations), 2), episodes=1)
    assert [(row.agent, row.mean) for row in rows] == [("2", -12.0), ("0", -3.0), ("1", -6.0)]


def test_a_simulator_that_diverges_is_told_of():
    """The second member knows no last action; the mean of the members is then no number either."""
    walk = perfect_walk_ensemble(walk_task(limit=4))
    weights = np.array(walk.parameters["action.weight"])
    weights[1, 2] = np.nan
    broken = dataclasses.replace(walk, parameters={**walk.parameters, "action.weight": weights})
    with pytest.raises(PerSimError, match="already the first one diverges"):
        simulated_policy_returns(broken, lambda observations: np.full(len(observations), 2), agents=[1], episodes=2)

    def to_and_fro(observations):
        return np.where(observations[:, 0] < 0, 2, 0)

    with pytest.warns(RuntimeWarning, match="4 episodes were cut where a simulator diverges"):
        (row,) = simulated_policy_returns(broken, to_and_fro, agents=[1], episodes=2, starts=[0.25, 0.0])
    assert row.mean == -0.75 and row.members == (-0.75 - 0.25 - 0.75 - 0.25, -0.75)


def test_an_agent_who_diverges_at_once_is_left_out_and_the_others_stay_themselves():
    walk = perfect_walk_ensemble(walk_task(limit=4))
    factors = np.array(walk.parameters["agent.weight"])
    factors[1, 0] = np.nan
    broken = dataclasses.replace(walk, parameters={**walk.parameters, "agent.weight": factors})

    def up(observations):
        return np.full(len(observations), 2)

    healthy = simulated_policy_returns(walk, up, episodes=2)
    with (
        pytest.warns(RuntimeWarning, match="agent '0' is left out"),
        pytest.warns(RuntimeWarning, match="4 episodes were cut"),
    ):
        rows = simulated_policy_returns(broken, up, episodes=2)
    told = [(row.agent, row.mean, row.members, row.length) for row in rows]
    assert told == [(row.agent, row.mean, row.members, row.length) for row in healthy[1:]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"policy": "mpc"}, InvalidArgumentError, "the only policy known by name is 'random'"),
        ({"policy": 3}, InvalidArgumentError, "neither a name, nor a function"),
        ({"episodes": 0}, InvalidArgumentError, "episodes=0"),
        ({"agents": [9]}, UnknownNameError, "9"),
        ({"agents": ["0", "0"]}, InvalidArgumentError, "twice"),
        ({"aggregate": "mode"}, InvalidArgumentError, "aggregate='mode'"),
        ({"ensemble": "walk.persim"}, InvalidArgumentError, "must be an ensemble"),
    ],
)
def test_arguments_out_of_their_range(change, error, message):
    given = {"ensemble": perfect_walk_ensemble(walk_task(limit=2)), "policy": "random"} | change
    with pytest.raises(error, match=message):
        simulated_policy_returns(given.pop("ensemble"), given.pop("policy"), **given)


def test_a_truthful_simulator_earns_the_same_in_the_benchmark(monkeypatch):
    """From the same first states, with every policy that draws nothing."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    values = importlib.import_module("policy_values")
    walk = perfect_walk_ensemble(walk_task(limit=6))

    def away(observations):
        return np.full(len(observations), 2)

    def home(observations):
        return np.where(observations[:, 0] > 0, 0, 1)

    monkeypatch.setattr(values, "RULES", {"Walk": away})
    monkeypatch.setattr(values, "load", lambda env: walk)
    monkeypatch.setattr(values, "test_policy", lambda env, seed: SimpleNamespace(act=home))
    random, *others = values.measure("Walk", agents=3, episodes=2, seed=0)
    assert [row.policy for row in (random, *others)] == ["random", "away", "test policy"]
    for row in others:
        assert row.difference == row.spread == 0 and row.true == row.simulated and abs(row.correlation) == 1
    distances = [3 + speed * step for speed in (0.5, 1, 2) for step in range(1, 7)]
    assert others[0].true == pytest.approx(-sum(distances) / 3)
    assert random.difference > 0 and (random.agents, random.episodes) == (3, 2)
