"""`fit`: Adam on the paper's loss, the same bits for the same seed, and a model that finds a known system."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import SMALL, interrupt_after, keep_checkpoints, keep_often, walk_dynamics, walk_task
from test_gradients import paper_loss

import persim_gym
from persim_gym import PerSimConfig, Task, Trajectories, devices, errors, fit, get_task, storage
from persim_gym.baselines import fit_joint
from persim_gym.config import CONFIGS, RANKS, get_config
from persim_gym.simulators.networks.kernels import jit
from persim_gym.training import trainer
from persim_gym.training.checkpoint import Checkpoint
from persim_gym.training.errors import one_step_errors
from persim_gym.training.preparation import split

TINY = PerSimConfig(rank=3, state_hidden=(8,), num_members=2, epochs=4, batch_size=64, normalize=False)


@pytest.fixture(scope="module")
def log():
    """Random trajectories of 5 CartPoles, some 100 rows."""
    return persim_gym.collect("CartPole", num_agents=5, seed=0)


def same_bits(first, second):
    """Whether two ensembles have bit-equal parameters."""
    return all(np.array_equal(first.parameters[name], second.parameters[name]) for name in first.parameters)


@pytest.fixture(params=["plain", "compiled"])
def epochs(request, monkeypatch):
    """Train by torch alone, then by the compiled kernel."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(jit, "available", lambda: request.param == "compiled")
    return request.param


