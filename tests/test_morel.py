"""MOReL: the detector of unknown states, the pessimistic MDP, and the policy learned in it."""

import copy
import itertools
import pickle
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from support import interrupt_after

import persim_gym
from persim_gym import storage
from persim_gym.baselines import OfflinePolicy, morel, morel_threshold, plain_dynamics
from persim_gym.baselines.layers import mlp
from persim_gym.baselines.morel import MOReLConfig, MOReLPolicy, fit_morel
from persim_gym.baselines.morel_run import PolicyRun, halting, isolated_training
from persim_gym.baselines.morel_threshold import THRESHOLD_SCALES, first_that_seldom_halts, largest_discrepancy
from persim_gym.baselines.pessimistic import PessimisticVectorEnv
from persim_gym.baselines.plain_dynamics import _BestWeights, discrepancy, fit_plain_dynamics
from persim_gym.errors import (
    EpisodeOverError,
    FileFormatError,
    InvalidActionError,
    InvalidArgumentError,
    InvalidDataError,
    InvalidStateError,
    MissingExtraError,
    TrainingDivergedError,
    UnknownNameError,
)
from persim_gym.tasks import get_task
from persim_gym.training.checkpoint import Checkpoint

QUICK = {"hidden": (16, 16), "epochs": 3, "policy_steps": 256, "num_envs": 8}


@pytest.fixture(scope="module")
def dynamics(cart_pole_log):
    return fit_plain_dynamics(cart_pole_log, get_task("CartPole"), hidden=(16, 16), epochs=3)


def single(dynamics, member):
    """The dynamics of one member."""
    return replace(dynamics, parameters={name: part[member][None] for name, part in dynamics.parameters.items()})


@pytest.fixture(scope="module")
def make(dynamics, cart_pole_log):
    def make(threshold, **settings):
        return PessimisticVectorEnv(dynamics, cart_pole_log, threshold=threshold, penalty=50.0, **settings)

    return make


def test_the_discrepancy_is_the_largest_distance_of_two_members():
    outputs = np.random.default_rng(0).normal(size=(4, 3, 7)).astype(np.float32)
    expected = [
        max(np.linalg.norm(outputs[i, :, b] - outputs[j, :, b]) for i in range(4) for j in range(4)) for b in range(7)
    ]
    np.testing.assert_allclose(discrepancy(torch.tensor(outputs)).numpy(), expected, rtol=1e-6)


def test_the_next_state_is_the_members_mean(dynamics, cart_pole_log):
    columns = cart_pole_log.observations[:50], cart_pole_log.actions[:50]
    alone = [single(dynamics, member).predict(*columns)[0] for member in range(4)]
    np.testing.assert_allclose(dynamics.predict(*columns)[0], np.mean(alone, axis=0), atol=1e-5)
    assert np.ptp(alone, axis=0).max() > 1e-3


@pytest.mark.parametrize("own", ["weights", "batches"])
def test_members_have_weights_and_batches_of_their_own(cart_pole_log, own, monkeypatch):
    """Either alone makes them differ: all rows in each batch, or the same first weights."""
    if own == "batches":
        initial = plain_dynamics.initial_layers

        def equal(*arguments):
            return {name: part[:1].repeat(4, 1, 1) for name, part in initial(*arguments).items()}

        monkeypatch.setattr(plain_dynamics, "initial_layers", equal)
    size = 10_000 if own == "weights" else 64
    learned = fit_plain_dynamics(cart_pole_log, get_task("CartPole"), hidden=(8,), epochs=2, batch_size=size)
    for name, part in learned.parameters.items():
        for one, other in itertools.combinations(part, 2):
            assert name.endswith("bias") and own == "weights" or (one - other).abs().max() > 1e-4


