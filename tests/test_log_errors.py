"""Errors along a log, against a plain loop, and what they say of a table's simulator."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support import perfect_walk_ensemble, random_actions, random_ensemble, reference_changes, walk_task

import persim_gym
from persim_gym import errors, log_error
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.cli.app import _measured_along
from persim_gym.envs import PersonalizedEnv
from persim_gym.evaluation.log_errors import LogError, mean_over_agents
from persim_gym.evaluation.records import to_records


def random_log(ensemble, lengths, agents):
    """Episodes of random states: no model follows them."""
    rng = np.random.default_rng(3)
    count = sum(lengths)
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat(agents, lengths),
        observations=0.1 * rng.normal(size=(count, ensemble.task.observation_size)),
        actions=random_actions(ensemble.task, rng, count),
        next_observations=0.1 * rng.normal(size=(count, ensemble.task.observation_size)),
        episode_starts=np.append(0, np.cumsum(lengths)[:-1]),
    )


@pytest.mark.parametrize("aggregate", ["mean", "median"])
def test_against_a_plain_loop(aggregate):
    """Segments of four steps and what is left of each episode, each member on its own trajectory."""
    ensemble = random_ensemble("CartPole")
    log = random_log(ensemble, [9, 3, 4], ["agent 2", "agent 0", "agent 2"])
    wrong, still = {label: [] for label in log.agent_labels}, {label: [] for label in log.agent_labels}
    for start, end, agent in zip(log.episode_starts, log.episode_ends, log.episode_agents, strict=True):
        label = log.agent_labels[agent]
        for row in range(start, end):
            if (row - start) % 4 == 0:
                first = np.asarray(log.observations[row], np.float64)
                states = np.tile(first, (3, 1))
            moves = [
                reference_changes(ensemble, int(label[-1]), [state], [log.actions[row]])[member, 0]
                for member, state in enumerate(states)
            ]
            states = states + np.array(moves)
            wrong[label].append(getattr(np, aggregate)(states, axis=0) - log.next_observations[row])
            still[label].append(first - log.next_observations[row])
    found = log_error(ensemble, log, horizon=4, aggregate=aggregate)
    assert [(row.agent, row.segments, row.steps) for row in found] == [("agent 2", 4, 13), ("agent 0", 1, 3)]
    for row in found:
        rmse, unchanged = (np.sqrt(np.mean(np.square(one[row.agent]), axis=0)) for one in (wrong, still))
        np.testing.assert_allclose(row.rmse, rmse, rtol=1e-4)
        np.testing.assert_allclose(row.unchanged, unchanged, rtol=1e-6)
        assert row.ratio == pytest.approx(np.sqrt(np.mean((rmse / unchanged) ** 2)), rel=1e-4)


def test_a_perfect_simulator_and_that_of_another_agent():
    """The second coordinate never changes and does not count."""
    walk = perfect_walk_ensemble(walk_task())
    log = persim_gym.collect(walk_task(), num_agents=3, seed=0)
    assert [row.ratio for row in log_error(walk, log)] == pytest.approx([0, 0, 0], abs=1e-6)
    swapped = replace(log, agent_labels=("2", "1", "0"), covariates=None)
    ratios = [row.ratio for row in log_error(walk, swapped)]
    assert ratios[0] == pytest.approx(3, rel=0.01) and ratios[1] == pytest.approx(0, abs=1e-6) and ratios[2] < 1
    resting = replace(log, next_observations=log.observations)
    found = log_error(walk, resting.select(["0"]), horizon=1)
    assert np.isnan(found[0].ratio)
    assert json.loads(json.dumps(to_records(found), allow_nan=False))[0]["ratio"] is None


def test_other_dynamics_and_members_that_diverge(cart_pole_log):
    model = fit_cadm(cart_pole_log, device="cpu", progress=False, hidden=(8,), iterations=1, max_gradient_steps=1)
    assert all(np.isfinite(row.ratio) for row in log_error(model, cart_pole_log.split(0.5)[1].select(["3", "1"])))
    wild = random_ensemble("CartPole", step_size=1e30)
    assert not np.isfinite(log_error(wild, random_log(wild, [40], ["agent 0"]))[0].ratio)
    assert log_error(wild, random_log(wild, [40], ["agent 0"]))[0].ratio == np.inf  # last when sorted, unlike NaN


def test_the_mean_over_agents():
    """Of ratios that there are; a simulator that diverges is not hidden."""
    still, moving = (
        LogError("a", ratio=np.nan, rmse=(1.0, 2.0), unchanged=(0.0, 0.0), segments=1, steps=3),
        LogError("b", ratio=0.5, rmse=(3.0, 6.0), unchanged=(1.0, 2.0), segments=2, steps=9),
    )
    assert mean_over_agents([still, moving]) == LogError("all agents", 0.5, (2.0, 4.0), (0.5, 1.0), 3, 12)
    assert np.isnan(mean_over_agents([still]).ratio)
    assert mean_over_agents([moving, replace(moving, ratio=np.inf)]).ratio == np.inf


def test_progress_is_shown_if_asked_for(capsys):
    walk, log = perfect_walk_ensemble(walk_task()), persim_gym.collect(walk_task(), num_agents=3, seed=0)
    assert log_error(walk, log) == log_error(walk, log, progress=True)
    assert "log error" in capsys.readouterr().err


def test_what_is_refused():
    walk, log = perfect_walk_ensemble(walk_task()), persim_gym.collect(walk_task(), num_agents=3, seed=0)
    with pytest.raises(errors.UnknownNameError, match=r"agent 'x' is not in the ensemble \(1 such agents\)"):
        log_error(walk, replace(log, agent_labels=("0", "x", "1")))
    with pytest.raises(errors.InvalidArgumentError, match="horizon=0 must be a whole number"):
        log_error(walk, log, horizon=0)
    with pytest.raises(errors.InvalidDataError, match="observation coordinates"):
        log_error(random_ensemble("CartPole"), log)


def test_on_the_command_line(cart_pole, cart_pole_log, tmp_path, run_python):
    """A model without a true system is measured along a log; the records are JSON."""
    cart_pole.save(tmp_path / "one.persim")
    _, held_out = cart_pole_log.split(0.5)
    log = held_out.select(["4", "7"])
    log.save(tmp_path / "log.st")
    code = """