@pytest.mark.usefixtures("epochs")
@pytest.mark.parametrize(
    ("normalize", "weight_decay", "threshold", "linear_skip"),
    [
        (False, 0.0, None, False),
        (True, 0.0, None, False),
        (False, 0.1, None, False),
        (True, 0.0, 0.5, False),
        (False, 0.1, None, True),
    ],
)
def test_full_batches_are_torch_adam(log, normalize, weight_decay, threshold, linear_skip):
    """With one batch an epoch the order does not matter: six steps equal torch.optim.Adam's with autograd."""
    config = TINY.with_changes(
        normalize=normalize,
        weight_decay=weight_decay,
        huber_threshold=threshold,
        linear_skip=linear_skip,
        batch_size=10_000,
        learning_rate=1e-2,
        halve_learning_rate_every=2,
    )
    untrained = config.with_changes(learning_rate=1e-30, weight_decay=0.0)
    start = fit(log, config=untrained, epochs=1, validation_fraction=0, progress=False)
    trained = fit(log, config=config, epochs=6, validation_fraction=0, progress=False)

    observations = log.observations.astype(np.float64)
    changes = log.next_observations - observations
    if normalize:
        observations = (observations - observations.mean(0)) / observations.std(0, ddof=1)
        changes = (changes - changes.mean(0)) / changes.std(0, ddof=1)
    states, targets = (torch.tensor(array.T, dtype=torch.float32) for array in (observations, changes))
    agents, actions = torch.tensor(log.agents.astype(int)), torch.tensor(log.actions)
    leaves = {name: torch.tensor(array).requires_grad_() for name, array in start.parameters.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=1e-2, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for _ in range(6):
        optimizer.zero_grad()
        squared = [paper_loss(leaves, member, states, agents, actions, targets) for member in range(2)]
        sum(paper_loss(leaves, member, states, agents, actions, targets, threshold) for member in range(2)).backward()
        optimizer.step()
        schedule.step()
    for name, leaf in leaves.items():
        np.testing.assert_allclose(trained.parameters[name], leaf.detach(), atol=1e-4, err_msg=name)
        assert np.abs(trained.parameters[name] - start.parameters[name]).max() > 1e-2
    assert trained.provenance["training_loss"] == pytest.approx(float(sum(squared).detach() / 2), rel=1e-3)


def test_initial_weights_are_torchs(log):
    """Uniform within ±1/√fan-in, the agent table's fan-in being the number of agents; members differ."""
    config = PerSimConfig(rank=20, state_hidden=(128,), num_members=3, learning_rate=1e-30, halve_learning_rate_every=0)
    start = fit(log, config=config, epochs=1, validation_fraction=0, progress=False)
    for name, fan_in in (("agent.weight", 5), ("action.weight", 2), ("state.0.weight", 4), ("state.1.weight", 128)):
        weights, bound = start.parameters[name], fan_in**-0.5
        assert np.abs(weights).max() <= bound
        assert weights.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert not np.array_equal(weights[0], weights[1])


def test_every_member_sees_every_row_once_an_epoch_in_an_order_of_its_own(log, monkeypatch):
    """And in another one in the next epoch; the last batch is a short one."""
    monkeypatch.setattr(jit, "available", lambda: False)
    plain, seen = trainer.loss_and_gradients, []

    def recorded(parameters, gradients, states, *batch, **settings):
        seen.append(states.clone())
        return plain(parameters, gradients, states, *batch, **settings)

    monkeypatch.setattr(trainer, "loss_and_gradients", recorded)
    fit(log, config=TINY.with_changes(epochs=2, batch_size=40), validation_fraction=0, progress=False)
    orders = [rows for epoch in np.split(torch.cat(seen, dim=2).numpy(), 2, axis=2) for rows in epoch.swapaxes(1, 2)]
    assert all(sorted(map(tuple, rows)) == sorted(map(tuple, log.observations)) for rows in orders)
    assert len({rows.tobytes() for rows in orders}) == 2 * 2


@pytest.mark.usefixtures("global_generators_untouched")
def test_same_seed_same_ensemble(log):
    """And another seed, other bits; no global generator is touched, nor the number of threads."""
    first, second, third = (fit(log, config=TINY, seed=seed, progress=False) for seed in (3, 3, 4))
    assert same_bits(first, second) and not same_bits(first, third)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("normalize", [True, False])
def test_how_far_members_disagree_on_the_log(normalize):
    """At most 1 % of its rows exceed it in any coordinate, by the agents' simulators, and about that many do."""
    log = persim_gym.collect("CartPole", num_agents=60, seed=1)
    model = fit(log, config=TINY.with_changes(normalize=normalize), epochs=2, refit=False, progress=False)
    limits = np.array(model.provenance["familiar_disagreement"])
    disagreement = model.simulator(agents=log.agents.tolist()).step(log.observations, log.actions).disagreement
    beyond = disagreement > limits
    assert limits.shape == (4,) and 0.002 < beyond.any(axis=1).mean() <= 0.01
    assert (beyond.mean(axis=0) <= 0.0025).all() and beyond.any(axis=0).all()


def test_provenance(log):
    """What it was trained on, with which seed and versions, and how well."""
    provenance = fit(log, config=TINY, seed=3, progress=False).provenance
    assert provenance["data_digest"] == log.digest
    assert provenance["data"] == {"policy": "random", "seed": 0}
    assert (provenance["seed"], provenance["num_transitions"]) == (3, log.num_transitions)
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["training_loss"] > 0 and provenance["validation_rmse"] > 0 and provenance["wall_seconds"] >= 0


@pytest.mark.parametrize("unit", [1e6, 1e-23])
def test_the_validation_error_does_not_depend_on_units(log, unit):
    """A coordinate in units a million times as small makes an RMSE a million times as large, and the error the same.

    Where they are so large that float32 has no squares of the numbers, the errors are the same, too.
    """
    config = PerSimConfig(rank=2, state_hidden=(8,), num_members=2, epochs=5, batch_size=64)
    units = np.array([1e6, 1, 1, 1] if unit > 1 else [unit] * 4, np.float32)
    small = dataclasses.replace(
        log, task=None, observations=log.observations * units, next_observations=log.next_observations * units,
        covariates=None, covariate_names=(), rewards=0 * log.rewards, terminated=log.terminated & False,
    )  # fmt: skip
    same = persim_gym.Task(
        name="Scaled", observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (4,)),
        action_space=gymnasium.spaces.Discrete(2), max_episode_steps=200,
        reward=lambda observations, actions, next_observations: next_observations[..., 0] * 0,
        terminated=lambda next_observations: next_observations[..., 0] > 1e9,
    )  # fmt: skip
    ours, scaled = (
        fit(one, task=task, config=config, refit=False, progress=False) for one, task in ((log, None), (small, same))
    )
    assert scaled.provenance["validation_rmse"] > (1e4 if unit > 1 else 0) * ours.provenance["validation_rmse"]
    for name in ("validation_error", "validation_loss"):  # by the loss ranks are selected
        assert scaled.provenance[name] == pytest.approx(ours.provenance[name], rel=0.01)
    assert f"validation error {scaled.provenance['validation_error']:.2g}" in repr(scaled)
    old = dataclasses.replace(scaled, provenance={"validation_rmse": 0.7210364})
    assert "validation error 0.72 (RMSE)" in repr(old)