def test_the_best_epoch_is_chosen_by_rows_that_are_not_learned_from(cart_pole_log, monkeypatch):
    """A tenth of them; all others are learned from, by every member, in every epoch."""
    learned, judged = [], []

    def noting(parameters, name, inputs, activation):
        seen = learned if torch.is_grad_enabled() else judged
        seen += [tuple(row) for row in inputs.transpose(1, 2).reshape(-1, inputs.shape[1]).tolist()]
        return mlp(parameters, name, inputs, activation)

    monkeypatch.setattr(plain_dynamics, "mlp", noting)
    fit_plain_dynamics(cart_pole_log, get_task("CartPole"), hidden=(8,), epochs=3)
    rows = cart_pole_log.num_transitions
    assert len(set(judged)) == int(0.1 * rows) and len(set(learned)) == rows - int(0.1 * rows)
    assert not set(judged) & set(learned)
    assert set(Counter(learned).values()) == set(Counter(judged).values()) == {3 * 4}


def test_training_keeps_each_members_best_epoch():
    """Whatever the weights become later."""
    epochs = [{"net.0.weight": torch.full((2, 3, 4), float(epoch))} for epoch in range(4)]
    errors = [[3.0, 1.0], [4.0, torch.nan], [2.0, 1.5], [2.5, torch.inf]]
    best = _BestWeights(epochs[0])
    assert not best.finite
    for weights, error in zip(epochs, errors, strict=True):
        best.offer(weights, torch.tensor(error))
    assert best.finite and best.parameters["net.0.weight"][:, 0, 0].tolist() == [2.0, 0.0]


def test_what_was_learned_needs_no_gradients(dynamics):
    """So that it can be copied, and nothing of the training is kept alive by it."""
    assert not any(part.requires_grad or part.grad_fn for part in dynamics.parameters.values())
    copied = copy.deepcopy(dynamics)
    assert all(torch.equal(copied.parameters[name], part) for name, part in dynamics.parameters.items())


def test_the_dynamics_learn_a_linear_system():
    """With few transitions they are trained without validation."""
    from support import walk_task

    task = walk_task(limit=40)
    log = persim_gym.collect(task, num_agents=12, seed=0, covariates=np.ones((12, 1)))
    learned = fit_plain_dynamics(log, task, hidden=(32, 32), epochs=60, batch_size=32)
    following, spread = learned.predict(log.observations, log.actions)
    change = np.square(log.next_observations - log.observations)[:, 0].mean()
    assert np.square(following - log.next_observations)[:, 0].mean() < 0.01 * change
    assert spread.max() < 0.5
    few = fit_plain_dynamics(log.select([0]), task, hidden=(8,), epochs=2)
    assert np.isfinite(few.predict(log.observations, log.actions)[0]).all()
    steps = fit_plain_dynamics(log, task, hidden=(8,), epochs=1000, max_gradient_steps=2)
    assert np.isfinite(steps.predict(log.observations, log.actions)[1]).all()
    for fraction in (0.1, 0.0):
        with pytest.raises(TrainingDivergedError, match="lower learning_rate=1e"):
            fit_plain_dynamics(
                log, task, hidden=(8,), epochs=1, learning_rate=1e30, validation_fraction=fraction, batch_size=9999
            )


def test_at_threshold_zero_every_pair_halts(make):
    env = make(0.0, num_envs=16)
    before, _ = env.reset(seed=0)
    after, rewards, terminated, truncated, info = env.step(np.zeros(16, int))
    assert info["halted"].all() and terminated.all() and not truncated.any()
    assert (rewards == -50.0).all()
    np.testing.assert_array_equal(info["final_obs"], before)
    assert info["_final_obs"].all() and not np.array_equal(after, before)


def test_at_threshold_zero_members_that_agree_halt_too(dynamics, cart_pole_log):
    same = {name: part[:1].repeat(4, 1, 1) for name, part in dynamics.parameters.items()}
    env = PessimisticVectorEnv(replace(dynamics, parameters=same), cart_pole_log, threshold=0.0, penalty=50.0)
    env.reset(seed=0)
    info = env.step(np.zeros(64, int))[4]
    assert not info["discrepancy"].any() and info["halted"].all()


