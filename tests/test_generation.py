"""Synthetic trajectories: what the policies do in the simulator, when episodes end, and the mark they carry."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support import perfect_walk_ensemble, random_ensemble, walk_task

import persim_gym
from persim_gym import Trajectories, errors, generate, generation, interop
from persim_gym.registration import find_model
from persim_gym.tasks import get_task

quiet = partial(generate, progress=False)


@pytest.fixture(scope="module")
def walk():
    """Three agents with steps of 0.5, 1 and 2, a goal at 4, rewards −|x'|."""
    return perfect_walk_ensemble(walk_task(start=3.0, goal=4.0, limit=12))


def test_whole_plans_and_mpc_reach_the_origin():
    """The best is to walk from 3 to 0 and stay."""
    walk = perfect_walk_ensemble(walk_task(limit=12))
    for policy in ("plan", "mpc"):
        log = quiet(walk, ["0", 2], 2, policy, starts="task", horizon=3, num_candidates=200)
        assert log.agent_labels == ("0", "2") and log.num_episodes == 4
        assert log.episode_lengths.tolist() == [12] * 4 and log.truncated.sum() == 4 and not log.terminated.any()
        returns = [-2.5 - 2 - 1.5 - 1 - 0.5] * 2 + [-1 - 1 * 11] * 2
        np.testing.assert_allclose(log.episode_returns, returns, atol=0.6)
        np.testing.assert_array_equal(log.rewards, -np.abs(log.next_observations[:, 0]))
        inner = ~log.truncated
        np.testing.assert_array_equal(log.next_observations[inner], log.observations[1:][inner[:-1]])


def test_a_whole_plan_is_searched_once(walk, monkeypatch):
    """With a horizon of 3 and 12 steps there are four searches, with MPC twelve."""
    searches = []
    original = persim_gym.MPCAgent.plan
    monkeypatch.setattr(persim_gym.MPCAgent, "plan", lambda *a, **k: searches.append(1) or original(*a, **k))
    for policy, expected in (("plan", 4), ("mpc", 12)):
        searches.clear()
        quiet(walk, [0], 3, policy, starts=[0.0, 0.0], horizon=3, num_candidates=5)
        assert len(searches) == expected


def test_a_policy_may_change_the_observations_it_is_given(walk):
    """As one does that scales them in place."""

    def scaled(observations):
        observations -= 3.0
        return (observations[:, 0] < 0).astype(int) * 2

    log = quiet(walk, [0, 1], 2, scaled, starts="task")
    same = quiet(walk, [0, 1], 2, lambda observations: (observations[:, 0] < 3).astype(int) * 2, starts="task")
    assert log.digest == same.digest


def test_a_policys_memory_stays_with_its_agent_in_simulators(walk):
    """The first agent is the first to arrive; the others' rows of the state are then still their own."""

    class Memory:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            state = np.array([2, 1, 0]) if state is None else state
            return state, state

    log = quiet(walk, [0, 1, 2], 1, Memory(), starts="task")
    assert log.episode_lengths.tolist() == [2, 12, 12]
    np.testing.assert_array_equal(log.actions, 2 - log.agents)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ([[3.0, 0.0]] * 4, None),
        (np.full((4, 2), np.nan), "task Walk must return .*, 4 at this call: .* must be finite, got nan as x"),
        (np.zeros((2, 2)), r"task Walk must return .*, 4 at this call: .* must have shape \(4, 2\)"),
        (np.full((4, 2), 1e4), "task Walk must return .*, 4 at this call: x = 10000 is outside its range"),
    ],
)
def test_a_tasks_own_first_states_are_checked(walk, drawn, message):
    changed = replace(walk, task=replace(walk.task, initial_observations=lambda rng, count: drawn))
    if message is None:
        assert quiet(changed, [0, 1], 2, "random", starts="task").observations[0].tolist() == [3.0, 0.0]
        return
    with pytest.raises(errors.InvalidStateError, match=message):
        quiet(changed, [0, 1], 2, "random", starts="task")


