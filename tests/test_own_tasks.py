"""A user's own task: made of spaces and what functions there are, the others learned, loaded where nobody knows it."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from support import interrupt_after

import persim_gym
from persim_gym import MPCAgent, Task, Trajectories, errors, generate
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.joint import fit_joint
from persim_gym.baselines.morel import fit_morel
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.model import outcomes
from persim_gym.tasks import Covariate, find_task
from persim_gym.tasks.task_files import import_task
from persim_gym.training.outcomes import OutcomeLearner
from persim_gym.training.preparation import split
from persim_gym.training.trainer import Trainer

LIMIT = 3.0
CONFIG = persim_gym.PerSimConfig(
    rank=3, state_hidden=(32,), action_hidden=(16,), num_members=2, epochs=60, batch_size=64, learning_rate=1e-2,
    halve_learning_rate_every=20,
)  # fmt: skip
PRICES = np.array([0.2, 1.0, 3.0])
"""What a unit of x costs the three agents: they differ in their rewards too."""


def own_task(**changes):
    """A line from −4 to 4 with continuous or discrete pushes; nobody wrote down reward and termination."""
    given = {
        "name": "Glucose",
        "observation_space": spaces.Box(-4, 4, (2,), np.float32),
        "action_space": spaces.Discrete(3),
        "max_episode_steps": 25,
    }
    return Task(**{**given, **changes})


def own_log(*, discrete=True, seed=0, episodes=60, length=20):
    """x moves by the action, the second coordinate follows it; an episode is over when |x| exceeds 3."""
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in ("agents", "observations", "actions", "rewards", "next_observations", "terminated")}
    starts = []
    for episode in range(episodes):
        state = np.array([rng.uniform(-2.9, 2.9), 0.0])
        starts.append(len(columns["agents"]))
        for _ in range(length):
            action = rng.integers(3) if discrete else rng.uniform(-1, 1, 1)
            push = action - 1.0 if discrete else action[0]
            after = np.array([np.clip(state[0] + 0.7 * push, -4, 4), 0.5 * state[1] + 0.1 * state[0]])
            agent = episode % 3
            reward = -PRICES[agent] * abs(after[0]) - 0.5 * push**2
            over = abs(after[0]) > LIMIT
            for name, value in zip(columns, (agent, state, action, reward, after, over), strict=True):
                columns[name].append(value)
            state = after
            if over:
                break
    return Trajectories.from_arrays(
        **columns, episode_starts=starts, agent_labels=["a", "b", "patient-17"], task="Glucose"
    )


@pytest.fixture(scope="module")
def ensemble():
    """Learned with everything."""
    return persim_gym.fit(own_log(), task=own_task(), config=CONFIG, seed=0, progress=False)


def test_reward_and_termination_are_learned(ensemble):
    """On rows it never saw, for agents of different prices; the errors are in the provenance."""
    fresh = own_log(seed=9)
    for agent in range(3):
        rows = fresh.agents == agent
        task = ensemble.simulator(agent).task
        columns = fresh.observations[rows], fresh.actions[rows], fresh.next_observations[rows]
        assert np.abs(task.reward(*columns) - fresh.rewards[rows]).mean() < 0.15 * fresh.rewards[rows].std()
        wrong = task.terminated(columns[2]) != fresh.terminated[rows]
        assert wrong.mean() < 0.02
        probability = task.terminated.probability(np.array([[0.0, 0.0], [3.8, 0.5]]))
        assert probability[0] < 0.05 and probability[1] > 0.9
    assert ensemble.provenance["reward_rmse"] < 0.3
    assert ensemble.provenance["terminations_missed"] < 0.35 and ensemble.provenance["terminations_false"] < 0.02


@pytest.mark.filterwarnings("ignore:action 1 never varies")
@pytest.mark.filterwarnings("ignore:the learned termination tells", "ignore:task Glucose leaves reward and terminated")
@pytest.mark.parametrize("learner", [persim_gym.fit, fit_joint])
def test_how_wide_the_action_space_is_does_not_matter(learner):
    """Actions are scaled by what the log has of them, for dynamics and reward, not by bounds for safety's sake."""
    log = own_log(discrete=False)
    log = dataclasses.replace(log, actions=np.insert(log.actions, 1, 0.5, axis=1))  # a coordinate that nobody varied
    arrays = []
    for bound in (1, 1000):
        task = own_task(action_space=spaces.Box(-bound, bound, (2,), np.float32))
        model = learner(log, task=task, config=CONFIG, epochs=2, device="cpu", progress=False)
        arrays.append([*model.parameters.values()])
        if learner is persim_gym.fit:
            arrays[-1] += model.outcomes["reward"].parameters.values()
    assert all(np.array_equal(*pair) for pair in zip(*arrays, strict=True))


def test_a_dose_that_is_small_in_its_space_is_learned():
    """Units as the log has them: a dose of 0 to 10 of at most 1000."""
    log = own_log(discrete=False)
    dosed = dataclasses.replace(log, actions=5 + 5 * log.actions)
    task = own_task(action_space=spaces.Box(0, 1000, (1,), np.float32))
    model = persim_gym.fit(dosed, task=task, config=CONFIG, validation_fraction=0, progress=False)
    after = model.simulator(0).step(np.zeros((3, 2)), [[0.0], [5.0], [10.0]]).next_observations[:, 0]
    np.testing.assert_allclose(after, [-0.7, 0, 0.7], atol=0.1)


@pytest.mark.filterwarnings("ignore:the learned termination tells")
def test_a_reward_that_never_varies_is_learned_exactly():
    """Then there is nothing in which agents could differ, for newcomers neither."""
    log = dataclasses.replace(own_log(), rewards=np.full(len(own_log()), 0.7, np.float32))
    model = persim_gym.fit(log, task=own_task(), config=CONFIG, epochs=2, refit=False, progress=False)
    assert "reward" not in model.provenance["outcomes_by_agent"]
    reward = model.simulator(0).task.reward(log.observations[:9], log.actions[:9], log.next_observations[:9])
    np.testing.assert_array_equal(reward, np.full(9, 0.7, np.float32))