def test_episodes_are_no_longer_than_the_tasks(make):
    assert make(1.0, max_episode_steps=500).max_episode_steps == get_task("CartPole").max_episode_steps == 200


def test_at_threshold_infinity_none_does(make):
    """The episodes then follow the members' mean, the task's reward, its bounds and its time limit."""
    env = make(np.inf, num_envs=16, max_episode_steps=12)
    before, _ = env.reset(seed=0)
    lengths, rng = np.zeros(16, int), np.random.default_rng(0)
    task = get_task("CartPole")
    for _ in range(60):
        actions = rng.integers(2, size=16)
        after, rewards, terminated, truncated, info = env.step(actions)
        lengths += 1
        reached = after.copy()
        if "final_obs" in info:
            reached[info["_final_obs"]] = info["final_obs"][info["_final_obs"]]
        mean = env.dynamics.predict(before, actions)[0]
        np.testing.assert_allclose(reached, np.clip(mean, task.observation_space.low, task.observation_space.high))
        assert not info["halted"].any() and (rewards == 1.0).all()
        np.testing.assert_array_equal(terminated, task.terminated(reached))
        np.testing.assert_array_equal(truncated, ~terminated & (lengths == 12))
        lengths[terminated | truncated] = 0
        before = after


def test_at_threshold_infinity_no_disagreement_is_too_large(dynamics, cart_pole_log):
    """Members that lie far apart, by more than any threshold a setting would give, do not end an episode either."""
    last = max(name for name in dynamics.parameters if name.endswith("bias"))
    apart = {**dynamics.parameters, last: dynamics.parameters[last].clone()}
    apart[last][0] += 1e4
    env = PessimisticVectorEnv(replace(dynamics, parameters=apart), cart_pole_log, threshold=np.inf, penalty=50.0)
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(np.zeros(64, int))
    assert info["discrepancy"].min() > 100 and not info["halted"].any() and (rewards == 1.0).all()


def test_between_them_the_episode_ends_exactly_where_the_members_disagree(make, cart_pole_log):
    env = make(1.0, num_envs=64)
    observations, _ = env.reset(seed=2)
    actions = np.random.default_rng(1).integers(2, size=64)
    spread = env.dynamics.predict(observations, actions)[1]
    env.threshold = float(np.median(spread))
    _, rewards, terminated, _, info = env.step(actions)
    np.testing.assert_array_equal(info["halted"], spread > env.threshold)
    assert (rewards[info["halted"]] == -50).all() and (rewards[~info["halted"]] == 1).all()
    assert terminated[info["halted"]].all() and 0 < info["halted"].sum() < 64


def test_half_of_the_episodes_begin_where_logged_ones_do(make, cart_pole_log):
    env = make(np.inf, num_envs=2000)
    starts, _ = env.reset(seed=0)
    first = {tuple(row) for row in cart_pole_log.initial_observations}
    logged = {tuple(row) for row in cart_pole_log.observations}
    share = np.mean([tuple(row) in first for row in starts])
    assert all(tuple(row) in logged for row in starts)
    assert 0.5 < share < 0.6  # first states are also among all states


def test_what_is_no_number_halts_and_what_is_far_stays_in_the_space(dynamics, cart_pole_log):
    """The first state of a member that is not a number, and one that would leave the observation space."""
    low, high = (getattr(get_task("CartPole").observation_space, bound) for bound in ("low", "high"))
    for value in (np.nan, 1e6):
        spoiled = {name: tensor.clone() for name, tensor in dynamics.parameters.items()}
        spoiled["net.2.bias"][:] = value
        env = PessimisticVectorEnv(replace(dynamics, parameters=spoiled), cart_pole_log, threshold=np.inf, penalty=50.0)
        before, _ = env.reset(seed=0)
        _, rewards, terminated, _, info = env.step(np.zeros(64, int))
        assert terminated.all() and info["halted"].all() == np.isnan(value)
        assert (rewards == (-50.0 if np.isnan(value) else 1.0)).all()
        assert ((info["final_obs"] >= low) & (info["final_obs"] <= high)).all()
        if np.isnan(value):
            np.testing.assert_array_equal(info["final_obs"], before)
        else:
            np.testing.assert_array_equal(info["final_obs"][:, 0], high[0])