def test_episodes_end_at_the_terminal_state(walk):
    """Walking up from 3: agents reach the goal after 2, 1 and 1 steps, and those that are over no longer act."""
    seen = []

    def up(observations):
        seen.append(len(observations))
        return np.full(len(observations), 2)

    log = quiet(walk, [0, 1, 2], 1, up, starts="task")
    assert log.episode_lengths.tolist() == [2, 1, 1] and log.terminated.tolist() == [False, True, True, True]
    assert seen == [3, 1] and not log.truncated.any()
    assert log.next_observations[:, 0].tolist() == [3.5, 4, 4, 5]
    assert log.covariates.tolist() == [[0.5], [1], [2]] and log.covariate_names == ("speed",)


def test_first_states(walk):
    """From the log, drawn, from the task, or given, for all or each."""
    known = np.array([[0, 0], [1, 0], [2, 0]], np.float32)
    drawn = quiet(replace(walk, initial_observations=known), [0], 30, "random", max_episode_steps=1)
    assert {tuple(state) for state in drawn.initial_observations} == {tuple(state) for state in known}
    assert quiet(walk, [0], 2, "random", starts="task").initial_observations.tolist() == [[3, 0]] * 2
    each = np.arange(8.0).reshape(2, 2, 2) / 10
    assert np.allclose(quiet(walk, [0, 1], 2, "random", starts=each).initial_observations, each.reshape(4, 2))
    assert quiet(walk, [0, 1], 1, "random", starts=[[1, 0]]).initial_observations.tolist() == [[1, 0]] * 2


def test_first_states_that_lie_far_apart():
    """The farthest from the mean, the farthest from it, then the middle; the same of every agent, and again if few."""
    known = np.stack([[-0.05, 0, 0.1, 0.45, 0.5], np.zeros(5)], axis=1).astype(np.float32)
    ensemble = replace(random_ensemble("MountainCar"), initial_observations=known)
    log = quiet(ensemble, [0, 1], 3, "random", starts="spread", max_episode_steps=1)
    np.testing.assert_allclose(log.initial_observations[:, 0], 2 * [0.5, -0.05, 0.1])
    assert log.provenance["starts"] == "spread"
    many = quiet(ensemble, [0], 7, "random", starts="spread", max_episode_steps=1).initial_observations[:, 0]
    assert len(set(many[:5])) == 5 and many[5:].tolist() == many[:2].tolist()


def test_same_seed_same_generated_log():
    """For every policy, and another seed gives others."""
    ensemble = random_ensemble("CartPole")
    for policy in ("plan", "random"):
        settings = {"horizon": 5, "num_candidates": 10} if policy == "plan" else {}
        logs = [quiet(ensemble, [0, 1], 2, policy, seed=seed, **settings) for seed in (3, 3, 4)]
        assert logs[0].digest == logs[1].digest != logs[2].digest