def test_the_errors_of_what_was_learned_are_those_on_the_rows_held_out():
    """Of the ensemble that was validated: of its rewards in their units, of its ends by the kind of row."""
    log, config = own_log(), CONFIG.with_changes(epochs=15)
    ensemble = persim_gym.fit(log, task=own_task(), config=config, refit=False, progress=False)
    kept, held_out = split(log.num_transitions, 0.2, 0)
    np.testing.assert_array_equal(
        ensemble.outcomes["reward"].posterior.num_transitions, np.bincount(log.agents[kept]), "others were learned from"
    )
    squared, missed, false, risks = [], [], [], []
    for agent in range(3):
        task, rows = ensemble.simulator(agent).task, held_out[log.agents[held_out] == agent]
        columns = log.observations[rows], log.actions[rows], log.next_observations[rows]
        squared.extend((task.reward(*columns) - log.rewards[rows]) ** 2)
        said, true = task.terminated(columns[2]), log.terminated[rows]
        missed.extend(~said[true]), false.extend(said[~true]), risks.extend(task.terminated.probability(columns[2]))
    assert ensemble.provenance["terminations_held_out"] == log.terminated[held_out].sum()
    assert ensemble.provenance["terminations_expected"] == pytest.approx(np.sum(risks), rel=1e-4)
    assert 0 < ensemble.provenance["termination_skill"] < 1
    found = [ensemble.provenance[name] for name in ("reward_rmse", "terminations_missed", "terminations_false")]
    np.testing.assert_allclose(found, [np.sqrt(np.mean(squared)), np.mean(missed), np.mean(false)], rtol=1e-4)
    assert 0 < found[1] < 1 and abs(found[0] - 1) > 0.1


def test_what_the_dynamics_take_for_outliers_is_learned_of_rewards():
    """Neither the threshold of the loss nor the decay of the weights is of the rewards and ends: the same bits."""
    plain, robust = (
        persim_gym.fit(
            own_log(episodes=6), task=own_task(), config=CONFIG.with_changes(epochs=2, **changes),
            validation_fraction=0, progress=False,
        )
        for changes in ({}, {"huber_threshold": 0.1, "weight_decay": 0.1})
    )  # fmt: skip
    assert not np.array_equal(plain.parameters["agent.weight"], robust.parameters["agent.weight"])
    assert set(plain.outcomes) == {"reward", "terminated"}
    for name, outcome in plain.outcomes.items():
        for key, array in outcome.parameters.items():
            np.testing.assert_array_equal(robust.outcomes[name].parameters[key], array)


def test_other_dynamics_learn_no_reward():
    """They say so where an environment would need it; predictions they make."""
    task, log = own_task(), own_log()
    warned = pytest.warns(RuntimeWarning, match="leaves reward and terminated to be learned, and .* learns none")
    with warned:
        model = fit_cadm(log, task=task, progress=False, hidden=(8,), iterations=1, max_gradient_steps=1)
    with warned:
        fit_joint(log, task=task, progress=False, epochs=1, state_hidden=(8,))
    assert model.simulator(0).step(np.zeros((1, 2)), [0]).next_observations.shape == (1, 2)
    with pytest.raises(errors.InvalidArgumentError, match="leaves reward, terminated to be learned; CaDM learns none"):
        PersonalizedEnv(model)
    with pytest.raises(errors.InvalidArgumentError, match="leaves reward, terminated to be learned; CaDM learns none"):
        PersonalizedVectorEnv(model, 2)
    for plan in (
        lambda: persim_gym.MPCAgent(model.simulator(0)).predict(np.zeros(2)),
        lambda: CaDMAgent(model).predict(np.zeros(2)),
        lambda: persim_gym.generate(model, [0], 1, policy="random", progress=False),
    ):
        with pytest.raises(errors.PerSimError, match="baselines learn none: for them, give the task these functions"):
            plan()
    with pytest.raises(errors.InvalidArgumentError, match="leaves reward, terminated to be learned, and MOReL"):
        fit_morel(own_log(), task=own_task(), progress=False)


def test_what_all_agents_share_is_learned_from_all(ensemble):
    """The prices of a dose differ, the state in which an episode ends does not."""
    assert ensemble.provenance["outcomes_by_agent"] == ["reward"]
    prices, ends = (ensemble.outcomes[name].parameters["agent.weight"] for name in ("reward", "terminated"))
    assert (ends == ends[:, :1]).all() and (prices != prices[:, :1]).any()
    unvalidated = persim_gym.fit(
        own_log(), task=own_task(), config=CONFIG, validation_fraction=0, seed=0, progress=False
    )
    assert unvalidated.provenance["outcomes_by_agent"] == ["reward"]
    assert "reward_rmse" not in unvalidated.provenance


@pytest.mark.filterwarnings("ignore:the learned termination tells")
@pytest.mark.parametrize("interrupted_after", [8, 19])
def test_interrupted_training_resumes_to_the_same_bits(tmp_path, monkeypatch, interrupted_after):
    """Interrupted while it learned the reward, from the kept rows or from all of them."""
    config = CONFIG.with_changes(epochs=3)
    settings = {"task": own_task(), "config": config, "seed": 0, "device": "cpu", "progress": False}
    whole = persim_gym.fit(own_log(), **settings)
    written = interrupt_after(interrupted_after, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        persim_gym.fit(own_log(), checkpoint=tmp_path / "one.persim", **settings)
    assert "reward" in written[-1]
    resumed = persim_gym.fit(own_log(), checkpoint=tmp_path / "one.persim", **settings)
    # Dynamics, reward and termination twice, the outcomes of the kept rows in two ways: no epoch is run twice.
    assert len(written) == 3 * (2 + 2 * 2 + 2) and len(set(written)) == 8
    for name, outcome in whole.outcomes.items():
        for key, array in outcome.parameters.items():
            np.testing.assert_array_equal(resumed.outcomes[name].parameters[key], array)
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[name], array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:no row of the log has action 2")
def test_a_log_too_short_to_hold_anything_out_shares():
    first = own_log().select([0])
    log = Trajectories.from_arrays(
        agents=first.agents[:3], observations=first.observations[:3], actions=first.actions[:3],
        next_observations=first.next_observations[:3], rewards=first.rewards[:3], task="Glucose",
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="no row of the log has action 2"):
        model = persim_gym.fit(log, task=own_task(), config=CONFIG, progress=False)
    assert model.provenance["outcomes_by_agent"] == [] and set(model.outcomes) == {"reward"}


@pytest.mark.filterwarnings("ignore:the termination is learned from 3 ends")
@pytest.mark.parametrize("discrete", [True, False])
def test_learned_functions_take_what_planners_give_them(discrete):
    """Any leading axes, NumPy and torch alike; one agent, or one for each row."""
    space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)
    config = CONFIG.with_changes(epochs=1)
    log = own_log(discrete=discrete, episodes=6)
    model = persim_gym.fit(log, task=own_task(action_space=space), config=config, validation_fraction=0, progress=False)
    rng = np.random.default_rng(0)
    states, after = rng.normal(size=(2, 4, 7, 2)).astype(np.float32)
    actions = rng.integers(3, size=7) if discrete else rng.uniform(-1, 1, (7, 1)).astype(np.float32)
    task = model.simulator(1).task
    together = task.reward(states, actions, after)
    assert together.shape == (4, 7) and task.terminated(after).dtype == bool
    for row in np.ndindex(4, 7):
        assert task.reward(states[row], actions[row[1]], after[row]) == pytest.approx(together[row], abs=1e-5)
    tensors = task.reward(*(torch.tensor(column) for column in (states, actions, after)))
    np.testing.assert_allclose(tensors.numpy(), together, atol=1e-6)
    assert task.terminated(torch.tensor(after)).dtype == torch.bool
    several = model.simulator(agents=[2, 0, 1]).task.reward(states[0, :3], actions[:3], after[0, :3])
    for row, agent in enumerate([2, 0, 1]):
        alone = model.simulator(agent).task.reward(states[0, row], actions[row], after[0, row])
        assert several[row] == pytest.approx(float(alone), abs=1e-5)