def test_the_settings_of_policy_and_dynamics(policy, cart_pole_log, monkeypatch):
    """Those that PerSim's appendix and the code it cites name, in mini-batches of equal size."""
    ppo = policy.ppo
    found = {name: getattr(ppo, name) for name in ("gamma", "gae_lambda", "ent_coef", "vf_coef", "n_epochs")}
    assert found == {"gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.01, "vf_coef": 0.5, "n_epochs": 4}
    assert (ppo.learning_rate, ppo.max_grad_norm) == (2.7e-4, 0.5)
    assert ppo.clip_range(1.0) == ppo.clip_range_vf(1.0) == 0.2
    assert ppo.n_steps * ppo.n_envs == 1024 == 4 * ppo.batch_size
    paper = MOReLConfig()
    assert (paper.hidden, paper.num_members, paper.penalty) == ((128, 128), 4, 50.0)
    assert (morel.CONFIGS["HalfCheetah"].hidden, morel.CONFIGS["HalfCheetah"].penalty) == ((1024, 1024), 200.0)
    three = fit_morel(cart_pole_log, agent=0, progress=False, **{**QUICK, "num_envs": 3})
    assert three.ppo.n_steps * 3 == 4 * three.ppo.batch_size


def test_it_is_a_vector_environment(make):
    assert make(1.0).single_action_space is not get_task("CartPole").action_space  # learners seed it
    env = make(np.inf, num_envs=3)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    one, two = (env.reset(seed=7)[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert env.observation_space.contains(one) and env.action_space.contains(np.zeros(3, np.int64))
    mode = getattr(gymnasium.vector, "AutoresetMode", None)
    assert mode is None or env.metadata["autoreset_mode"] is mode.SAME_STEP


@pytest.fixture(scope="module")
def policy(cart_pole_log):
    pytest.importorskip("stable_baselines3")
    return fit_morel(cart_pole_log, agent=0, progress=False, **QUICK)


def test_a_policy_for_discrete_actions(policy, cart_pole_log):
    assert policy.predict(cart_pole_log.observations[:6])[0].shape == (6,)
    assert policy.predict(cart_pole_log.observations[0])[0].shape == ()
    own = cart_pole_log.select([0])
    largest = largest_discrepancy(policy.env.dynamics, own)
    assert policy.env.threshold == policy.provenance["threshold_scale"] * largest > 0
    extractor = policy.ppo.policy.features_extractor
    scaled = extractor(torch.tensor(own.observations)).numpy()
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-5)


@pytest.fixture(scope="module")
def continuous_policy():
    pytest.importorskip("stable_baselines3")
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(60, 18))
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(3), 20), observations=observations, actions=rng.uniform(-1, 1, (60, 6)),
        next_observations=observations + 0.1 * rng.normal(size=(60, 18)), task="HalfCheetah",
    )  # fmt: skip
    return fit_morel(log, config=MOReLConfig(penalty=200.0), progress=False, **QUICK)


def test_a_policy_for_continuous_actions(continuous_policy):
    actions, _ = continuous_policy.predict(1e3 * np.random.default_rng(0).normal(size=(60, 18)))
    assert actions.shape == (60, 6) and np.abs(actions).max() <= 1
    assert continuous_policy.env.penalty == 200
    mean = continuous_policy.network.action_net(100 * torch.randn(60, 64, generator=torch.Generator().manual_seed(0)))
    assert 0.9 < mean.abs().max() <= 1  # before anything is clipped