def test_the_seed_decides_what_random_actions_are_taken(walk):
    """Also where all episodes begin in one state."""
    logs = [quiet(walk, [0], 4, "random", starts=[0.0, 0.0], seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(logs[0].actions, logs[1].actions)
    assert logs[0].actions.tolist() != logs[2].actions.tolist()


def test_one_agent_or_many_is_the_same():
    """An agent's episodes do not depend on whom they run with, but for rounding."""
    ensemble = random_ensemble("HalfCheetah", step_size=0.01)
    starts = 0.1 * np.random.default_rng(0).normal(size=(2, 18))

    def push(observations):
        return np.tanh(observations[:, :6])

    both = quiet(ensemble, [0, 2], 2, push, starts=starts, max_episode_steps=5)
    alone = quiet(ensemble, [2], 2, push, starts=starts, max_episode_steps=5)
    np.testing.assert_allclose(both.observations[10:], alone.observations, rtol=1e-4, atol=1e-5)
    assert both.actions.dtype == np.float32 and both.truncated.sum() == 4


def test_episodes_are_cut_where_members_disagree(walk):
    """The second member walks further: at ten steps up they differ by one step, half of it is the deviation."""
    parameters = {name: array.copy() for name, array in walk.parameters.items()}
    parameters["state.0.weight"][1, 0, 0] = 1.0  # ReLU(x): the further up, the longer the second member's steps
    parameters["state.1.weight"][1, 0, 0] = 0.1
    ensemble = type(walk)(walk_task(start=1.0, limit=30), **{**_fields(walk), "parameters": parameters})

    def up(observations):
        return np.full(len(observations), 2)

    free = quiet(ensemble, [1], 1, up, starts="task")
    assert free.episode_lengths.tolist() == [30]
    log = quiet(ensemble, [1], 1, up, starts="task", max_disagreement=0.2)
    disagreement = 0.1 * log.observations[:, 0] / 2
    assert (disagreement <= 0.2).all() and 0.1 * log.next_observations[-1, 0] / 2 > 0.2
    assert log.truncated.tolist() == [False] * (len(log) - 1) + [True] and log.provenance["episodes_cut"] == 1
    with pytest.raises(errors.PerSimError, match="no agent has a step to record.*max_disagreement=0.01"):
        quiet(ensemble, [1], 1, up, starts="task", max_disagreement=0.01)
    partly = quiet(ensemble, [1], 3, up, starts=[[1, 0], [2, 0], [9, 0]], max_disagreement=0.2)
    assert partly.num_episodes == 2 and partly.provenance["episodes_empty"] == 1
    assert partly.provenance["episodes_cut"] == 3  # each at another step
    short = quiet(ensemble, [1], 1, up, starts=[3.9, 0.0], max_disagreement=0.2)
    assert short.truncated.tolist() == [True]  # its second step is not believed


def test_an_agent_without_a_step_is_left_out(cart_pole):
    """With a warning; the others are what they are without it, and keep their own labels and covariates."""
    reach = 2 * cart_pole.simulator(agents=[5, 3]).step(np.zeros((2, 4)), np.ones(2, int)).disagreement.max(axis=0)
    parameters = {name: array.copy() for name, array in cart_pole.parameters.items()}
    parameters["agent.weight"][0, 1] += 100.0
    ensemble = replace(cart_pole, parameters=parameters)
    settings = {"starts": np.zeros(4), "max_disagreement": reach, "max_episode_steps": 1}
    with pytest.warns(RuntimeWarning, match=r"agent '1' is left out \(1 of 3 agents\), as it has no step"):
        log = quiet(ensemble, [5, 1, 3], 2, lambda observations: np.ones(len(observations), int), **settings)
    assert log.agent_labels == ("5", "3") and log.agents.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(log.covariates, ensemble.covariates[[5, 3]])
    following = ensemble.simulator(agents=[5, 5, 3, 3]).step(log.observations, log.actions).next_observations
    np.testing.assert_allclose(log.next_observations, following, atol=1e-6)
    assert log.provenance["episodes_empty"] == 2


def _fields(ensemble):
    return {
        name: getattr(ensemble, name)
        for name in ("config", "normalizer", "agent_labels", "initial_observations", "covariates", "provenance")
    }


def test_generated_states_stay_in_the_observation_space():
    """A model that runs off every bound is stopped at it, as in the environments."""
    ensemble = random_ensemble("MountainCar", step_size=50.0)
    log = quiet(ensemble, [0], 3, "random", max_episode_steps=4)
    space = ensemble.task.observation_space
    assert all(state in space for state in log.next_observations)
    assert (log.next_observations == space.low).any() and (log.next_observations == space.high).any()


@pytest.mark.parametrize("agents", [[1], [0, 2]])
def test_members_are_combined_as_asked_for(agents):
    ensemble = random_ensemble("CartPole", step_size=0.01)
    settings = {"starts": "task", "max_episode_steps": 9}
    logs = {name: quiet(ensemble, agents, 2, "random", aggregate=name, **settings) for name in ("mean", "median")}
    for aggregate, log in logs.items():
        own = [ensemble.agent_labels[agents[agent]] for agent in log.agents]
        step = ensemble.simulator(agents=own, aggregate=aggregate).step(log.observations, log.actions)
        np.testing.assert_allclose(log.next_observations, step.next_observations, atol=1e-5)
    first = [log.next_observations[0] for log in logs.values()]
    assert np.abs(first[0] - first[1]).max() > 1e-4


def test_planners_combine_members_as_asked_for():
    """One of three members walks the other way, ten times as fast: the median outvotes it, the mean does not."""
    walk = perfect_walk_ensemble(walk_task(limit=6), members=3)
    action_weight = walk.parameters["action.weight"].copy()
    action_weight[2] *= -10
    spoiled = replace(walk, parameters={**walk.parameters, "action.weight": action_weight})
    settings = {"points": (13, 2), "bounds": ([-6, 0], [6, 1])}
    best = -2 - 1  # from 3 to 0
    for aggregate in ("median", "mean"):
        log = quiet(spoiled, [1], 1, "value_iteration", starts="task", aggregate=aggregate, **settings)
        (row,) = persim_gym.value_iteration_returns(spoiled, agents=[1], episodes=1, aggregate=aggregate, **settings)
        (plan,) = persim_gym.mpc_returns(spoiled, agents=[1], episodes=1, aggregate=aggregate, horizon=4)
        assert (row.mean == best) == (log.episode_returns[0] == best) == (aggregate == "median")
        assert (plan.mean == best) == (aggregate == "median")


def test_the_mark_stays(walk, tmp_path, cart_pole_log):
    """In the log, its file, its parts, joins, and in a model that learned from it: shown by repr."""
    log = quiet(walk, [0, 1], 2, "random")
    assert log.provenance["synthetic"] is True and repr(log).endswith("synthetic)")
    log.save(tmp_path / "log")
    assert repr(Trajectories.load(tmp_path / "log")) == repr(log)
    assert log.select([1]).provenance["synthetic"] is True
    recorded = Trajectories.from_arrays(
        agents=["0"] * 2, observations=np.zeros((2, 2)), actions=[0, 1], next_observations=np.ones((2, 2)), task="Walk",
        covariates=[[0.5]], covariate_names=["speed"],
    )  # fmt: skip
    assert "synthetic" not in repr(recorded)
    assert repr(Trajectories.concatenate([recorded, log])).endswith("synthetic in part)")
    assert Trajectories.concatenate([log, log.select([0])]).provenance["synthetic"] is True
    config = persim_gym.PerSimConfig(rank=1, state_hidden=(4,), num_members=1, epochs=1)
    learned = persim_gym.fit(log, task=walk.task, config=config, validation_fraction=0, progress=False)
    assert "learned from synthetic data" in repr(learned)
    again = quiet(learned, [0], 1, "random")
    assert again.provenance["simulator"]["data"]["synthetic"] is True
    pytest.importorskip("pandas")
    assert set(interop.to_dataframe(log)["synthetic"]) == {"True"}


def test_policies_of_other_libraries(cart_pole):
    """Stable-Baselines3's `predict` takes a state and returns one, d3rlpy's neither."""

    class Plain:
        def predict(self, x):
            return (x[:, 2] > 0).astype(int)

    log = quiet(cart_pole, [0, 1], 2, Plain(), max_episode_steps=6)
    assert log.provenance["policy"] == "Plain"
    np.testing.assert_array_equal(log.actions, log.observations[:, 2] > 0)
    sb3 = pytest.importorskip("stable_baselines3")
    import gymnasium

    model = sb3.DQN("MlpPolicy", gymnasium.make("PerSim-CartPole-agent0-v0"), learning_starts=0, buffer_size=100)
    log = quiet(cart_pole, [0], 2, model, max_episode_steps=6)
    np.testing.assert_array_equal(log.actions, model.predict(log.observations, deterministic=True)[0])


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (errors.UnknownNameError, "no agent 7", {"agents": [7]}),
        (errors.UnknownNameError, "labelled 'bob'", {"agents": ["bob"]}),
        (errors.InvalidArgumentError, r"agents=0 must be a list.*\[0\]", {"agents": 0}),
        (errors.InvalidArgumentError, "none twice", {"agents": [0, 0]}),
        (errors.InvalidArgumentError, "at least one", {"agents": []}),
        (errors.InvalidArgumentError, "episodes_per_agent=0", {"episodes_per_agent": 0}),
        (errors.InvalidArgumentError, "max_episode_steps=0", {"max_episode_steps": 0}),
        (errors.InvalidArgumentError, "must be one of plan, mpc, value_iteration, random", {"policy": "best"}),
        (errors.InvalidArgumentError, "horizon= is a setting of the planner", {"policy": "random", "horizon": 3}),
        (errors.InvalidArgumentError, "starts='here' must be one of log, spread, task", {"starts": "here"}),
        (
            errors.InvalidStateError,
            r"starts=\[0.0, 0.0, 0.0\] must be .* \(2,\), \(5, 2\)",
            {"starts": [0.0, 0.0, 0.0]},
        ),
        (errors.InvalidStateError, "must be finite, got nan as idle", {"starts": [0.0, np.nan]}),
        (errors.InvalidStateError, "x = 2000 is outside its range", {"starts": [2000.0, 0.0]}),
        (errors.InvalidStateError, r"starts=\[\[0.0\], .* must be numbers of shape", {"starts": [[0.0], [0.0, 1.0]]}),
        (errors.InvalidArgumentError, "max_disagreement=0 must be above 0", {"max_disagreement": 0}),
        (errors.InvalidArgumentError, "max_disagreement=.* 2 of them", {"max_disagreement": [1.0, 1.0, 1.0]}),
        (errors.InvalidActionError, "whole numbers from 0 to 2", {"policy": lambda o: np.full(len(o), 3)}),
    ],
)
def test_generate_arguments_out_of_range(walk, kind, message, arguments):
    """The message names the argument and its value."""
    with pytest.raises(kind, match=message):
        quiet(walk, **{"agents": [0], "policy": "random", **arguments})