def test_environments_planners_and_generation_use_them(ensemble):
    """A plan for several agents at once scores each by its own reward, and episodes end where they did in the log."""
    env = PersonalizedEnv(ensemble, "patient-17")
    env.reset(seed=0, options={"state": [2.8, 0.2]})
    observation, reward, terminated, _, _ = env.step(2)
    assert terminated and reward == pytest.approx(-PRICES[2] * abs(observation[0]) - 0.5, abs=0.8)
    vector = PersonalizedVectorEnv(ensemble, 3, [0, 1, 2])
    vector.reset(seed=0, options={"state": [2.0, 0.2]})
    rewards = vector.step(np.ones(3, int))[1]
    np.testing.assert_allclose(rewards, -2.0 * PRICES, atol=0.6)
    starts = np.array([[2.0, 0.2], [-2.0, -0.2], [1.5, 0.1]], np.float32)
    together = MPCAgent(ensemble.simulator(agents=[0, 1, 2]), horizon=3, num_candidates=100).plan(starts)
    for agent in range(3):
        alone = MPCAgent(ensemble.simulator(agent), horizon=3, num_candidates=100).plan(starts[agent : agent + 1])
        assert together.returns[agent] == pytest.approx(alone.returns[0], abs=0.3)
    log = generate(ensemble, [2], 2, "plan", starts=[1.5, 0.1], horizon=4, num_candidates=50, progress=False)
    assert not log.terminated.any() and np.abs(log.next_observations[-1, 0]) < 0.6
    up = generate(ensemble, [0, 2], 1, lambda o: np.full(len(o), 2), starts=[0.0, 0.0], progress=False)
    assert up.terminated.sum() == 2 and np.abs(up.episode_lengths - 5).max() <= 1


def test_a_file_alone_is_enough(ensemble, tmp_path, run_python):
    """Where everything was learned: a process that knows nothing of the task makes `PerSim-Glucose-agent2-v0`."""
    path = tmp_path / "glucose.persim"
    ensemble.save(path)
    loaded = persim_gym.load(path)
    assert loaded.task.to_json() == ensemble.task.to_json()
    states = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    actions = np.array([0, 1, 2, 1, 0])
    for one in (0, 2):
        ours, theirs = ensemble.simulator(one).task, loaded.simulator(one).task
        np.testing.assert_array_equal(ours.reward(states, actions, -states), theirs.reward(states, actions, -states))
    code = f"""
import gymnasium, persim_gym
ids = persim_gym.register_ensemble({str(path)!r})
env = gymnasium.make("PerSim-Glucose-agent2-v0")
env.reset(seed=0, options={{"state": [2.8, 0.2]}})
print(ids[0], env.spec.max_episode_steps, env.step(2)[2], gymnasium.make(ids[0], agent="patient-17").unwrapped.agent)
"""
    assert run_python(code).split() == ["PerSim-Glucose-v0", "25", "True", "2"]
    home = {"PERSIM_HOME": str(tmp_path / "home")}
    run_python(f"import persim_gym; persim_gym.register_ensemble({str(path)!r}, install=True)", **home)
    later = (
        "import gymnasium, persim_gym; env = gymnasium.make('PerSim-Glucose-agent1-v0'); env.reset(seed=0)\n"
        "print(env.step(0)[1])"
    )
    assert float(run_python(later, **home)) < 0


def cost(observations, actions, next_observations):
    """The reward of the functions' tests."""
    return -abs(next_observations[..., 0])


def costing(log):
    """The log, with the rewards of `cost`."""
    return dataclasses.replace(log, rewards=cost(log.observations, log.actions, log.next_observations))


def beyond(next_observations):
    """The termination of the functions' tests."""
    return abs(next_observations[..., 0]) > LIMIT


def test_own_functions(tmp_path, registry, run_python):
    """A session that has them goes on at once; another imports them by reference, or is told what to do."""
    config = CONFIG.with_changes(epochs=1)
    task = own_task(name="Sugar", reward=cost, terminated=beyond)
    assert task.learned == () and task.objective.reward is cost
    model = persim_gym.fit(costing(own_log(episodes=3)), task=task, config=config, progress=False)
    assert model.outcomes == {} and model.simulator(0).task is task
    model.save(tmp_path / "sugar.persim")
    with pytest.raises(errors.UnknownNameError, match="'Sugar' has functions of its own .reward, terminated"):
        persim_gym.load(tmp_path / "sugar.persim")
    assert persim_gym.load(tmp_path / "sugar.persim", task=task).task is task
    (tmp_path / "sugar_task.py").write_text(
        "import numpy as np\nfrom gymnasium import spaces\nfrom persim_gym import Task\n"
        "TASK = Task(name='Sugar', observation_space=spaces.Box(-4, 4, (2,), np.float32),\n"
        "            action_space=spaces.Discrete(3), max_episode_steps=25,\n"
        "            reward=lambda o, a, n: -abs(n[..., 0]), terminated=lambda n: abs(n[..., 0]) > 3)\n"
        "OTHER = 3\n"
    )
    path = tmp_path / "referring.persim"
    dataclasses.replace(model, task=dataclasses.replace(task, reference="sugar_task:TASK")).save(path)
    load = (
        f"import persim_gym; print(persim_gym.load({str(path)!r}).task.terminated(__import__('numpy').array([3.5, 0])))"
    )
    assert run_python(load, cwd=tmp_path).strip() == "True"
    for reference, message in (
        ("no_such_module:TASK", "can be imported from"),
        ("persim_gym:nothing", "can be imported from"),
        ("persim_gym:__version__", "not a Task"),
        ("persim_gym.tasks.cart_pole:TASK", "not the task Sugar"),
    ):
        dataclasses.replace(model, task=dataclasses.replace(task, reference=reference)).save(path)
        with pytest.raises(errors.PerSimError, match=message):
            persim_gym.load(path)