def walk_log(num_agents=6, rows=80):
    """The walk of agents of different speed, from random places, under random actions."""
    rng = np.random.default_rng(0)
    speeds = np.linspace(0.5, 2, num_agents)[:, None]
    agents = np.repeat(np.arange(num_agents), rows)
    states = rng.uniform(-1, 1, (len(agents), 2))
    actions = rng.integers(3, size=len(agents))
    after = walk_dynamics(states, actions, speeds[agents])
    return speeds, Trajectories.from_arrays(
        agents=agents, observations=states, actions=actions, next_observations=after,
        agent_labels=[f"walker {n}" for n in range(num_agents)],
    )  # fmt: skip


def test_finds_a_system_of_its_own_form():
    """Change = speed of the agent × direction of the action: every agent's speed comes out, at states never seen."""
    speeds, log = walk_log()
    config = PerSimConfig(rank=2, state_hidden=(16,), num_members=3, batch_size=32, learning_rate=5e-3, normalize=False)
    ensemble = fit(log, task=walk_task(limit=80), config=config, epochs=80, validation_fraction=0.2, progress=False)
    states = np.random.default_rng(9).uniform(-1, 1, (30, 2))
    for agent, (speed,) in enumerate(speeds):
        for action in (0, 1, 2):
            predicted = ensemble.simulator(agent).step(states, np.full(30, action)).next_observations
            np.testing.assert_allclose(predicted - states, np.tile([speed * (action - 1), 0], (30, 1)), atol=0.1)
    assert ensemble.provenance["validation_rmse"] < 0.05
    assert ensemble.provenance["validation_error"] < 0.05  # the second coordinate, which never changes, is left out
    assert ensemble.provenance["training_loss"] < 0.01


def test_validation_error_is_that_of_new_data(cart_pole, cart_pole_log):
    """The held-out error is about that on another log of the same agents, measured through their simulators."""
    fresh = persim_gym.collect("CartPole", covariates=cart_pole_log.covariates, seed=77)
    squared = [
        np.square(
            cart_pole.simulator(agent).step(fresh.observations[rows], fresh.actions[rows]).next_observations
            - fresh.next_observations[rows]
        )
        for agent in range(fresh.num_agents)
        for rows in [fresh.agents == agent]
    ]
    measured = np.sqrt(np.concatenate(squared).mean())
    assert 0.4 < cart_pole.provenance["validation_rmse"] / measured < 2.5
    variances = (fresh.next_observations - fresh.observations).var(axis=0)
    relative = np.sqrt((np.concatenate(squared).mean(axis=0) / variances).mean())
    assert 0.4 < cart_pole.provenance["validation_error"] / relative < 2.5
    no_change = np.sqrt(np.square(fresh.next_observations - fresh.observations).mean())
    assert measured < 0.5 * no_change