def test_a_task_without_initial_states(walk):
    """Says where to start instead."""
    import dataclasses

    task = dataclasses.replace(walk.task, initial_observations=None)
    with pytest.raises(errors.InvalidArgumentError, match="starts='log'"):
        quiet(dataclasses.replace(walk, task=task), [0], 1, "random", starts="task")


def test_a_simulator_that_diverges():
    """The episode ends before the state that is no number; rewards are those of the task."""
    ensemble = random_ensemble("MountainCar")
    ensemble.parameters["state.1.bias"][:] = np.nan
    with pytest.raises(errors.PerSimError, match="diverges"):
        quiet(ensemble, [0], 1, "random")
    assert get_task("MountainCar").max_episode_steps == 500


def test_a_disagreement_that_is_no_number_is_not_believed():
    """The median leaves out a member that diverges; its disagreement with the others is not small for that."""
    ensemble = random_ensemble("MountainCar", step_size=1e-3)
    ensemble.parameters["state.1.bias"][2] = np.nan
    settings = {"policy": "random", "aggregate": "median", "max_episode_steps": 3, "starts": "task"}
    assert len(quiet(ensemble, [0], 1, **settings)) == 3
    with pytest.raises(errors.PerSimError, match="disagree on it by more than max_disagreement=1000"):
        quiet(ensemble, [0], 1, max_disagreement=1000, **settings)