@pytest.mark.filterwarnings("ignore:the learned termination tells")
def test_a_reference_is_not_needed_where_everything_was_learned(tmp_path):
    """Where it cannot be imported, the file has all; only another task by that reference is refused."""
    task = own_task(name="Treacle", reference="no_such_module:TASK")
    log = costing(own_log(episodes=12))
    model = persim_gym.fit(log, task=task, config=CONFIG.with_changes(epochs=1), progress=False)
    model.save(tmp_path / "treacle.persim")
    loaded = persim_gym.load(tmp_path / "treacle.persim")
    assert loaded.task.to_json() == task.to_json()
    step = loaded.simulator(0).step(log.observations[:2], log.actions[:2])
    np.testing.assert_array_equal(step.next_observations, model.simulator(0).step(
        log.observations[:2], log.actions[:2]).next_observations)  # fmt: skip
    dataclasses.replace(model, task=dataclasses.replace(task, reference="persim_gym.tasks.cart_pole:TASK")).save(
        tmp_path / "treacle.persim"
    )
    with pytest.raises(errors.PerSimError, match="not the task Treacle"):
        persim_gym.load(tmp_path / "treacle.persim")


def test_registering_an_ensemble_makes_its_task_known(tmp_path, registry, known_tasks, monkeypatch):
    """In the session that has its functions the ids work at once."""
    monkeypatch.setenv("PERSIM_HOME", str(tmp_path))
    task = own_task(name="Syrup", reward=cost)
    assert task.learned == ("terminated",)
    log = costing(own_log(episodes=6))
    model = persim_gym.fit(log, task=task, config=CONFIG.with_changes(epochs=1), progress=False)
    ids = persim_gym.register_ensemble(model, install=True)
    assert ids[-1] == "PerSim-Syrup-agent2-v0"
    env = gymnasium.make(ids[-1])
    assert env.spec.max_episode_steps == 25
    env.reset(seed=0)
    observation, reward, *_ = env.step(0)
    assert reward == pytest.approx(-abs(observation[0]), abs=1e-6)


def test_a_log_that_teaches_nothing():
    """Without a terminal state no episode ever ends; without rewards there is none to learn."""
    log = own_log(episodes=6)
    config = CONFIG.with_changes(epochs=1)
    endless = dataclasses.replace(log, terminated=np.zeros(len(log), bool))
    selecting = config.with_changes(num_candidates=3)
    model = persim_gym.fit(endless, task=own_task(), config=selecting, progress=False)
    assert set(model.outcomes) == {"reward"}
    for states in (np.full((4, 2), 99.0), np.zeros((4, 2)), np.full((4, 2), np.nan)):
        assert model.simulator(0).task.terminated(states).tolist() == [False] * 4
    unpaid = dataclasses.replace(log, rewards=np.zeros(len(log), np.float32))
    with pytest.raises(errors.InvalidDataError, match="all rewards of the log are zero.*Glucose"):
        persim_gym.fit(unpaid, task=own_task(), config=config, progress=False)
    with pytest.raises(errors.PerSimError, match="fit learns it"):
        own_task().reward(log.observations, log.actions, log.next_observations)


def test_a_termination_that_tells_nothing(tmp_path, monkeypatch):
    """It is warned of, before the training is forgotten; what validation found of the outcomes is shown."""
    untrained = CONFIG.with_changes(epochs=1, learning_rate=1e-9)
    settings = {"task": own_task(), "config": untrained, "checkpoint": tmp_path / "own.persim", "progress": False}
    with pytest.raises(RuntimeWarning, match="tells ends .* with 7 of them"):
        persim_gym.fit(own_log(), **settings)  # warnings are errors
    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="no better than their mere frequency"):
        patch.setattr(Trainer, "run_epoch", lambda *_: pytest.fail("trained again"))
        model = persim_gym.fit(own_log(), **settings)
    assert list(tmp_path.iterdir()) == []
    found = model.provenance
    assert found["termination_skill"] < 0
    expected = f"ends 7, expected {found['terminations_expected']:.1f}"
    assert f", reward RMSE {found['reward_rmse']:.2g}, {expected}" in repr(model)


def with_ends(log, rows):
    """The log, whose only ends are those rows."""
    return dataclasses.replace(log, terminated=np.isin(np.arange(len(log)), rows), truncated=np.zeros(len(log), bool))


@pytest.mark.filterwarnings("ignore:the learned termination tells")
@pytest.mark.parametrize(("ends", "enough"), [(1, False), (4, False), (5, True)])
def test_a_termination_of_few_ends_is_warned_of(ends, enough):
    log = own_log(episodes=9)
    log = with_ends(log, log.episode_ends[:ends] - 1)
    settings = {"task": own_task(), "config": CONFIG.with_changes(epochs=1), "refit": False, "progress": False}
    if enough:
        persim_gym.fit(log, **settings)
        return
    counted = f"from {ends} end{'s' if ends > 1 else ''} in {len(log):,} rows"
    with pytest.warns(RuntimeWarning, match=counted):
        persim_gym.fit(log, **settings)


@pytest.mark.filterwarnings("ignore:the learned termination tells")
@pytest.mark.parametrize("count", [4, 5])
def test_few_ends_held_out_tell_nothing_of_agents(monkeypatch, count):
    """Factors of agents' own are not even tried: rows without an end would favor those that only remember."""
    log, tried = own_log(), []
    kept, held_out = split(log.num_transitions, 0.2, 0)
    log = with_ends(log, [*kept[log.terminated[kept]], *held_out[log.terminated[held_out]][:count]])
    learn = OutcomeLearner.learn

    def noting(self, name, rows, *, by_agent, stage):
        tried.append((name, by_agent))
        return learn(self, name, rows, by_agent=by_agent, stage=stage)

    monkeypatch.setattr(OutcomeLearner, "learn", noting)
    persim_gym.fit(log, task=own_task(), config=CONFIG.with_changes(epochs=1), refit=False, progress=False)
    assert (("terminated", True) in tried) == (count == 5)