def test_without_refit_the_validated_ensemble_is_returned(log):
    """It has not seen the held-out rows, so it differs from the refitted one, and reports no training loss."""
    validated = fit(log, config=TINY, refit=False, progress=False)
    refitted = fit(log, config=TINY, progress=False)
    assert validated.provenance["validation_rmse"] == refitted.provenance["validation_rmse"]
    assert not same_bits(validated, refitted)
    assert same_bits(refitted, fit(log, config=TINY, validation_fraction=0, progress=False))


@pytest.mark.parametrize("learner", [fit, fit_joint])
def test_settings_are_changed_by_name(log, learner):
    """It is the configuration with these changes that is trained."""
    settings = {"seed": 1, "device": "cpu", "progress": False}
    changes = {"rank": 4, "epochs": 2, "learning_rate": 3e-3, "halve_learning_rate_every": 1}
    changed, expected = (
        learner(log, config=TINY, **changes, **settings),
        learner(log, config=TINY.with_changes(**changes), **settings),
    )
    assert changed.config == expected.config == TINY.with_changes(**changes) and same_bits(changed, expected)
    small = {**changes, "state_hidden": (8,), "num_candidates": 0, "num_members": 1, "refit_rounds": 0}
    assert learner(log, **small, **settings).config == CONFIGS["CartPole+"].with_changes(**small)


@pytest.mark.parametrize("changes", [{}, {"num_candidates": 6, "refit_factors": True, "refit_rounds": 1}])
def test_what_is_held_out_is_not_learned_from(log, changes):
    """Not by the weights, the choice of members, the factors or the refitted layer; the seed says which rows it is."""
    config = TINY.with_changes(**changes)

    def validated(log, seed=0):
        return fit(log, config=config, refit=False, seed=seed, progress=False)

    kept, held_out = split(log.num_transitions, 0.2, 0)
    after = log.next_observations.copy()
    after[held_out, 1] += np.random.default_rng(0).normal(scale=100, size=len(held_out))
    ensemble, other = validated(log), validated(dataclasses.replace(log, next_observations=after))
    assert same_bits(ensemble, other)
    for name, array in ensemble.posterior.to_arrays().items():
        np.testing.assert_array_equal(other.posterior.to_arrays()[name], array, err_msg=name)
    assert other.provenance["validation_rmse"] > 10 * ensemble.provenance["validation_rmse"]
    counts = ensemble.posterior.num_transitions
    np.testing.assert_array_equal(counts, np.bincount(log.agents[kept]))
    assert counts.tolist() != validated(log, seed=1).posterior.num_transitions.tolist()


@pytest.mark.filterwarnings("ignore:rank=30 is more than the 5 agents")
def test_rank_auto_takes_the_lowest_validation_error(log):
    """Among the paper's six."""
    ensemble = fit(log, config=TINY, rank="auto", progress=False)
    losses = {int(rank): loss for rank, loss in ensemble.provenance["validation_loss_by_rank"].items()}
    assert tuple(losses) == RANKS == (3, 5, 10, 15, 20, 30)
    assert ensemble.config.rank == min(losses, key=losses.get)
    assert ensemble.parameters["agent.weight"].shape[2] == ensemble.config.rank
    for rank in (3, 30):
        alone = fit(log, config=TINY, rank=rank, refit=False, progress=False)
        assert alone.provenance["validation_loss"] == losses[rank]