def drifting_log(unit):
    """A state that decays and is pushed by actions from −unit to unit, and its task; the same in every unit."""
    task = persim_gym.Task(
        name=f"Drift{unit}",
        observation_space=gymnasium.spaces.Box(-60, 60, (1,), np.float32),
        action_space=gymnasium.spaces.Box(-unit, unit, (1,), np.float32),
        reward=lambda states, actions, reached: -((reached[..., 0] - 1.0) ** 2),
        terminated=lambda states: states[..., 0] > 50,
        max_episode_steps=30,
    )
    rng = np.random.default_rng(0)
    states, pushes = rng.uniform(-2, 2, (120, 1)), rng.uniform(-1, 1, (120, 1)).astype(np.float32)
    reached = 0.9 * states + 0.3 * pushes
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(4), 30), observations=states, actions=unit * pushes, next_observations=reached,
        rewards=task.reward(None, None, reached), episode_starts=np.arange(120),
    )  # fmt: skip
    return log, task


def test_continuous_actions_may_have_any_unit(tmp_path):
    """What is learned, explores and is drawn is the same in another unit; one that is a power of two rounds alike."""
    pytest.importorskip("stable_baselines3")
    states, found = np.linspace(-2, 2, 50)[:, None], {}
    for unit in (1.0, 1024.0):
        log, task = drifting_log(unit)
        policy = fit_morel(log, task=task, progress=False, **{**QUICK, "policy_steps": 2048})
        policy.save(tmp_path / "one.policy")
        loaded = MOReLPolicy.load(tmp_path / "one.policy", task=task)
        best, drawn = (loaded.predict(states, deterministic=wanted)[0] for wanted in (True, False))
        np.testing.assert_array_equal(best, policy.predict(states)[0])
        assert np.abs(best).max() <= unit
        found[unit] = np.concatenate([best, drawn]) / unit, policy.provenance["threshold"]
    np.testing.assert_allclose(found[1024.0][0], found[1.0][0], atol=1e-4)
    assert found[1024.0][1] == pytest.approx(found[1.0][1], rel=1e-3)
    assert 0.3 < found[1.0][0][50:].std() < 1


def test_a_loaded_policy_can_be_sent_to_another_process(policy, tmp_path):
    policy.save(tmp_path / "one.policy")
    loaded = MOReLPolicy.load(tmp_path / "one.policy")
    again = pickle.loads(pickle.dumps(loaded))
    states = 0.1 * np.random.default_rng(1).normal(size=(50, 4))
    np.testing.assert_array_equal(again.predict(states)[0], loaded.predict(states)[0])


def test_large_seeds_are_seeds_too(cart_pole_log):
    pytest.importorskip("stable_baselines3")
    policy = fit_morel(cart_pole_log, agent=0, seed=2**40, progress=False, **QUICK)
    assert policy.provenance["seed"] == 2**40


@pytest.mark.parametrize("kind", ["policy", "continuous_policy"])
def test_a_saved_morel_policy_acts_as_it_did(request, kind, tmp_path):
    policy = request.getfixturevalue(kind)
    policy.save(tmp_path / "one.policy")
    loaded, again = (MOReLPolicy.load(tmp_path / "one.policy", seed=4) for _ in range(2))
    observations = np.random.default_rng(1).normal(size=(50, policy.task.observation_size)) * 0.1
    np.testing.assert_array_equal(loaded.predict(observations)[0], policy.predict(observations)[0])
    drawn = [one.predict(observations, deterministic=False)[0] for one in (loaded, again, again)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[1] != drawn[2]).any()
    assert loaded.provenance == policy.provenance and loaded.ppo is None and loaded.env is None


def test_both_stages_show_how_far_they_are(cart_pole_log, capsys):
    """The dynamics' epochs and the policy's steps, on the error stream."""
    pytest.importorskip("stable_baselines3")
    fit_morel(cart_pole_log, agent=0, progress=True, **QUICK)
    shown = capsys.readouterr()
    assert "dynamics" in shown.err and "3/3" in shown.err and "policy" in shown.err and shown.out == ""