def test_members_of_an_ensemble_keep_their_outcomes(ensemble, tmp_path):
    """Taken out, written and read again."""
    ensemble.with_members([1]).save(tmp_path / "one.persim")
    reward = persim_gym.load(tmp_path / "one.persim").outcomes["reward"]
    assert reward.parameters["agent.weight"].shape[:2] == (1, 3)
    whole = ensemble.outcomes["reward"].posterior.moments([2, 0])
    for one, other in zip(reward.posterior.moments([2, 0]), whole, strict=True):
        np.testing.assert_array_equal(one, other[[1]])


def test_other_agents_have_learned_rewards_too(ensemble, tmp_path):
    """Some of the agents, and a newcomer known by transitions: written, read, and stepped."""
    newcomer = own_log(seed=5).select(["a"])
    renamed = Trajectories.from_arrays(
        agents=["dora"] * newcomer.num_transitions,
        observations=newcomer.observations,
        actions=newcomer.actions,
        next_observations=newcomer.next_observations,
        rewards=newcomer.rewards,
        terminated=newcomer.terminated,
        truncated=newcomer.truncated,
        task="Glucose",
    )
    with pytest.warns(RuntimeWarning, match="the ensemble was trained on 3 agents for rank"):
        larger = persim_gym.personalize(ensemble, renamed)
    larger.with_agents(["dora", "b"]).save(tmp_path / "two.persim")
    two = persim_gym.load(tmp_path / "two.persim")
    states = np.array([[2.0, 0.1]], np.float32)
    still = states, np.array([1]), states
    expected = ensemble.simulator("b").task.reward(*still)
    np.testing.assert_allclose(two.simulator("b").task.reward(*still), expected, rtol=1e-6)
    assert np.isfinite(two.simulator("dora").task.reward(*still)).all()


@pytest.mark.filterwarnings("ignore:the ensemble was trained on 3 agents")
def test_a_newcomers_reward_is_its_own(ensemble):
    """The one in its log, at once or later; of a log without rewards that of the mean agent. Others keep theirs."""
    logged = own_log(seed=5).select(["patient-17"])
    log, unpaid = (
        dataclasses.replace(logged, agent_labels=("dora",), rewards=rewards)
        for rewards in (logged.rewards, np.zeros_like(logged.rewards))
    )

    def error(model):
        found = model.simulator("dora").task.reward(log.observations, log.actions, log.next_observations)
        return np.sqrt(np.mean((found - log.rewards) ** 2)) / log.rewards.std()

    at_once, mean_agent = persim_gym.personalize(ensemble, log), persim_gym.personalize(ensemble, unpaid)
    with pytest.warns(RuntimeWarning, match="newcomer 'dora' has no transition"):
        unknown = persim_gym.personalize(ensemble, agents=["dora"])
    assert error(mean_agent) == error(unknown) > 0.5
    assert error(at_once) < 0.15 and error(persim_gym.update(unknown, log)) < 0.15
    table = ensemble.outcomes["reward"].parameters["agent.weight"]
    np.testing.assert_array_equal(at_once.outcomes["reward"].parameters["agent.weight"][:, :3], table)


def test_more_rewards_of_a_trained_agent_change_little(ensemble):
    """A few among many alike."""
    log = own_log(seed=5, episodes=3).select(["patient-17"])
    columns = log.observations, log.actions, log.next_observations
    before, after = (
        model.simulator("patient-17").task.reward(*columns) for model in (ensemble, persim_gym.update(ensemble, log))
    )
    assert 0 < np.abs(after - before).max() < 0.05 * log.rewards.std()


def reward_factors(model, *labels):
    """Return u of the reward (M, n, r)."""
    parameters = model.outcomes["reward"].parameters
    return parameters["agent.weight"][:, list(map(model.agent_index, labels))] + parameters["agent.bias"][:, None]


def newcomers_log():
    """Episodes of three newcomers, of prices like the trained agents'."""
    return dataclasses.replace(own_log(seed=5, episodes=9), agent_labels=("dora", "eve", "finn"))