def test_value_iteration_solves_each_agent_once_in_its_own_simulator(monkeypatch):
    """Lighter and heavier gravity, together, as each by itself; all reach the goal."""
    ensemble, solved = persim_gym.load(find_model("MountainCar")), []
    solve = generation.ValueIterationAgent
    monkeypatch.setattr(
        generation, "ValueIterationAgent", lambda model, **given: solved.append(model) or solve(model, **given)
    )
    settings = {"starts": np.array([-0.5, 0.0]), "progress": False, "points": 61}
    together = generate(ensemble, [0, 4], 2, "value_iteration", **settings)
    assert len(solved) == 2 and together.terminated[together.episode_starts + together.episode_lengths - 1].all()
    for agent, episode in ((0, 0), (4, 2)):
        alone = generate(ensemble, [agent], 1, "value_iteration", **settings)
        rows = slice(together.episode_starts[episode], together.episode_starts[episode] + len(alone))
        np.testing.assert_array_equal(together.actions[rows], alone.actions)
    assert together.episode_lengths[0] < 50 < 90 < together.episode_lengths[2] < 200
    assert together.provenance["policy"] == "value_iteration" and together.provenance["planner"] == {"points": 61}
    with pytest.raises(errors.InvalidArgumentError, match="discrete actions"):
        generate(random_ensemble("HalfCheetah"), [0], 1, "value_iteration", progress=False)


def test_newcomers_without_covariates(cart_pole):
    """Those of the others are known; a log that has not all has none."""
    stranger = persim_gym.collect("CartPole", num_agents=1, seed=9)
    stranger = replace(stranger, covariates=None, covariate_names=(), agent_labels=("stranger",))
    grown = persim_gym.personalize(cart_pole, stranger)
    assert quiet(grown, ["0"], 1, "random").covariate_names == ("force", "length")
    mixed = quiet(grown, ["0", "stranger"], 1, "random")
    assert mixed.covariates is None and mixed.agent_labels == ("0", "stranger")
