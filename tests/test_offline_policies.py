"""BCQ and CQL: d3rlpy's, driven by us on every row of a log."""

import dataclasses
import sys
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import default_dtype, interrupt_after, keep_often

import persim_gym
from persim_gym import extras, storage
from persim_gym.baselines import OfflinePolicy, discrete_q, learned_policy, offline, offline_training
from persim_gym.baselines.bcq import fit_bcq
from persim_gym.baselines.cql import fit_cql
from persim_gym.collection.policies import as_policy
from persim_gym.errors import (
    FileFormatError,
    InvalidArgumentError,
    InvalidDataError,
    InvalidStateError,
    MissingExtraError,
    TrainingDivergedError,
    UnknownNameError,
)
from persim_gym.tasks import PlanningObjective, Task, get_task
from persim_gym.tasks.action_bounds import unscale_actions

METHODS = {"BCQ": fit_bcq, "CQL": fit_cql}
SMALL = {"batch_size": 8}


@pytest.fixture(autouse=True)
def needed():
    pytest.importorskip("d3rlpy")


def corridor(action_space):
    """Walk right from 0 to past 3, at −1 a step; going left never ends."""
    discrete = isinstance(action_space, spaces.Discrete)

    def reward(observations, actions, next_observations):
        return next_observations[..., 0] * 0.0 - 1.0

    def terminated(next_observations):
        return next_observations[..., 0] > 3

    return Task(
        name="Corridor" if discrete else "Continuous corridor",
        observation_space=spaces.Box(-50, 50, (1,), np.float32),
        action_space=action_space,
        reward=reward,
        terminated=terminated,
        max_episode_steps=20,
        observation_names=("x",),
        planning_objective=PlanningObjective(reward, terminated),
    )


def corridor_log(task, rng, episodes=30):
    """Random walks of two agents, each until the end of the corridor or 20 steps."""
    rows = []
    for episode in range(episodes):
        x = 0.0
        for step in range(20):
            if task.discrete:
                action = int(rng.integers(2))
                move = 1.0 if action else -1.0
            else:
                action = rng.uniform(*task.action_bounds)
                move = float(action[0]) / 4
            over = x + move > 3
            rows.append((episode % 2, [x], action, -1.0, [x + move], over, step == 19 and not over, step == 0))
            x += move
            if over:
                break
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    names = ("agents", "observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    return persim_gym.Trajectories.from_arrays(
        **dict(zip(names, columns[:7], strict=True)), episode_starts=np.flatnonzero(columns[7])
    )


@pytest.fixture(scope="module")
def discrete():
    task = corridor(spaces.Discrete(2))
    return task, corridor_log(task, np.random.default_rng(0))


@pytest.fixture(scope="module")
def continuous():
    task = corridor(spaces.Box(-4, 4, (1,), np.float32))
    return task, corridor_log(task, np.random.default_rng(0))


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_to_walk_right(discrete, method):
    task, log = discrete
    settings = {"target_update_interval": 25, "learning_rate": 1e-3, "batch_size": 64}
    policy = METHODS[method](log, task=task, steps=300, progress=False, **settings)
    actions, state = policy.predict(np.array([[0.0], [1.0], [2.0]], np.float32))
    assert actions.tolist() == [1, 1, 1] and state is None
    assert policy.predict(np.array([0.0]))[0].shape == ()


@pytest.mark.parametrize("method", METHODS)
def test_continuous_actions_fill_the_action_space(continuous, method):
    """The log's actions, from −4 to 4, are learned from in d3rlpy's units and come back in the task's."""
    task, log = continuous
    policy = METHODS[method](log, task=task, agent=1, steps=30, progress=False, **SMALL)
    actions, _ = policy.predict(np.linspace(-3, 3, 40)[:, None])
    assert actions.shape == (40, 1) and actions.dtype == np.float32 and np.abs(actions).max() <= 4
    batch = offline_training.D3rlpySteps(None, log, task).batch(np.arange(log.num_transitions))
    assert 0.9 < np.abs(batch.actions).max() <= 1