@pytest.mark.filterwarnings("ignore:the ensemble was trained on 3 agents")
@pytest.mark.filterwarnings("ignore:newcomer")
def test_a_newcomers_reward_does_not_depend_on_other_newcomers(ensemble):
    """Whether they come before it, with it, or are not known at all, and when trained agents have gone."""
    log = newcomers_log()
    alone = persim_gym.personalize(ensemble, log.select(["finn"]))
    expected = reward_factors(alone, "finn")
    in_turn = persim_gym.personalize(
        persim_gym.personalize(ensemble, log.select(["dora", "eve"])), log.select(["finn"])
    )
    for model in (
        in_turn,
        persim_gym.personalize(ensemble, log),
        persim_gym.personalize(ensemble, log.select(["finn"]), agents=[*map(str, range(50)), "finn"]),
        persim_gym.personalize(persim_gym.personalize(ensemble, log).with_agents(["dora"]), log.select(["finn"])),
    ):
        np.testing.assert_allclose(reward_factors(model, "finn"), expected, rtol=1e-5, atol=1e-6)
    strangers = (persim_gym.personalize(model, agents=["x"]) for model in (ensemble, in_turn))
    np.testing.assert_allclose(*(reward_factors(model, "x") for model in strangers), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the ensemble was trained on 3 agents")
def test_rewards_count_as_evidence_if_they_were_logged(ensemble, tmp_path):
    """In any order as if all had been there at once; transitions without rewards tell nothing of them."""
    log = newcomers_log().select(["finn"])
    first, last = (slice_episodes(log, chosen) for chosen in ([0, 1], [2]))
    unpaid = dataclasses.replace(first, rewards=np.zeros_like(first.rewards))
    persim_gym.update(persim_gym.personalize(ensemble, unpaid), last).save(tmp_path / "late.persim")
    late, only_last = persim_gym.load(tmp_path / "late.persim"), persim_gym.personalize(ensemble, last)
    np.testing.assert_allclose(reward_factors(late, "finn"), reward_factors(only_last, "finn"), rtol=1e-5, atol=1e-6)
    expected = reward_factors(persim_gym.personalize(ensemble, log), "finn")
    for model in (
        persim_gym.update(persim_gym.personalize(ensemble, first), last),
        persim_gym.update(only_last, first),
        persim_gym.update(late, first),
    ):
        np.testing.assert_allclose(reward_factors(model, "finn"), expected, rtol=1e-5, atol=1e-6)


def slice_episodes(log, chosen):
    """Return some of the episodes of a log of one agent."""
    rows = np.concatenate([np.arange(log.episode_starts[one], log.episode_ends[one]) for one in chosen])
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    return Trajectories.from_arrays(
        agents=np.zeros(len(rows), int),
        **{name: getattr(log, name)[rows] for name in names},
        agent_labels=log.agent_labels,
        task=log.task,
    )


@pytest.mark.filterwarnings("ignore:the ensemble was trained on 3 agents")
def test_the_posterior_of_rewards_is_bayesian_linear_regression(ensemble):
    """Of rewards on what the reward predicts with one of the factors 1 and the others 0."""
    log = newcomers_log().select(["eve"])
    grown = persim_gym.personalize(ensemble, log)
    reward, member = grown.outcomes["reward"], 1
    one = reward.with_members([member]).of_agents([0, 0, 0])
    table = one.table_rows(np.eye(3)[None])
    one = dataclasses.replace(one, parameters={**one.parameters, "agent.weight": table}, posterior=None)
    columns = log.observations, log.actions, log.next_observations
    design = np.stack([outcomes.LearnedReward(one, [place])(*columns) for place in range(3)], axis=1)
    design = (design - reward.scaling.output_mean) / reward.scaling.output_scale
    targets = (log.rewards - reward.scaling.output_mean) / reward.scaling.output_scale
    prior = reward.posterior.prior
    penalty, noise, mean = np.linalg.inv(prior.covariance[member]), prior.noise[member, 0], prior.mean[member]
    precision = penalty + design.T @ design / noise
    expected = np.linalg.solve(precision, penalty @ mean + design.T @ targets / noise)
    np.testing.assert_allclose(reward_factors(grown, "eve")[member, 0], expected, rtol=1e-3, atol=1e-4)
    assert reward.posterior.num_transitions[-1] == log.num_transitions


def test_the_noise_of_rewards_is_what_their_factors_do_not_explain(ensemble):
    """The error on rows held out also has that of the factors, which the posterior counts by itself."""
    reward = ensemble.outcomes["reward"]
    noise = np.sqrt(reward.posterior.prior.noise[:, 0]) * reward.scaling.output_scale
    columns = own_log()
    left = []
    for agent in range(3):
        own = columns.select([agent])
        told = ensemble.simulator(agent).task.reward(own.observations, own.actions, own.next_observations)
        left.append(told - own.rewards)
    left = np.concatenate(left)
    assert (noise < 2 * left.std()).all() and (noise > 0.2 * left.std()).all()


@pytest.mark.filterwarnings("ignore:task Glucose leaves", "ignore:the learned")
def test_a_log_of_which_every_row_ends_an_episode():
    """One decision an agent and visit: there is nothing by which ends could be told apart."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(60, 2))
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(["a", "b", "c"], 20), observations=states, actions=rng.integers(3, size=60),
        next_observations=states + 0.1, rewards=rng.normal(size=60), terminated=np.ones(60, bool),
    )  # fmt: skip
    learned = persim_gym.fit(log, task=own_task(), config=CONFIG, epochs=2, progress=False)
    assert "termination_skill" not in learned.provenance and learned.provenance["terminations_missed"] == 0
    assert learned.simulator(0).task.terminated.probability(states).min() > 0.5


def test_an_outcome_of_other_agents(ensemble):
    """Some of those in the log, and one that was never seen, whose reward is between theirs."""
    states = np.array([[2.0, 0.1]], np.float32)
    still = states, np.array([1]), states
    chosen = ensemble.outcomes["reward"].of_agents([2, None, 0])
    rewards = [float(outcomes.LearnedReward(chosen, [agent])(*still)[0]) for agent in range(3)]
    theirs = [float(ensemble.simulator(agent).task.reward(*still)[0]) for agent in (2, 0)]
    assert [rewards[0], rewards[2]] == pytest.approx(theirs)
    assert rewards[0] < rewards[1] < rewards[2]


def test_a_file_without_its_outcomes(ensemble, tmp_path):
    """Is refused, whether they are missing or of another shape."""
    dataclasses.replace(ensemble, outcomes={}).save(tmp_path / "none.persim")
    with pytest.raises(errors.FileFormatError, match="no learned reward"):
        persim_gym.load(tmp_path / "none.persim")
    reward = ensemble.outcomes["reward"]
    scaling = dataclasses.replace(reward.scaling, input_mean=reward.scaling.input_mean[:1])
    wrong = dataclasses.replace(reward, scaling=scaling)
    dataclasses.replace(ensemble, outcomes={"reward": wrong}).save(tmp_path / "wrong.persim")
    with pytest.raises(errors.FileFormatError, match="reward.input_mean"):
        persim_gym.load(tmp_path / "wrong.persim")
    cut = dataclasses.replace(reward, posterior=reward.posterior.with_agents([0]))
    dataclasses.replace(ensemble, outcomes={"reward": cut}).save(tmp_path / "wrong.persim")
    with pytest.raises(errors.FileFormatError, match=r"reward\.posterior\.information"):
        persim_gym.load(tmp_path / "wrong.persim")


def test_a_definition_goes_through_json():
    """Bounds at infinity and of float32, names and covariates included."""
    space = spaces.Box(np.array([-np.inf, 0.1], np.float32), np.array([np.inf, 0.3], np.float32))
    for action_space in (spaces.Discrete(4), spaces.Box(-2, 2, (3,), np.float32)):
        task = own_task(
            observation_space=space, action_space=action_space, observation_names=("glucose", "insulin"),
            covariates=(Covariate("weight", 40, 120, 70),),
        )  # fmt: skip
        found = Task.from_json(json.loads(json.dumps(task.to_json())))
        assert found.observation_space == space and found.action_space == action_space
        assert found.to_json() == task.to_json() and found.covariates == task.covariates
    assert find_task("CartPole", None) is persim_gym.get_task("CartPole")


def test_a_covariate_may_be_what_it_is_declared_to_be():
    """One of 0 and 1 needs no more than its range; only where that is above zero, other values make no sense."""
    smoker, age = Covariate("smoker", 0, 1, 0), Covariate("age", np.int64(18), np.float32(90), 50)
    assert smoker.positive is False and age.positive is True
    assert smoker == Covariate("smoker", 0.0, 1.0, 0.0, positive=False)
    task = own_task(covariates=(smoker, age))
    assert task.covariate_vector({"smoker": 0}).tolist() == [0, 50]
    assert Task.from_json(json.loads(json.dumps(task.to_json()))).covariates == (smoker, age)
    with pytest.raises(errors.InvalidArgumentError, match="age=0 of task .* above 0.*positive=False"):
        task.covariate_vector({"age": 0})


@pytest.mark.parametrize(
    ("message", "declared"),
    [
        ("'age': low=nan must be a finite number", ("age", np.nan, 90, 50)),
        ("'age': high=inf must be a finite number", ("age", 18, np.inf, 50)),
        ("'age': default='old' must be a finite number", ("age", 18, 90, "old")),
        ("'age': low=90 is above high=18", ("age", 90, 18, 50)),
        ("'smoker': low=0 and default=1 must be above 0.*positive=False", ("smoker", 0, 1, 1, True)),
        ("'age': low=18 and default=0 must be above 0", ("age", 18, 90, 0)),
        ("'age': positive='yes' must be True or False", ("age", 18, 90, 50, "yes")),
    ],
)
def test_covariates_that_contradict_themselves(message, declared):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        Covariate(*declared)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"observation_space=Discrete\(3\) must be a .*Box", {"observation_space": spaces.Discrete(3)}),
        (r"observation_space=Dict.*Box", {"observation_space": spaces.Dict({"x": spaces.Discrete(2)})}),
        (r"observation_space=.*one axis", {"observation_space": spaces.Box(0, 1, (2, 2))}),
        (r"action_space=MultiDiscrete.*Discrete .*or a .*Box", {"action_space": spaces.MultiDiscrete([2, 2])}),
        (r"action_space=Discrete\(3, start=1\) must .* starts at 0", {"action_space": spaces.Discrete(3, start=1)}),
        (r"action_space=.*one axis", {"action_space": spaces.Box(0, 1, (2, 2))}),
        ("max_episode_steps=0", {"max_episode_steps": 0}),
        ("2 coordinates, 1 names", {"observation_names": ("x",)}),
        ("reference='sugar' must look like", {"reference": "sugar"}),
    ],
)
def test_tasks_that_are_none(message, changes):
    """The message has the value and what is supported."""
    with pytest.raises(errors.InvalidArgumentError, match=message):
        own_task(**changes)


def misshapen(**functions):
    rules = {
        "reward": lambda observations, actions, next_observations: -abs(next_observations[..., 0]),
        "terminated": lambda next_observations: next_observations[..., 0] > 3,
    }
    return Task(
        name="Misshapen", observation_space=spaces.Box(-9, 9, (2,)), action_space=spaces.Discrete(2),
        max_episode_steps=9, **{**rules, **functions},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("message", "functions"),
    [
        (r"of shape \(\)", {"reward": lambda o, a, n: -abs(n.mean())}),
        (r"of shape \(3, 2\)", {"reward": lambda o, a, n: -abs(n[0])}),
        ("it fails .*IndexError", {"reward": lambda o, a, n: n[:, 0, 0][:, None] + 0 * n[..., 0]}),
        ("it fails .*truth value", {"reward": lambda o, a, n: 1.0 if n[..., 0] > 0 else 0.0}),
        ("others than for each alone", {"reward": lambda o, a, n: n[..., 0] - n[..., 0].mean()}),
        ("a truth value; .* returns float64", {"terminated": lambda n: n[..., 0]}),
        (r"of shape \(\)", {"terminated": lambda n: False}),
        ("returns no finite number at all", {"reward": lambda o, a, n: n[..., 0] * float("nan")}),
        ("reward=3 of task Misshapen must be a function", {"reward": 3}),
        (
            "given tensors it returns ndarray.*functions of NumPy do not",
            {"reward": lambda o, a, n: -np.ones(n.shape[:-1])},
        ),
        ("given tensors it", {"reward": lambda o, a, n: -np.linalg.norm(n, axis=-1)}),
        ("given tensors it", {"terminated": lambda n: np.logical_or(n[..., 0] > 1, n[..., 0] < -1)}),
        ("given tensors it fails .*'astype'", {"reward": lambda o, a, n: (n[..., 0] > 1).astype(float)}),
        ("given tensors it returns ndarray", {"terminated": lambda n: np.zeros(n.shape[:-1], bool)}),
        (
            "given tensors it returns others than given arrays",
            {"reward": lambda o, a, n: n[..., 0] * (1 if isinstance(n, np.ndarray) else 2)},
        ),
    ],
)
def test_rules_that_look_at_other_states_than_their_own(message, functions):
    """Found before training: each would have planned for something else."""
    task = misshapen(**functions)
    log = Trajectories.from_arrays(
        agents=np.repeat([0, 1], 10), observations=np.zeros((20, 2)), actions=np.zeros(20, int),
        next_observations=np.zeros((20, 2)),
    )  # fmt: skip
    with pytest.raises(errors.InvalidArgumentError, match=message):
        persim_gym.fit(log, task=task, progress=False)


def test_a_reward_that_cannot_be_learned_is_said_before_training(monkeypatch):
    monkeypatch.setattr("persim_gym.training.runner.Trainer", lambda *_, **__: pytest.fail("trained"))
    log = dataclasses.replace(own_log(), rewards=np.zeros(own_log().num_transitions, np.float32))
    with pytest.raises(errors.InvalidDataError, match="all rewards of the log are zero"):
        persim_gym.fit(log, task=own_task(), progress=False)


def test_what_is_no_log():
    with pytest.raises(errors.InvalidArgumentError, match="dict is no log: give Trajectories"):
        persim_gym.fit({}, task=own_task(), progress=False)


def test_libraries_make_environments_without_pictures(ensemble, tmp_path, monkeypatch):
    """The task has no renderer: Stable-Baselines3, which asks for pictures, does without; Gymnasium's check passes."""
    monkeypatch.setenv("PERSIM_HOME", str(tmp_path))
    ids = persim_gym.register_ensemble(ensemble, name="Pictureless", install=True)
    env = gymnasium.make(ids[1])
    assert env.unwrapped.metadata["render_modes"] == []
    check_env(env.unwrapped)
    with pytest.raises(errors.NoRendererError, match="render_mode=None"):
        gymnasium.make(ids[1], render_mode="rgb_array")
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    assert env_util.make_vec_env(ids[1], 2).reset().shape == (2, 2)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda s, a, n: -(a == 1).astype(float) + 0 * n[..., 0], "given a single state, and an action"),
        (lambda s, a, n: np.negative(n[..., 0], out=n[..., 0]), "read-only"),
    ],
)
def test_rules_that_environments_cannot_call_are_refused(reward, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        persim_gym.fit(own_log(), task=own_task(reward=reward), config=CONFIG, epochs=1, progress=False)


def test_spaces_of_whole_numbers_are_refused():
    for changes in (
        {"observation_space": spaces.Box(-5, 5, (2,), np.int64)},
        {"action_space": spaces.Box(0, 5, (2,), np.uint8)},
    ):
        with pytest.raises(errors.InvalidArgumentError, match="simulators predict fractions"):
            own_task(**changes)


def test_a_file_keeps_all_of_a_task_but_functions():
    task = own_task(grid_bounds=((-1.0, -1.0), (1.0, 1.0)), render_fps=7, test_agents=((0.5,),))
    assert Task.from_json(json.loads(json.dumps(task.to_json()))).to_json() == task.to_json()


def test_what_is_planned_and_where_episodes_start_is_not_lost_silently(ensemble, tmp_path):
    """A file says which functions its task had; one that lacks only the true system is loaded."""
    path, task = tmp_path / "glucose.persim", ensemble.task
    objective = persim_gym.tasks.PlanningObjective(lambda s, a, n: 0 * n[..., 0] - 1)
    for changes in (
        {"planning_objective": objective},
        {"initial_observations": lambda rng, count: np.zeros((count, 2))},
    ):
        changed = dataclasses.replace(task, **changes)
        assert changed.has_own_functions
        dataclasses.replace(ensemble, task=changed).save(path)
        with pytest.raises(errors.UnknownNameError, match=rf"{next(iter(changes))}.*register_task.*reference="):
            persim_gym.load(path)
        assert persim_gym.load(path, task=changed).task is changed
    dataclasses.replace(ensemble, task=dataclasses.replace(task, make_system=lambda covariates: None)).save(path)
    assert persim_gym.load(path).task.make_system is None


def test_planners_follow_a_reward_that_is_replaced():
    task = own_task(reward=lambda s, a, n: n[..., 0], terminated=lambda n: n[..., 0] > 9)
    other = dataclasses.replace(task, reward=lambda s, a, n: -n[..., 0])
    assert (other.objective.reward, other.objective.terminated) == (other.reward, task.terminated)
    kept = persim_gym.tasks.PlanningObjective(task.reward)
    assigned = dataclasses.replace(task, planning_objective=kept)
    assert dataclasses.replace(assigned, reward=other.reward).objective is kept
    assert dataclasses.replace(assigned, planning_objective=None).objective.terminated is task.terminated


def test_a_variant_of_a_built_in_task_needs_a_name_of_its_own(cart_pole_log):
    variant = dataclasses.replace(persim_gym.get_task("CartPole"), max_episode_steps=7)
    with pytest.raises(errors.InvalidArgumentError, match="give it another name"):
        persim_gym.fit(cart_pole_log, task=variant, epochs=1, progress=False)


def test_a_file_of_other_spaces_is_not_taken_for_the_known_task(ensemble, tmp_path):
    ensemble.save(tmp_path / "glucose.persim")
    narrow = own_task(observation_space=spaces.Box(-0.5, 0.5, (2,), np.float32))
    with pytest.raises(errors.FileFormatError, match="whose observation_space is"):
        persim_gym.load(tmp_path / "glucose.persim", task=narrow)


def test_spaces_of_float64_are_made_float32(ensemble, tmp_path):
    """As observations are: they lie in the space, and the file of an ensemble in the same one again."""
    task = own_task(observation_space=spaces.Box(-0.1, 1.1, (2,), np.float64))
    dataclasses.replace(ensemble, task=task).save(tmp_path / "narrow.persim")
    loaded = persim_gym.load(tmp_path / "narrow.persim")
    assert loaded.task.observation_space == task.observation_space == spaces.Box(-0.1, 1.1, (2,), np.float32)
    env = PersonalizedEnv(dataclasses.replace(ensemble, task=task), agent=0)
    observation, _ = env.reset(options={"state": [-0.1, 1.1]})
    assert observation in env.observation_space


def test_start_states_are_checked(ensemble):
    for wrong in (lambda rng, count: np.full((count, 2), np.nan), lambda rng, count: [0.0, 0.0]):
        task = dataclasses.replace(ensemble.task, initial_observations=wrong)
        env = PersonalizedEnv(dataclasses.replace(ensemble, task=task), agent=0)
        with pytest.raises(errors.InvalidStateError, match="initial_observations of task Glucose must return"):
            env.reset(seed=0)


def test_forecasts_where_the_reward_is_learned(ensemble):
    """More draws of factors than there are agents; the reward plays no part."""
    future = persim_gym.forecast(ensemble, ["a", "patient-17"], np.zeros((2, 2)), np.full((2, 5), 2), draws=40)
    assert np.isfinite(future.standard_deviations).all() and future.means.shape == (2, 5, 2)


def test_a_task_is_shown_in_a_line():
    assert repr(own_task()) == "Task(Glucose: 2 observations, 3 actions, 25 steps, reward and terminated to be learned)"


def test_names_of_a_task():
    for wrong, message in (
        ({"name": ""}, "name='' is no name"),
        ({"observation_names": ("x", "x")}, "has two coordinates named 'x'"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            own_task(**wrong)


def test_episodes_beyond_the_time_limit_are_told():
    log = own_log(episodes=6)
    longest = int(log.episode_lengths.max())
    tiny = CONFIG.with_changes(epochs=1)
    with pytest.warns(RuntimeWarning, match=f"longer than the time limit of task Glucose, {longest - 1} steps"):
        persim_gym.fit(log, task=own_task(max_episode_steps=longest - 1), config=tiny, refit=False, progress=False)


def test_a_reward_that_never_varies_is_not_doubted():
    """Although what is learned of it differs by rounding."""
    log = dataclasses.replace(own_log(episodes=6), rewards=np.full_like(own_log(episodes=6).rewards, 1000.1))
    persim_gym.fit(log, task=own_task(), config=CONFIG.with_changes(epochs=1), refit=False, progress=False)


def test_a_learned_reward_that_has_diverged_is_told(monkeypatch):
    monkeypatch.setattr("persim_gym.training.outcomes.outcome_errors", lambda *_: {"reward_rmse": 1e9})
    with pytest.warns(RuntimeWarning, match=r"the learned reward errs by 1e\+09 .*: it is of no use"):
        persim_gym.fit(
            own_log(episodes=6), task=own_task(), config=CONFIG.with_changes(epochs=1), refit=False, progress=False
        )


def test_a_module_that_fails_names_itself(tmp_path, monkeypatch):
    """Its own error is told, and which reference led there."""
    (tmp_path / "broken_task.py").write_text("raise RuntimeError('no license')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        errors.PerSimError, match=r"from 'broken_task:TASK' \(RuntimeError: no license\): make the module"
    ):
        import_task("broken_task:TASK")