import sys
from persim_gym.cli.app import main
sys.argv = ["persim-gym", "evaluate", "one.persim", "--log", "log.st", "--horizon", "5", "--json", "out.json"]
main()
"""
    printed = run_python(code, cwd=tmp_path)
    assert "errors along log.st, up to 5 steps" in printed and "unchanged" in printed
    records = json.loads((tmp_path / "out.json").read_text())
    expected = log_error(cart_pole, log, horizon=5)
    last = next(line for line in printed.splitlines() if "all agents" in line)
    assert last.split()[2] == f"{np.mean([row.ratio for row in expected]):.4g}"
    assert last.split()[-1] == str(sum(row.steps for row in expected))
    assert [row["agent"] for row in records["log_error"]] == ["4", "7"]
    assert records["log_error"][1]["ratio"] == pytest.approx(expected[1].ratio, rel=1e-6)


def test_a_number_that_is_another_agents_label_is_warned_of():
    """Once a call, with both names; not of what the package counts itself, nor of a label or the agent's own number."""
    walk = replace(perfect_walk_ensemble(walk_task()), agent_labels=("2", "1", "0"), covariates=None)
    log = replace(persim_gym.collect(walk_task(), num_agents=3, seed=0), agent_labels=("2", "1", "0"), covariates=None)
    both = "agent 0 is the one of index 0, labelled '2', and not the one labelled '0'"
    for call in (
        lambda: walk.simulator(0),
        lambda: walk.simulator(agents=[np.int64(0), 2]),
        lambda: walk.with_agents([0, 2]),
        lambda: log.select([0, 2]),
        lambda: walk.agent_index(0),
        lambda: persim_gym.generate(walk, [0, 1], 1, "random", starts="task", progress=False),
        lambda: PersonalizedEnv(walk, 0),
    ):
        with pytest.warns(UserWarning, match=both) as caught:
            call()
        assert len(caught) == 1
    walk.simulator("0"), walk.simulator(1), log.select(["0", "2"]), log_error(walk, log)
    padded = replace(walk, agent_labels=("0001", "0002", "0003"))
    with pytest.warns(UserWarning, match="agent 2 is the one of index 2, labelled '0003', .* labelled '0002'"):
        padded.simulator(2)
    padded.simulator(0)  # no label has this number
    persim_gym.generate(walk, ["2"], 1, "random", starts="task", progress=False)


def test_the_log_that_was_trained_on_is_noted():
    """And one that begins as it does, with more to come; what was held out of it does not, nor does another's."""
    log = persim_gym.collect(walk_task(), num_agents=3, seed=0)
    places = log.agents[:, None] * np.float32([0, 1])  # or all would begin alike
    log = replace(log, observations=log.observations + places, next_observations=log.next_observations + places)
    kept, held_out = log.split(0.5)
    walk = replace(
        perfect_walk_ensemble(walk_task()), provenance=kept.source, initial_observations=kept.initial_observations
    )
    with pytest.warns(RuntimeWarning, match=r"trained on this very log.*log\.split"):
        log_error(walk, kept)
    for whole in (log, log.select([0])):
        with pytest.warns(RuntimeWarning, match=r"most episodes of the log begin as those .*log\.split"):
            log_error(walk, whole)
    log_error(walk, held_out)
    log_error(walk, replace(log, provenance={"another": "table"}))
    log_error(replace(walk, initial_observations=np.zeros((3, 2), np.float32)), log)


def test_a_synthetic_log_is_noted(tmp_path, capsys):
    """In Python, and above the table of the command line."""
    walk, log = perfect_walk_ensemble(walk_task()), persim_gym.collect(walk_task(), num_agents=3, seed=0)
    replace(log, provenance={"synthetic": "in part"}).save(tmp_path / "log")
    with pytest.warns(RuntimeWarning, match="the log is synthetic, at least in part"):
        list(_measured_along(tmp_path / "log", walk, None, horizon=5))
    assert "log, synthetic in part, up to 5 steps" in " ".join(capsys.readouterr().out.split())