@pytest.mark.usefixtures("global_generators_untouched")
@pytest.mark.parametrize("method", METHODS)
def test_a_coordinate_of_one_value(method):
    """Of an action space whose bounds are the same there: it is learned from as 0, and comes back as it is."""
    task = corridor(spaces.Box(np.float32([-4, 3]), np.float32([4, 3])))
    log = corridor_log(task, np.random.default_rng(0))
    batch = offline_training.D3rlpySteps(None, log, task).batch(np.arange(log.num_transitions))
    np.testing.assert_allclose(batch.actions[:, 0], log.actions[:, 0] / 4, atol=1e-6)
    assert not batch.actions[:, 1].any()
    np.testing.assert_allclose(unscale_actions(batch.actions, *task.action_bounds), log.actions, atol=1e-6)
    policy = METHODS[method](log, task=task, steps=20, progress=False, **SMALL)
    actions, _ = policy.predict(np.linspace(-3, 3, 40)[:, None])
    assert np.isfinite(actions).all() and (actions[:, 1] == 3).all()


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_offline_policy_and_nobody_elses_numbers_are_touched(continuous, method):
    task, log = continuous
    runs = []
    for seed in (0, 0, 1):
        policy = METHODS[method](log, task=task, steps=6, seed=seed, progress=False, **SMALL)
        runs.append([policy.predict(np.ones((4, 1)))[0] for _ in range(2)])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_is_learned_and_loaded_whatever_torchs_default_dtype_is(continuous, method, tmp_path):
    task, log = continuous
    with default_dtype(torch.float64):
        METHODS[method](log, task=task, steps=2, progress=False, **SMALL).save(tmp_path / "one.policy")
        loaded = OfflinePolicy.load(tmp_path / "one.policy", task=task).predict(np.ones((4, 1)))[0]
    expected = OfflinePolicy.load(tmp_path / "one.policy", task=task).predict(np.ones((4, 1)))[0]
    np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_a_saved_offline_policy_acts_as_it_did(request, kind, method, tmp_path):
    task, log = request.getfixturevalue(kind)
    policy = METHODS[method](log, task=task, agent=1, steps=6, seed=3, progress=False, **SMALL)
    policy.save(tmp_path / "one.policy")
    with pytest.raises(UnknownNameError, match="has functions of its own .reward, terminated.*give task="):
        OfflinePolicy.load(tmp_path / "one.policy")
    loaded, again = (OfflinePolicy.load(tmp_path / "one.policy", task=task) for _ in range(2))
    observations = np.linspace(-3, 3, 40)[:, None]
    drawn = kind == "continuous" and method == "BCQ"  # its candidates
    kept = again if drawn else policy
    np.testing.assert_array_equal(loaded.predict(observations)[0], kept.predict(observations)[0])
    for name, network in policy.algorithm.impl.modules.get_torch_modules().items():
        found = getattr(loaded.algorithm.impl.modules, name).state_dict()
        assert found and all(torch.equal(found[key], tensor) for key, tensor in network.state_dict().items())
    assert loaded.algorithm.config == policy.algorithm.config
    assert loaded.provenance == policy.provenance
    assert loaded.provenance["gradient_steps"] == 6 and loaded.provenance["seed"] == 3
    assert loaded.provenance["data_digest"] == log.select([1]).digest


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("interrupted_after", [2, 3])
def test_interrupted_learning_resumes_to_the_same_bits(request, kind, method, interrupted_after, tmp_path, monkeypatch):
    """Interrupted before or after the best score; what the policy draws when asked is the same, too."""
    task, log = request.getfixturevalue(kind)
    scores = {4: 1.0, 8: 3.0, 12: 2.0, 16: 0.0}
    monkeypatch.setattr(offline_training, "_BAR_STEPS", 4)

    def learn(**more):
        seen = []
        done = []
        settings = {**SMALL, "target_update_interval": 3} if kind == "discrete" else SMALL
        policy = METHODS[method](
            log, task=task, steps=16, callback_every=4, progress=False,
            callback=lambda _, step: done.append(step),
            select=lambda policy: seen.append(policy.predict(np.ones((4, 1)))[0]) or scores[done[-1]],
            **{**settings, **more},
        )  # fmt: skip
        return policy, done, seen

    whole, _, seen_by_whole = learn()
    interrupt_after(interrupted_after, monkeypatch)
    path = tmp_path / "one.policy"
    with pytest.raises(KeyboardInterrupt):
        learn(checkpoint=path)
    assert [kept.name for kept in tmp_path.iterdir()] == ["one.policy.part"]
    with pytest.raises(FileFormatError, match=r"one\.policy\.part .*\(different settings, seed\)"):
        learn(checkpoint=path, seed=1, batch_size=9)
    resumed, done, seen = learn(checkpoint=path)
    assert done == [4, 8, 12, 16][interrupted_after:]  # nothing is done twice
    np.testing.assert_array_equal(seen, seen_by_whole[interrupted_after:])
    weights, expected = (
        learned_policy.weights_of(offline.networks_of(policy.algorithm)) for policy in (resumed, whole)
    )
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_of_a_policy_is_refused(discrete, tmp_path):
    task, log = discrete
    fit_cql(log, task=task, steps=1, progress=False, **SMALL).save(tmp_path / "one.policy")
    arrays, document = storage.read(tmp_path / "one.policy", OfflinePolicy.kind)
    arrays = {name: np.array(array) for name, array in arrays.items()}

    def load(arrays, **changes):
        storage.write(tmp_path / "two.policy", OfflinePolicy.kind, arrays, {**document, **changes})
        return OfflinePolicy.load(tmp_path / "two.policy", task=task)

    load(arrays)
    with pytest.raises(FileFormatError, match="its arrays do not fit the policy"):
        load(dict(list(arrays.items())[1:]))
    settings = {**document["settings"], "config": "DQNConfig"}
    with pytest.raises(FileFormatError, match="header is damaged .*'DQNConfig' is none of DiscreteBCQConfig"):
        load(arrays, settings=settings)
    for settings in ({}, {**document["settings"], "values": {"batch_size": 3, "nonsense": 1}}, None):
        with pytest.raises(FileFormatError, match="header is damaged"):
            load(arrays, settings=settings)
    with pytest.raises(FileFormatError, match="is of task Corridor, not of CartPole"):
        OfflinePolicy.load(tmp_path / "one.policy", task="CartPole")