def test_drawn_actions_are_drawn_as_the_policy_says(policy):
    state = np.array([0.0, 0.0, 0.02, 0.0], np.float32)
    with torch.no_grad():
        expected = policy.network.get_distribution(torch.tensor(state[None])).distribution.probs[0, 1].item()
    drawn, _ = policy.predict(np.tile(state, (4000, 1)), deterministic=False)
    assert abs(drawn.mean() - expected) < 0.04
    assert len(np.unique(policy.predict(np.tile(state, (9, 1)))[0])) == 1


def test_a_file_of_another_policy_is_refused(policy, tmp_path):
    policy.save(tmp_path / "one.policy")
    with pytest.raises(FileFormatError, match="'a policy of MOReL'; one of kind 'a policy of BCQ or CQL' is needed"):
        OfflinePolicy.load(tmp_path / "one.policy")
    with pytest.raises(FileFormatError, match="is of task CartPole, not of MountainCar"):
        MOReLPolicy.load(tmp_path / "one.policy", task="MountainCar")
    arrays, document = storage.read(tmp_path / "one.policy", MOReLPolicy.kind)
    kept = {name: np.array(array) for name, array in arrays.items() if "action_net" not in name}
    storage.write(tmp_path / "two.policy", MOReLPolicy.kind, kept, document)
    with pytest.raises(FileFormatError, match="its arrays do not fit the policy.*action_net"):
        MOReLPolicy.load(tmp_path / "two.policy")


def test_a_policy_learns_in_the_pessimistic_mdp():
    """On a walk that pays −|x| a step, it goes to the origin, over states that the log knows."""
    pytest.importorskip("stable_baselines3")
    from support import walk_task

    task = walk_task(start=3.0, limit=20)
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 6, 400)
    actions = rng.integers(3, size=400)
    following = positions + (actions - 1)
    log = persim_gym.Trajectories.from_arrays(
        agents=np.zeros(400, int), observations=np.stack([positions, np.zeros(400)], 1), actions=actions,
        next_observations=np.stack([following, np.zeros(400)], 1), rewards=-np.abs(following),
        episode_starts=np.arange(400),
    )  # fmt: skip
    policy = fit_morel(
        log, task=task, progress=False, hidden=(32, 32), epochs=60, policy_steps=20_000, num_envs=32, threshold_scale=2
    )
    chosen, _ = policy.predict(np.stack([np.linspace(2, 5, 5), np.zeros(5)], 1))
    assert (chosen == 0).all()
    assert policy.provenance["halted"] < 0.5 and policy.provenance["mean_episode_steps"] > 10


@pytest.mark.parametrize(
    ("after_trial", "in_the_end", "chosen", "learned"),
    [
        ([0.1], [0.1], 1.0, [90]),
        ([0.8, 0.9, 0.05], [None, None, 0.0], 4.0, [70, 70, 90]),
        ([0.0, 0.0], [0.2, 0.0], 2.0, [90, 90]),
        ([0.8, 0.9, 0.5, 0.3, 0.3, 0.0], [None, None, None, None, None, 0.4], 8.0, [70, 70, 70, 90, 70, 90]),
    ],
)
def test_the_threshold_is_the_first_with_which_episodes_seldom_halt(after_trial, in_the_end, chosen, learned):
    """After the trial and in the end; where all halt more often, the one that halts least, and of two the lower."""
    made = []

    class Run:
        def __init__(self, scale):
            self.index, self.scale, self.learned = len(made), scale, 0
            made.append(self)

        def learn(self, steps, progress):
            self.learned = steps

        def halted_after(self, steps, progress):
            self.learned = steps
            return (after_trial if steps == 70 else in_the_end)[self.index]

    settings = {"trial_steps": 70, "policy_steps": 90, "max_halted": 0.1, "progress": False}
    scale, run = first_that_seldom_halts(Run, **settings)
    assert (scale, run.scale) == (chosen, chosen)
    assert [one.scale for one in made] == list(THRESHOLD_SCALES[: len(learned)])
    assert [one.learned for one in made] == learned