@pytest.mark.parametrize("interrupted_after", [3, 9])
def test_interrupted_fit_resumes_to_the_same_bits(log, tmp_path, monkeypatch, interrupted_after):
    """Interrupted while validating or while refitting; the same call goes on, and cleans up when done."""
    monkeypatch.setattr(jit, "available", lambda: False)
    config = TINY.with_changes(batch_size=40)  # 3 batches an epoch in validation, 3 or 4 after it
    whole = fit(log, config=config, seed=1, progress=False)
    batches, loss_and_gradients = iter(range(10**6)), trainer.loss_and_gradients

    def interrupting(*arguments, **settings):
        if next(batches) == 2 * interrupted_after:
            raise KeyboardInterrupt
        return loss_and_gradients(*arguments, **settings)

    def watch(perf_counter):
        for module in ("fit", "checkpoint"):
            monkeypatch.setattr(f"persim_gym.training.{module}.time", SimpleNamespace(perf_counter=perf_counter))

    watch(itertools.count(step=10).__next__)
    keep_often(monkeypatch)
    monkeypatch.setattr(trainer, "loss_and_gradients", interrupting)
    checkpoint = tmp_path / "cartpole.persim"
    with pytest.raises(KeyboardInterrupt):
        fit(log, config=config, seed=1, checkpoint=checkpoint, progress=False)
    kept = list(tmp_path.iterdir())
    assert kept and not checkpoint.exists()
    spent = sum(storage.read_document(file, "checkpoint")["seconds"] for file in kept)
    watch(lambda: 5.0)  # no time passes from here on
    resumed = fit(log, config=config, seed=1, checkpoint=checkpoint, progress=False)
    assert resumed.provenance["wall_seconds"] == spent > 0
    assert next(batches) < 2 * interrupted_after + 2 + 8 * 4  # nothing done twice but the interrupted epoch
    assert same_bits(resumed, whole)
    assert resumed.provenance["validation_loss"] == whole.provenance["validation_loss"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "changes"),
    [
        ("seed", {"seed": 2}),
        ("num_rows", {"validation_fraction": 0.5}),  # those held out must stay held out
        ("config", {"config": TINY.with_changes(learning_rate=0.5)}),
        ("data_digest", {"rewards": 7.0}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(log, tmp_path, monkeypatch, difference, changes):
    """The message names the file and the difference."""
    keep_checkpoints(monkeypatch)
    settings = {"config": TINY, "seed": 1, "checkpoint": tmp_path / "run", "progress": False}
    fit(log, **settings)
    if "rewards" in changes:
        log, changes = dataclasses.replace(log, rewards=log.rewards + np.float32(changes["rewards"])), {}
    with pytest.raises(errors.FileFormatError, match=rf"run\.rank3.*\(different {difference}\)"):
        fit(log, **{**settings, **changes})


def test_a_checkpoint_of_other_spaces_is_refused(tmp_path, monkeypatch):
    """Policies are learned from actions scaled by the space, whatever its task is called."""
    keep_checkpoints(monkeypatch)
    wide, narrow = (
        dataclasses.replace(walk_task(limit=80), action_space=spaces.Box(-bound, bound, (1,), np.float32))
        for bound in (5, 1)
    )
    pushes = dataclasses.replace(walk_log()[1], actions=np.linspace(-1, 1, 480, dtype=np.float32)[:, None])
    fit(pushes, task=narrow, config=TINY, checkpoint=tmp_path / "run", progress=False)
    with pytest.raises(errors.FileFormatError, match=r"different action_space"):
        fit(pushes, task=wide, config=TINY, checkpoint=tmp_path / "run", progress=False)


def test_a_stage_that_was_finished_is_not_run_again(log, tmp_path, monkeypatch):
    """What may follow it takes long, so it is kept after its last epoch; the loss is told as if it had run."""
    keep_checkpoints(monkeypatch)
    settings = {"config": TINY, "checkpoint": tmp_path / "run", "progress": False}
    whole = fit(log, **settings)
    monkeypatch.setattr(trainer.Trainer, "run_epoch", lambda *_: pytest.fail("trained again"))
    resumed = fit(log, **settings)
    assert same_bits(resumed, whole)
    assert resumed.provenance["training_loss"] == whole.provenance["training_loss"]


def test_a_mapped_log_trains_like_one_in_memory(log, tmp_path):
    """Columns that are read-only maps of a file."""
    log.save(tmp_path / "log")
    mapped = Trajectories.load(tmp_path / "log")
    assert same_bits(fit(mapped, config=TINY, progress=False), fit(log, config=TINY, progress=False))


def test_one_step_errors(cart_pole, cart_pole_log):
    """Every member's and the mean prediction's, against the simulators."""
    found = one_step_errors(cart_pole, cart_pole_log)
    expected = np.zeros_like(found)
    for agent in range(cart_pole_log.num_agents):
        rows = cart_pole_log.agents == agent
        members = cart_pole.simulator(agent).step_members(cart_pole_log.observations[rows], cart_pole_log.actions[rows])
        predictions = np.concatenate([members, members.mean(0, keepdims=True)]).astype(np.float64)
        expected += np.square(predictions - cart_pole_log.next_observations[rows]).sum(1)
    np.testing.assert_allclose(found, expected / len(cart_pole_log), rtol=1e-3)


def test_progress_goes_to_the_error_stream(log, capsys):
    """A bar with the loss where asked for, else silence."""
    fit(log, config=TINY, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(log, config=TINY, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "CartPole" in err and "loss" in err


def test_named_settings_are_the_papers():
    """Section 3.1 of the specification, the column of the released code."""
    cart_pole, mountain_car, half_cheetah = (CONFIGS[name] for name in ("CartPole", "MountainCar", "HalfCheetah"))
    assert (mountain_car.rank, mountain_car.state_hidden, mountain_car.batch_size) == (3, (256,), 512)
    assert (cart_pole.rank, cart_pole.state_hidden, cart_pole.batch_size) == (5, (256,), 64)
    assert (half_cheetah.rank, half_cheetah.state_hidden, half_cheetah.batch_size) == (15, (512,) * 4, 1024)
    assert half_cheetah.action_hidden == (512, 512) and half_cheetah.halve_learning_rate_every == 150
    assert [config.normalize for config in (mountain_car, cart_pole, half_cheetah)] == [False, False, True]
    for config in (mountain_car, cart_pole, half_cheetah):
        assert (config.epochs, config.learning_rate, config.num_members, config.weight_decay) == (300, 1e-3, 5, 0.0)
        assert PerSimConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_task_is_trained_with_our_settings_where_there_are_some():
    """A task of one's own with those for any; the paper's are named."""
    assert get_config(None, "CartPole") is CONFIGS["CartPole+"] and get_config(None, "Insulin") is CONFIGS["default"]
    assert get_config("CartPole", "CartPole") is CONFIGS["CartPole"] and get_config(TINY, "CartPole") is TINY


def test_batches_grow_with_the_log_where_an_epochs_steps_are_limited():
    config = SMALL.with_changes(batch_size=64, max_steps_per_epoch=200)
    assert [config.batch_size_for(rows) for rows in (100, 12_800, 12_801, 90_000)] == [64, 64, 65, 450]
    assert SMALL.batch_size_for(90_000) == SMALL.batch_size
    with pytest.raises(
        errors.InvalidArgumentError, match="max_steps_per_epoch=-1 must be a whole number of at least 0"
    ):
        SMALL.with_changes(max_steps_per_epoch=-1)


def test_the_limit_on_an_epochs_steps_is_the_batch_size_it_means(cart_pole_log):
    """The same bits as with that batch size given; fewer steps than without the limit."""
    config, batch_size = SMALL.with_changes(batch_size=8, epochs=2), -(-cart_pole_log.num_transitions // 4)

    def trained(**changes):
        return fit(cart_pole_log, config=config.with_changes(**changes), validation_fraction=0, progress=False)

    limited, given, small = trained(max_steps_per_epoch=4), trained(batch_size=batch_size), trained()
    for name, array in given.parameters.items():
        np.testing.assert_array_equal(limited.parameters[name], array)
    assert not np.array_equal(limited.parameters["agent.weight"], small.parameters["agent.weight"])


def test_batches_fetched_together_are_the_same_batches(cart_pole_log, monkeypatch):
    """One by one or sixteen at a time, the last one cut short: the same bits."""
    monkeypatch.setattr(jit, "available", lambda: False)
    config = SMALL.with_changes(batch_size=7, epochs=2, linear_skip=True)

    def trained():
        return fit(cart_pole_log, config=config, validation_fraction=0, progress=False)

    together = trained()
    monkeypatch.setattr(trainer, "_GATHERED_AT_ONCE", 1)
    assert cart_pole_log.num_transitions % 7 and same_bits(together, trained())


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_large_networks_are_trained_at_the_precision_asked_for(log, monkeypatch, precision):
    """Whatever the process's own setting is; that is as it was when training ends."""
    plain, seen = trainer.loss_and_gradients, set()

    def recorded(*arguments, **settings):
        seen.add(torch.get_float32_matmul_precision())
        return plain(*arguments, **settings)

    monkeypatch.setattr(trainer, "loss_and_gradients", recorded)
    config = TINY.with_changes(state_hidden=(8, 8), matmul_precision=precision)
    with devices.matmul_precision("high"):
        fit(log, config=config, validation_fraction=0.0, progress=False)
        assert torch.get_float32_matmul_precision() == "high"
    assert seen == {precision}


def test_an_unknown_precision_is_refused():
    with pytest.raises(
        errors.InvalidArgumentError, match="matmul_precision='bf16' must be one of highest, high, medium"
    ):
        PerSimConfig(matmul_precision="bf16")


def pushed(scale, static=1.0, rest=0.0):
    """A log and its task: x' = 0.8·x + gain·a/2 for pushes a from −1 to 1, written as rest + scale·a, of 20 agents.

    A second coordinate is the agent's gain, in units of ``static``, and stays as it is.
    """
    rng = np.random.default_rng(0)
    gains = np.repeat(1 + 0.3 * rng.normal(size=20), 40)
    pushes, starts = rng.uniform(-1, 1, 800), rng.normal(size=800)
    before, after = (
        np.stack([x, static * gains], axis=1) for x in (starts, 0.8 * starts + gains * pushes / 2)
    )  # fmt: skip
    task = Task(
        name="Push",
        observation_space=spaces.Box(-np.inf, np.inf, (2,)),
        action_space=spaces.Box(rest - scale, rest + scale, (1,)),
        max_episode_steps=40,
        terminated=lambda states: states[..., 0] > 1e9,
    )
    log = Trajectories.from_arrays(
        agents=np.repeat(np.arange(20), 40), observations=before, actions=rest + scale * pushes[:, None],
        next_observations=after, rewards=2 * pushes, task="Push",
    )  # fmt: skip
    return log, task, gains


@pytest.mark.parametrize(("scale", "rest"), [(1e-3, 0.0), (1e5, 0.0), (2.0, 6.0)])
@pytest.mark.parametrize("method", [fit, fit_joint])
def test_the_units_of_actions_do_not_matter(scale, rest, method):
    """Nor where their zero is: dynamics and a learned reward answer as they do to actions from −1 to 1."""
    config = TINY.with_changes(normalize=True, action_hidden=(8,), epochs=10, learning_rate=1e-2)
    answers = []
    for unit, zero in ((1.0, 0.0), (scale, rest)):
        log, task, _ = pushed(unit, rest=zero)
        if method is fit_joint:
            task = dataclasses.replace(task, reward=lambda before, actions, after: after[..., 0])
        simulator = method(log, task=task, config=config, progress=False).simulator(3)
        states, moves = np.zeros((5, 2)), zero + unit * np.linspace(-1, 1, 5)[:, None]
        after = simulator.step(states, moves).next_observations
        answers.append(np.column_stack([after, simulator.task.reward(states, moves, after)]))
    assert np.ptp(answers[0], axis=0).max() > 0.05
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)


@pytest.mark.parametrize("static", [1.0, 1e-3])
def test_what_never_changes_stays_as_it_is(static):
    """However small its units are, a free run leaves it where it was, and is not thrown off by it."""
    log, task, gains = pushed(1.0, static)
    ensemble = fit(log, task=task, config=TINY.with_changes(normalize=True, epochs=10), progress=False)
    start = np.array([[0.5, static * gains[0]]])
    paths = ensemble.simulator(0).rollout(start, np.zeros((1, 100, 1)))
    np.testing.assert_allclose(paths[..., 1], static * gains[0], rtol=1e-4)
    assert np.abs(paths[..., 0]).max() < 3
    assert np.isfinite([ensemble.provenance["validation_loss"], ensemble.provenance["validation_rmse"]]).all()


def test_rounding_of_a_constant_is_no_input_of_a_reward():
    """Float32 rounding of a column that stays as it is says nothing of rewards, whatever they are learned from."""
    log, task, _ = pushed(1.0, static=60.0)
    jitter = 1 + 4e-8 * np.random.default_rng(1).normal(size=(2, 800))
    noisy = [np.array(states) for states in (log.observations, log.next_observations)]
    for states, one in zip(noisy, jitter, strict=True):
        states[:, 1] *= one
    log = dataclasses.replace(log, observations=noisy[0], next_observations=noisy[1])
    ensemble = fit(log, task=task, config=TINY.with_changes(normalize=True), progress=False)
    assert ensemble.outcomes["reward"].scaling.input_scale[3] == 1.0


def test_a_log_from_a_file_is_trained_on_without_a_warning(tmp_path, run_python):
    """Its columns are read-only; torch warns of such an array once in a process."""
    persim_gym.collect("CartPole", num_agents=3, seed=0).save(tmp_path / "log")
    run_python(
        f"import persim_gym; log = persim_gym.Trajectories.load({str(tmp_path / 'log')!r})\n"
        "small = {'epochs': 1, 'num_members': 2, 'num_candidates': 0, 'refit_rounds': 0, 'state_hidden': (4, 4)}\n"
        "persim_gym.fit(log, normalize=True, rank=2, validation_fraction=0, progress=False, **small)"
    )


def interrupted(log, path, monkeypatch, **settings):
    """Leave a checkpoint beside a path, and return its file."""
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(log, config=TINY, validation_fraction=0, checkpoint=path, progress=False, **settings)
    return next(path.parent.glob("*.part"))


def spoil_a_bit(raw):
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]


@pytest.mark.parametrize(
    "spoil",
    [spoil_a_bit, lambda raw: raw[:-100], lambda raw: raw.replace(b"seconds", b"sekonds"), lambda raw: b"nothing"],
)
def test_no_training_goes_on_from_a_damaged_checkpoint(log, tmp_path, monkeypatch, spoil):
    """However little of it is damaged; what to do is said."""
    file = interrupted(log, tmp_path / "model.persim", monkeypatch)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(errors.FileFormatError, match="training cannot go on from .* delete it, and it begins again"):
        fit(log, config=TINY, validation_fraction=0, checkpoint=tmp_path / "model.persim", progress=False)


def test_two_trainings_of_one_checkpoint_name(log, tmp_path):
    """The one that writes second goes on without, says so, and leaves the first one's file where it is."""
    run = SimpleNamespace(state=lambda: {"w": torch.ones(3)}, progress=lambda: {"epoch": 1}, resume=pytest.fail)
    settings = {"device": torch.device("cpu"), "config": {}}
    first, second = (
        Checkpoint.of(tmp_path / "model", log, get_task("CartPole"), seed=seed, **settings) for seed in (1, 2)
    )
    for checkpoint in (first, second):
        checkpoint.resume(run)  # neither finds anything
    first.write(run)
    with pytest.warns(RuntimeWarning, match="without a checkpoint: .* is that of another training run, which began"):
        second.write(run)
    second.remove()
    assert storage.read_document(first.path, "checkpoint")["seed"] == 1
    first.remove()
    assert list(tmp_path.iterdir()) == []