@pytest.mark.parametrize("steps", ["d3rlpy's", "ours"])
def test_no_transition_is_lost(discrete, steps):
    """Batches hold every row, also the last of a truncated episode, each with its own successor and flag."""
    task, log = discrete
    assert log.truncated.any() and log.terminated.any()
    rows = np.arange(log.num_transitions)
    if steps == "ours":
        batch = discrete_q._Columns.of(log, torch.device("cpu")).select(rows)
    else:
        batch = offline_training.D3rlpySteps(None, log, task).batch(rows)
    wanted = {
        (float(s[0]), float(a), float(r), float(n[0]), float(t))
        for s, a, r, n, t in zip(
            log.observations, log.actions, log.rewards, log.next_observations, log.terminated, strict=True
        )
    }
    columns = (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminals)
    assert {tuple(map(float, row)) for row in zip(*(np.ravel(column) for column in columns), strict=True)} == wanted


def test_batches_agree_with_d3rlpys_own(discrete):
    """Where d3rlpy keeps a transition, ours is the same: equal losses on a fixed batch, from equal weights."""
    task, log = discrete
    library = extras.d3rlpy()
    terminated = np.flatnonzero(log.terminated[log.episode_ends - 1])[0]
    rows = np.arange(log.episode_starts[terminated], log.episode_ends[terminated])
    dataset = library.dataset.MDPDataset(
        log.observations[rows], log.actions[rows, None], log.rewards[rows], log.terminated[rows].astype(np.float32),
        action_space=library.ActionSpace.DISCRETE, action_size=2,
    )  # fmt: skip
    own = library.dataset.TransitionMiniBatch.from_transitions(
        [dataset.transition_picker(dataset.episodes[0], index) for index in range(len(rows))]
    )
    ours = offline_training.D3rlpySteps(None, log, task).batch(rows)
    losses = []
    for batch in (own, ours):
        with learned_policy.OwnRandomness(3).active():
            algorithm = library.algos.DiscreteCQLConfig(batch_size=len(rows)).create()
            algorithm.create_impl((1,), 2)
            losses.append(algorithm.update(batch))
    for name in ("observations", "actions", "rewards", "next_observations", "terminals", "next_actions"):
        live = slice(None) if name != "next_observations" else slice(0, -1)  # beyond the end it is not read
        np.testing.assert_array_equal(getattr(own, name)[live], getattr(ours, name)[live])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", METHODS)