def test_after_the_trial_ppo_goes_on_as_if_there_had_been_none(cart_pole_log):
    """With the threshold that was chosen given, and never looked at, it learns the same."""
    pytest.importorskip("stable_baselines3")
    settings = {**QUICK, "policy_steps": 384, "progress": False, "agent": 0}
    tried = fit_morel(cart_pole_log, trial_steps=128, max_halted=1.0, **settings)
    given = fit_morel(cart_pole_log, threshold_scale=1.0, **settings)
    assert tried.provenance["threshold_scale"] == 1.0 and tried.ppo.num_timesteps == given.ppo.num_timesteps
    for one, two in zip(tried.ppo.policy.parameters(), given.ppo.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_next_episode_of_an_environment_is_not_looked_at():
    """One ends after a step and its next episode halts, while the other goes on for three."""

    class Env:
        task, num_envs, steps = get_task("CartPole"), 2, 0

        def reset(self, seed):
            return np.zeros((2, 4)), {}

        def step(self, actions):
            self.steps += 1
            halted = np.array([self.steps == 2, False])
            return np.zeros((2, 4)), None, halted, np.array([self.steps == 1, self.steps == 3]), {"halted": halted}

    found = halting(Env(), SimpleNamespace(predict=lambda observations, deterministic: (np.zeros(2, int), None)), 0)
    assert (found.halted, found.mean_episode_steps) == (0.0, 2.0)


@pytest.mark.usefixtures("global_generators_untouched")
def test_every_rollout_has_random_numbers_of_its_own():
    """Those of the seed and of the steps before it, for torch, NumPy and the environment."""

    class Ppo:
        def __init__(self, env):
            self.env, self.num_timesteps, self.drawn = env, 0, []

        def learn(self, steps, reset_num_timesteps):
            self.num_timesteps += 8
            self.drawn += [torch.rand(()).item(), np.random.random(), self.env.np_random.random()]

    found = []
    with isolated_training():
        for seed, stops in ((0, [24]), (0, [8, 24]), (1, [24])):
            run = PolicyRun(SimpleNamespace, Ppo, seed=seed, checkpoint=Checkpoint(None, {}))
            for stop in stops:
                torch.rand(3)  # whatever was drawn in between
                run.learn(stop)
            found.append(run.ppo.drawn)
    assert found[0] == found[1] and len(set(found[0] + found[2])) == 18


def test_a_policy_that_can_only_halt_says_so(cart_pole_log):
    pytest.importorskip("stable_baselines3")
    policy = fit_morel(cart_pole_log, agent=0, progress=False, threshold_scale=0, **QUICK)
    assert (policy.provenance["halted"], policy.provenance["mean_episode_steps"]) == (1.0, 1.0)


@pytest.mark.usefixtures("global_generators_untouched")
def test_same_seed_same_morel_policy_and_nobody_elses_numbers_are_touched(policy, cart_pole_log):
    again = fit_morel(cart_pole_log, agent=0, progress=False, **QUICK)
    for one, two in zip(policy.ppo.policy.parameters(), again.ppo.policy.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("after", [2, 4, 5, 7, 9, 11])
def test_interrupted_morel_resumes_to_the_same_bits(cart_pole_log, after, tmp_path, monkeypatch):
    """In the dynamics and at their end, in a trial and after each, and where what was given up goes on after all."""
    pytest.importorskip("stable_baselines3")
    monkeypatch.setattr(morel_threshold, "THRESHOLD_SCALES", (0.05, 0.1))
    sizes = {"hidden": (8, 8), "num_envs": 64, "trial_steps": 2048, "policy_steps": 3072, "max_halted": 0.0}
    learn = partial(fit_morel, cart_pole_log, agent=0, seed=3, epochs=4, progress=False, **sizes)
    whole = learn()
    written = interrupt_after(after, monkeypatch)
    path = tmp_path / "one.policy"
    with pytest.raises(KeyboardInterrupt):
        learn(checkpoint=path)
    with pytest.raises(FileFormatError, match=r"one\.policy\.\w+(\.05)?\.part .*\(different config\)"):
        learn(checkpoint=path, penalty=3.0)
    resumed = learn(checkpoint=path)
    stages = [name.removeprefix("one.policy.").removesuffix(".part") for name in written]
    low, high = "threshold0.05", "threshold0.1"
    assert stages == ["dynamics"] * 4 + [low] * 3 + [high] * 3 + [low]  # nothing is done twice
    for one, two in zip(whole.ppo.policy.parameters(), resumed.ppo.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    told = [{**one.provenance, "wall_seconds": 0} for one in (whole, resumed)]
    assert told[0] == told[1]
    assert list(tmp_path.iterdir()) == []


def test_morel_refuses_wrong_logs_settings_and_actions(make, policy, cart_pole_log, monkeypatch):
    with pytest.raises(InvalidArgumentError, match="num_envs=0 must be a whole number of at least 1"):
        make(1.0, num_envs=0)
    with pytest.raises(InvalidArgumentError, match="threshold=nan must be at least 0"):
        make(float("nan"))
    with pytest.raises(EpisodeOverError, match="call reset"):
        make(1.0).step(np.zeros(64, int))
    env = make(1.0, num_envs=2)
    env.reset()
    with pytest.raises(InvalidActionError, match=r"whole numbers from 0 to 1 of shape \(2,\), got .* of shape \(3,\)"):
        env.step(np.zeros(3, int))
    with pytest.raises(InvalidStateError, match=r"shape \(B, 4\) with every axis at least 1; got shape \(1, 2\)"):
        policy.predict(np.zeros((1, 2)))
    with pytest.raises(UnknownNameError, match="no setting 'kappa' of MOReL"):
        fit_morel(cart_pole_log, kappa=3)
    with pytest.raises(InvalidArgumentError, match="num_members=1 must be at least 2"):
        MOReLConfig(num_members=1)
    with pytest.raises(InvalidArgumentError, match="policy_steps=0 must be a whole number"):
        MOReLConfig(policy_steps=0)
    with pytest.raises(InvalidArgumentError, match="threshold_scale=-1 must be at least 0"):
        MOReLConfig(threshold_scale=-1)
    with pytest.raises(InvalidArgumentError, match="max_halted=2 must be from 0 to 1"):
        MOReLConfig(max_halted=2)
    with pytest.raises(InvalidArgumentError, match="penalty=nan must be a finite number"):
        MOReLConfig(penalty=float("nan"))
    with pytest.raises(InvalidArgumentError, match="config=3 must be a name or a MOReLConfig"):
        fit_morel(cart_pole_log, config=3)
    with pytest.raises(UnknownNameError, match="unknown config 'MOReL'; named ones are default, HalfCheetah"):
        fit_morel(cart_pole_log, config="MOReL")
    with pytest.raises(InvalidArgumentError, match="seed=-1 must be a whole number"):
        fit_morel(cart_pole_log, seed=-1)
    short = persim_gym.Trajectories.from_arrays(
        agents=[0] * 9 + [1] * 3, observations=np.zeros((12, 4)), actions=np.zeros(12, int),
        next_observations=np.zeros((12, 4)), task="CartPole",
    )  # fmt: skip
    with pytest.raises(InvalidDataError, match="agent '1' has 3 transitions; a policy needs at least 5"):
        fit_morel(short, agent=1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "stable_baselines3", None)
        with pytest.raises(MissingExtraError, match=r'pip install "persim-gym\[sb3\]"'):
            fit_morel(cart_pole_log)
