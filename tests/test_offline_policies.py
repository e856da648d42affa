"""BCQ and CQL: d3rlpy's, driven by us on every row of a log."""

import itertools
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

import persim_gym
from persim_gym import storage
from persim_gym.baselines import OfflinePolicy, discrete_q, learned_policy, offline, offline_training
from persim_gym.baselines.bcq import fit_bcq
from persim_gym.baselines.cql import fit_cql
from persim_gym.errors import (
    FileFormatError,
    InvalidActionError,
    InvalidArgumentError,
    InvalidDataError,
    InvalidStateError,
    MissingExtraError,
    UnknownNameError,
)
from persim_gym.tasks import PlanningObjective, Task, get_task

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


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_policy_and_nobody_elses_numbers_are_touched(continuous, method):
    task, log = continuous
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = []
    for seed in (0, 0, 1):
        policy = METHODS[method](log, task=task, steps=6, seed=seed, progress=False, **SMALL)
        runs.append([policy.predict(np.ones((4, 1)))[0] for _ in range(2)])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_a_saved_policy_acts_as_it_did(request, kind, method, tmp_path):
    task, log = request.getfixturevalue(kind)
    policy = METHODS[method](log, task=task, agent=1, steps=6, seed=3, progress=False, **SMALL)
    policy.save(tmp_path / "one.policy")
    with pytest.raises(UnknownNameError, match="has a reward and a terminated function of its own.*give task="):
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
def test_interrupted_training_resumes_to_the_same_bits(request, kind, method, interrupted_after, tmp_path, monkeypatch):
    """Interrupted before or after the best score; what the policy draws when asked is the same, too."""
    task, log = request.getfixturevalue(kind)
    scores = {4: 1.0, 8: 3.0, 12: 2.0, 16: 0.0}
    monkeypatch.setattr(offline_training, "_BAR_STEPS", 4)
    monkeypatch.setattr(offline_training, "_CHECKPOINT_SECONDS", -1.0)

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
    advance, calls = offline_training._Run.advance, itertools.count()

    def interrupting(self, until):
        if next(calls) == interrupted_after:
            raise KeyboardInterrupt
        advance(self, until)

    monkeypatch.setattr(offline_training._Run, "advance", interrupting)
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


def test_no_transition_is_lost(discrete):
    """Batches hold every row, also the last of a truncated episode, each with its own successor and flag."""
    task, log = discrete
    assert log.truncated.any() and log.terminated.any()
    batch = offline_training.D3rlpySteps(None, log, task).batch(np.arange(log.num_transitions))
    wanted = {
        (float(s[0]), float(a), float(r), float(n[0]), float(t))
        for s, a, r, n, t in zip(
            log.observations, log.actions, log.rewards, log.next_observations, log.terminated, strict=True
        )
    }
    columns = (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminals)
    assert {tuple(map(float, row)) for row in np.concatenate(columns, axis=1)} == wanted


def test_batches_agree_with_d3rlpys_own(discrete):
    """Where d3rlpy keeps a transition, ours is the same: equal losses on a fixed batch, from equal weights."""
    task, log = discrete
    library = offline.d3rlpy()
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
    for wrong in ({"patience": 0, "select": select}, {"patience": 3}):
        with pytest.raises(InvalidArgumentError, match="at least 1, and needs the scores of select"):
            METHODS[method](log, steps=10, **settings, **wrong)


def test_a_score_that_is_no_number(discrete):
    """It could never be compared."""
    task, log = discrete
    with pytest.raises(InvalidArgumentError, match="select returned what is not a number"):
        fit_bcq(log, task=task, steps=1, select=lambda policy: float("nan"), progress=False, **SMALL)


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
def test_bad_input(discrete, continuous, method, monkeypatch):
    fit = METHODS[method]
    task, log = discrete
    with pytest.raises(UnknownNameError, match="no agent 7"):
        fit(log, task=task, agent=7, progress=False)
    with pytest.raises(InvalidArgumentError, match="the log names no task"):
        fit(log, progress=False)
    with pytest.raises(InvalidArgumentError, match="steps=0 and callback_every=10000 must be at least 1"):
        fit(log, task=task, steps=0, progress=False)
    with pytest.raises(UnknownNameError, match="no setting 'batchsize' of d3rlpy's Discrete"):
        fit(log, task=task, batchsize=3, progress=False)
    with pytest.raises(InvalidStateError, match=r"observations must have shape \(B, 1\), got \(1, 3\)"):
        fit(log, task=task, steps=1, progress=False, **SMALL).predict(np.zeros((1, 3)))

    short = persim_gym.Trajectories.from_arrays(
        agents=["long"] * 9 + ["short"] * 2, observations=np.zeros((11, 1)), actions=np.zeros(11, int),
        next_observations=np.zeros((11, 1)),
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match="agent 'short' has 2 transitions; a policy needs at least 5"):
        fit(short, task=task, agent="short", progress=False)
    unflagged = persim_gym.Trajectories.from_arrays(
        agents=log.agents, observations=log.observations, actions=log.actions,
        next_observations=log.next_observations, episode_starts=log.episode_starts,
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match="reaches a terminal state of task Corridor .* terminated=..."):
        fit(unflagged, task=task, progress=False)
    with pytest.raises(InvalidDataError, match="the log's actions are discrete"):
        fit(log, task=continuous[0], progress=False)
    boundless = corridor(spaces.Box(-np.inf, np.inf, (1,), np.float32))
    with pytest.raises(InvalidActionError, match="this method needs finite bounds"):
        fit(continuous[1], task=boundless, progress=False)
    offline.d3rlpy.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "d3rlpy", None)
        with pytest.raises(MissingExtraError, match=r'pip install "persim-gym\[d3rlpy\]"'):
            fit(log, task=task, progress=False)


def test_the_settings_are_the_papers():
    """Those of SPEC 7.2, where they differ from d3rlpy's own."""
    seen = {}

    class Stop(Exception):
        pass

    def remember(config, settings):
        seen[type(config).__name__] = config
        raise Stop

    cheetah, cart = get_task("HalfCheetah"), get_task("CartPole")
    rng = np.random.default_rng(0)
    logs = {
        task: persim_gym.Trajectories.from_arrays(
            agents=np.zeros(9, int), observations=np.zeros((9, task.observation_size)), actions=actions,
            next_observations=np.zeros((9, task.observation_size)), task=task.name,
        )
        for task, actions in ((cheetah, rng.uniform(-1, 1, (9, 6))), (cart, np.zeros(9, int)))
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline_training, "configured", remember)
        for method in METHODS.values():
            for log in logs.values():
                with pytest.raises(Stop):
                    method(log, progress=False)
    expected = {
        "DiscreteBCQConfig": {
            "batch_size": 64,
            "learning_rate": 3e-4,
            "action_flexibility": 0.3,
            "share_encoder": False,
        },
        "DiscreteCQLConfig": {"batch_size": 512, "n_critics": 3, "alpha": 1.0, "learning_rate": 1e-4, "gamma": 0.99},
        "BCQConfig": {"batch_size": 100, "lam": 0.75, "n_action_samples": 10, "action_flexibility": 0.05, "tau": 0.005},
        "CQLConfig": {"actor_learning_rate": 3e-5, "alpha_threshold": 5.0, "conservative_weight": 5.0, "n_critics": 2},
    }
    for name, settings in expected.items():
        assert {key: getattr(seen[name], key) for key in settings} == settings