def test_the_learning_curve(discrete, method):
    task, log = discrete
    seen = []

    def watch(policy, step):
        seen.append((step, policy.predict([[0.0]])[0]))

    METHODS[method](log, task=task, steps=25, callback=watch, callback_every=10, progress=False, **SMALL)
    assert [step for step, _ in seen] == [10, 20, 25]


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("method", METHODS)
def test_the_policy_with_the_best_score_is_returned(request, kind, method):
    """The weights after ten steps of twenty score best: those of a run of ten."""
    task, log = request.getfixturevalue(kind)
    scores = iter([0.5, 2.0, 2.0, -1.0])
    settings = {"task": task, "callback_every": 5, "progress": False, **SMALL}
    chosen = METHODS[method](log, steps=20, select=lambda policy: next(scores), **settings)
    short, last = (METHODS[method](log, steps=steps, **settings) for steps in (10, 20))
    assert next(scores, None) is None

    def weights(policy):
        modules = policy.algorithm.impl.modules.get_torch_modules()
        return torch.cat([tensor.flatten().double() for m in modules.values() for tensor in m.state_dict().values()])

    assert torch.equal(weights(chosen), weights(short)) and not torch.equal(weights(chosen), weights(last))


@pytest.mark.parametrize("method", METHODS)
def test_training_ends_when_the_score_stays_where_it_is(discrete, method):
    """Two checks without a better score after the best, which a third equal to it is not."""
    task, log = discrete
    settings = {"task": task, "callback_every": 5, "progress": False, **SMALL}
    asked, steps = [], []

    def select(policy):
        asked.append([0.0, 1.0, 0.5, 2.0, 2.0, -1.0, 9.0][len(asked)])
        return asked[-1]

    METHODS[method](
        log, steps=1000, select=select, patience=2, callback=lambda policy, step: steps.append(step), **settings
    )
    assert asked == [0.0, 1.0, 0.5, 2.0, 2.0, -1.0] and steps == [5, 10, 15, 20, 25, 30]
    for wrong, message in (
        ({"patience": 0, "select": select}, "patience=0 must be a whole number of at least 1"),
        ({"patience": 3}, "patience=3 needs the scores of select"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            METHODS[method](log, steps=10, **settings, **wrong)


def test_patience_outlasts_an_interruption(discrete, tmp_path, monkeypatch):
    """The scores that were no better before it count."""
    task, log = discrete
    monkeypatch.setattr(offline_training, "_BAR_STEPS", 4)
    settings = {"task": task, "steps": 20, "callback_every": 4, "progress": False, "patience": 2, **SMALL}
    asked = []

    def select(policy):
        asked.append([1.0, 0.5, 0.2, 9.0, 9.0][len(asked)])
        return asked[-1]

    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit_bcq(log, select=select, checkpoint=tmp_path / "one.policy", **settings)
    policy = fit_bcq(log, select=select, checkpoint=tmp_path / "one.policy", **settings)
    assert asked == [1.0, 0.5, 0.2] and policy.provenance["gradient_steps"] == 12


def test_a_score_that_is_no_number(discrete):
    """It could never be compared."""
    task, log = discrete
    for score in (float("nan"), None):
        with pytest.raises(InvalidArgumentError, match=f"select returned {score}, which is not a number"):
            fit_bcq(log, task=task, steps=1, select=lambda policy, score=score: score, progress=False, **SMALL)


@pytest.mark.parametrize(
    ("method", "message", "wrong"),
    [
        ("BCQ", "gamma=2.0 must be from 0 to 1", {"gamma": 2.0}),
        ("BCQ", "learning_rate=-1 must be", {"learning_rate": -1}),
        ("BCQ", "action_flexibility=0.0 must be", {"action_flexibility": 0.0}),
        ("BCQ", "action_flexibility=2.0 must be from 0 to 1", {"action_flexibility": 2.0}),
        ("BCQ", "beta=-1 must be", {"beta": -1}),
        ("BCQ", "share_encoder='x' must be True or False", {"share_encoder": "x"}),
        ("CQL", "q_func_factory='mean' must be a factory of d3rlpy's", {"q_func_factory": "mean"}),
        ("CQL", "optim_factory=3 must be a factory of d3rlpy's", {"optim_factory": 3}),
        ("CQL", "callback=5 must be a function of", {"callback": 5}),
        ("CQL", "select=3 must be a function of", {"select": 3}),
        ("CQL", "alpha=-3 must be", {"alpha": -3}),
        ("CQL", "reward_scaler='any' is not fitted to the log here", {"reward_scaler": "any"}),
    ],
)
def test_settings_of_d3rlpy_out_of_their_range(discrete, method, message, wrong):
    task, log = discrete
    with pytest.raises(InvalidArgumentError, match=message):
        {"BCQ": fit_bcq, "CQL": fit_cql}[method](log, task=task, steps=1, progress=False, **wrong)


@pytest.mark.parametrize(
    ("method", "message", "wrong"),
    [
        ("BCQ", "lam=3 must be from 0 to 1", {"lam": 3}),
        ("BCQ", "tau='x' must be from 0 to 1", {"tau": "x"}),
        ("CQL", "tau=-1 must be from 0 to 1", {"tau": -1}),
        ("CQL", "conservative_weight=-2 must be", {"conservative_weight": -2}),
        ("CQL", "alpha_threshold=-1 must be", {"alpha_threshold": -1}),
        ("CQL", "soft_q_backup=3 must be True or False", {"soft_q_backup": 3}),
        ("CQL", "initial_temperature=-1 must be a finite number above 0", {"initial_temperature": -1}),
        ("CQL", "initial_alpha=0 must be a finite number above 0", {"initial_alpha": 0}),
    ],
)
def test_settings_for_continuous_actions_out_of_their_range(continuous, method, message, wrong):
    task, log = continuous
    with pytest.raises(InvalidArgumentError, match=message):
        {"BCQ": fit_bcq, "CQL": fit_cql}[method](log, task=task, steps=1, progress=False, **wrong)


@pytest.mark.parametrize("method", METHODS)
def test_rewards_that_are_not_the_tasks(discrete, method):
    """Those of the log are learned from, which is said where the task's function differs; none at all are refused."""
    task, log = discrete
    fit = partial(METHODS[method], steps=1, progress=False, **SMALL)
    with pytest.warns(RuntimeWarning, match="the log's rewards are not what .*BCQ and CQL the log"):
        fit(dataclasses.replace(log, rewards=log.rewards - 7), task=task)
    unknown = Task(
        name="Unpaid",
        observation_space=task.observation_space,
        action_space=task.action_space,
        max_episode_steps=20,
    )
    with pytest.raises(InvalidDataError, match="all rewards of the log are zero, so there is none to learn"):
        fit(dataclasses.replace(log, rewards=np.zeros_like(log.rewards)), task=unknown)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_observations_to_act_on(request, kind):
    """Actions for what is not finite, or for nothing at all, there are none."""
    task, log = request.getfixturevalue(kind)
    policy = fit_bcq(log, task=task, steps=1, progress=False, **SMALL)
    for wrong in (np.array([[0.0], [np.nan]]), np.array([np.inf]), np.zeros((0, 1))):
        with pytest.raises(InvalidStateError):
            policy.predict(wrong)


def test_a_policy_says_what_learned_it(discrete):
    task, log = discrete
    policy = fit_cql(log, task=task, steps=1, progress=False, **SMALL)
    assert repr(policy) == f"OfflinePolicy({task.name}: DiscreteCQL)"


@pytest.mark.parametrize("method", METHODS)
def test_an_agents_own_data(discrete, method, monkeypatch):
    task, log = discrete
    used = []

    class Remembered(discrete_q.DiscreteSteps):
        def __init__(self, algorithm, log):
            used.append(log)
            super().__init__(algorithm, log)

    monkeypatch.setattr(offline_training, "DiscreteSteps", Remembered)
    for agent in (None, 1):
        METHODS[method](log, task=task, agent=agent, steps=1, progress=False)
    assert used[0].num_agents == 2 and used[1].agent_labels == ("1",)
    assert used[1].num_transitions == (log.agents == 1).sum()


@pytest.mark.parametrize("method", METHODS)
def test_offline_learners_refuse_wrong_logs_and_settings(discrete, continuous, method, monkeypatch):
    fit = METHODS[method]
    task, log = discrete
    with pytest.raises(UnknownNameError, match="no agent 7"):
        fit(log, task=task, agent=7, progress=False)
    with pytest.raises(InvalidArgumentError, match="the log names no task"):
        fit(log, progress=False)
    with pytest.raises(InvalidArgumentError, match="steps=0 must be a whole number of at least 1"):
        fit(log, task=task, steps=0, progress=False)
    with pytest.raises(
        UnknownNameError, match="no setting 'batchsize' of d3rlpy's Discrete.*; did you mean batch_size"
    ):
        fit(log, task=task, batchsize=3, progress=False)
    with pytest.raises(InvalidStateError, match=r"shape \(B, 1\) with every axis at least 1; got shape \(1, 3\)"):
        fit(log, task=task, steps=1, progress=False, **SMALL).predict(np.zeros((1, 3)))

    short = persim_gym.Trajectories.from_arrays(
        agents=["long"] * 9 + ["short"] * 2, observations=np.zeros((11, 1)), actions=np.zeros(11, int),
        next_observations=np.zeros((11, 1)),
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match="agent 'short' has 2 transitions; a policy needs at least 5"):
        fit(short, task=task, agent="short", progress=False)
    unflagged = persim_gym.Trajectories.from_arrays(
        agents=log.agents, observations=log.observations, actions=log.actions,
        next_observations=log.next_observations, episode_starts=log.episode_starts, rewards=log.rewards,
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match="reaches a terminal state of task Corridor .* terminated=..."):
        fit(unflagged, task=task, steps=1, progress=False)
    flagged = log.terminated & (log.agents == 0)
    partly = dataclasses.replace(log, terminated=flagged, truncated=log.truncated | (log.terminated & ~flagged))
    row = np.flatnonzero(log.terminated & (log.agents == 1))[0]
    with pytest.raises(InvalidDataError, match=f"row {row} reaches a terminal state of task Corridor"):
        fit(partly, task=task, agent=1, steps=1, progress=False)
    unpaid = dataclasses.replace(log, rewards=np.zeros_like(log.rewards))
    with pytest.raises(InvalidDataError, match="all rewards of the log are zero, but those of task Corridor are not"):
        fit(unpaid, task=task, steps=1, progress=False)
    with pytest.raises(InvalidDataError, match="the log's actions are discrete"):
        fit(log, task=continuous[0], progress=False)
    offline.d3rlpy.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "d3rlpy", None)
        with pytest.raises(MissingExtraError, match=r'pip install "persim-gym\[d3rlpy\]"'):
            fit(log, task=task, progress=False)


PAPERS_SETTINGS = {
    ("BCQ", "CartPole"): {
        "batch_size": 64,
        "learning_rate": 3e-4,
        "action_flexibility": 0.3,
        "share_encoder": False,
        "beta": 0.01,
        "target_update_interval": 200,
    },
    ("CQL", "CartPole"): {
        "batch_size": 512,
        "n_critics": 3,
        "alpha": 1.0,
        "learning_rate": 1e-4,
        "gamma": 0.99,
        "target_update_interval": 200,
    },
    ("BCQ", "HalfCheetah"): {
        "batch_size": 100,
        "lam": 0.75,
        "n_action_samples": 10,
        "action_flexibility": 0.05,
        "beta": 0.5,
        "tau": 0.005,
        "update_actor_interval": 1,
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "imitator_learning_rate": 1e-3,
    },
    ("CQL", "HalfCheetah"): {
        "actor_learning_rate": 3e-5,
        "critic_learning_rate": 3e-4,
        "alpha_threshold": 5.0,
        "conservative_weight": 5.0,
        "n_critics": 2,
    },
}
"""Of the paper and its authors' code, some of them d3rlpy's defaults."""


@pytest.mark.parametrize(("method", "name"), PAPERS_SETTINGS)
def test_the_settings_are_the_papers(method, name):
    """Those of the algorithm that a policy was learned with; so are the widths of continuous BCQ's networks."""
    task = get_task(name)
    states = np.zeros((9, task.observation_size))
    log = persim_gym.Trajectories.from_arrays(
        agents=np.zeros(9, int), observations=states, actions=np.zeros(9, int) if task.discrete else np.zeros((9, 6)),
        next_observations=states, task=name, rewards=np.ones(9),
    )  # fmt: skip
    config = METHODS[method](log, steps=1, progress=False).algorithm.config
    expected = PAPERS_SETTINGS[method, name]
    assert {key: getattr(config, key) for key in expected} == expected
    if (method, name) == ("BCQ", "HalfCheetah"):
        parts = ("actor", "critic", "imitator")
        widths = [getattr(config, f"{part}_encoder_factory").hidden_units for part in parts]
        assert widths == [[400, 300], [400, 300], [750, 750]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_training_that_diverges_says_so(request, method, kind):
    """No policy of weights that are no numbers comes back."""
    task, log = request.getfixturevalue(kind)
    rate = "learning_rate" if kind == "discrete" else "critic_learning_rate"
    with pytest.raises(TrainingDivergedError, match="no longer finite after 100 gradient steps; lower the learning"):
        METHODS[method](log, task=task, steps=300, progress=False, **{**SMALL, rate: 1e30})


@pytest.mark.parametrize("setting", ["batch_size", "target_update_interval"])
def test_counts_that_are_none(discrete, setting):
    task, log = discrete
    with pytest.raises(InvalidArgumentError, match=f"{setting}=0 must be a whole number of at least 1"):
        fit_bcq(log, task=task, progress=False, **{setting: 0})


def test_fewer_steps_than_the_checkpoint_has(discrete, tmp_path, monkeypatch):
    """A policy of more steps than were asked for is not handed out, and the checkpoint stays."""
    task, log = discrete
    keep_often(monkeypatch)

    def stop(policy, step):
        if step == 200:
            raise KeyboardInterrupt

    settings = {"task": task, "progress": False, "checkpoint": tmp_path / "one", "callback_every": 100, **SMALL}
    with pytest.raises(KeyboardInterrupt):
        fit_bcq(log, steps=300, callback=stop, **settings)
    with pytest.raises(InvalidArgumentError, match="steps=50 is fewer than the 100 that the checkpoint .*one.part has"):
        fit_bcq(log, steps=50, **settings)
    assert (tmp_path / "one.part").exists()


def test_a_device_that_is_not_there_is_no_damaged_file(discrete, tmp_path):
    task, log = discrete
    fit_bcq(log, task=task, steps=1, progress=False, **SMALL).save(tmp_path / "one.policy")
    with pytest.raises(InvalidArgumentError, match="device='abacus'"):
        OfflinePolicy.load(tmp_path / "one.policy", task=task, device="abacus")


def test_a_callback_that_predicts_changes_nothing(continuous):
    """Continuous BCQ draws candidates for its actions, from numbers that training does not use."""
    task, log = continuous
    settings = {"task": task, "steps": 20, "callback_every": 5, "progress": False, **SMALL}
    silent = fit_bcq(log, **settings)
    asked = fit_bcq(log, callback=lambda policy, step: policy.predict(log.observations[:9]), **settings)
    one, other = (learned_policy.weights_of(offline.networks_of(policy.algorithm)) for policy in (silent, asked))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_policy_reseeded(continuous, tmp_path):
    """By `generate` and others, before they let it act: its candidates depend on the seed alone, and its own stay."""
    task, log = continuous
    policy = fit_bcq(log, task=task, steps=6, progress=False, **SMALL)
    observations = np.ones((9, 1), np.float32)
    state = policy.randomness.state.clone()
    first, again, other = (as_policy(policy, task, seed).predict(observations)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and torch.equal(policy.randomness.state, state)
    policy.save(tmp_path / "one.policy")
    loaded = OfflinePolicy.load(tmp_path / "one.policy", task=task, seed=np.int64(1))
    np.testing.assert_array_equal(loaded.predict(observations)[0], first)  # of its seed alone, too
    for wrong in (-1, None, "x"):
        with pytest.raises(InvalidArgumentError, match=f"seed={wrong!r} must be a whole number"):
            policy.reseeded(wrong)
        with pytest.raises(InvalidArgumentError, match=f"seed={wrong!r} must be a whole number"):
            OfflinePolicy.load(tmp_path / "one.policy", task=task, seed=wrong)


def test_the_stream_of_a_gpu_goes_on(monkeypatch):
    """CUDA's generators are seeded anew each time, from numbers of the stream, so that they never repeat."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    streams = [learned_policy.OwnRandomness(3, device) for device in ("cuda", "cuda", "cpu")]
    for stream in streams:
        for _ in range(3):
            with stream.active():
                pass
    assert len(seeds) == 6 and seeds[:3] == seeds[3:] and len(set(seeds)) == 3
