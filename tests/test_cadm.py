"""CaDM and PE-TS CaDM: contexts, losses, and that all that takes PerSim's simulators takes theirs."""

import dataclasses
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from support import interrupt_after, walk_task

import persim_gym
from persim_gym import storage
from persim_gym.baselines import cadm_training
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_config import CaDMConfig, get_cadm_config
from persim_gym.baselines.cadm_log import StandardizedLog
from persim_gym.baselines.cadm_training import (
    CaDMTrainer,
    epochs_per_iteration,
    fit_cadm,
    losses,
    replayed_parts,
    weight_decay,
)
from persim_gym.baselines.context_network import ContextNetwork
from persim_gym.baselines.layers import Features
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.errors import (
    FileFormatError,
    InvalidActionError,
    InvalidArgumentError,
    InvalidDataError,
    InvalidStateError,
    MissingStatisticsError,
    UnknownNameError,
)
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.rollouts import simulated_returns
from persim_gym.tasks import PlanningObjective, get_task
from persim_gym.terminal import ProgressBar

TINY = {"hidden": (16, 16), "encoder_hidden": (16, 8), "iterations": 2, "max_epochs": 2, "futures_per_context": 3}
METHODS = ("Vanilla CaDM", "PE-TS CaDM")


@pytest.fixture(scope="module", params=METHODS)
def model(request, cart_pole_log):
    return fit_cadm(cart_pole_log, config=request.param, device="cpu", progress=False, **TINY)


@pytest.fixture(scope="module")
def cheetah_log():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(60, 18))
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat(np.arange(3), 20),
        observations=observations,
        actions=rng.uniform(-1, 1, (60, 6)),
        next_observations=observations + 0.1 * rng.normal(size=(60, 18)),
        task="HalfCheetah",
    )


def trainer_of(log, method="PE-TS CaDM", **changes):
    config = get_cadm_config(method, log.task).with_changes(**{**TINY, **changes})
    return CaDMTrainer(log, get_task(log.task), config, 0, torch.device("cpu")), config


def standardized(log, config):
    """Over all of its rows."""
    return StandardizedLog.of(log, get_task(log.task), config, torch.arange(log.num_transitions), torch.device("cpu"))


@pytest.mark.parametrize("config", ["Vanilla CaDM", "Vanilla CaDM+"])
@pytest.mark.parametrize("log", ["cart_pole_log", "cheetah_log"])
def test_histories_are_the_last_transitions_oldest_first(log, config, request):
    """Gathered from the log or followed step by step, they are the same; before the first transition they are zero.

    Continuous actions are standardized in both; a model keeps each agent's history up to the end of its log.
    """
    log = request.getfixturevalue(log)
    model = fit_cadm(log, config=config, device="cpu", progress=False, **{**TINY, "max_epochs": 1})
    data = standardized(log, model.config)
    start, end = log.episode_starts[2], log.episode_ends[2]
    history = model.new_histories(1)
    for row in range(start, end):
        gathered = data.histories(torch.tensor([[row]]))[0, :, 0].numpy()
        np.testing.assert_allclose(gathered, history.values[0], atol=1e-6)
        history = history.after(
            log.observations[row : row + 1], log.actions[row : row + 1], log.next_observations[row : row + 1]
        )
    np.testing.assert_allclose(model.histories[2], history.values[0], atol=1e-6)
    first = data.histories(torch.tensor([[start]]))
    assert not first.any() and end - start > 11
    assert not history.restarted(np.array([True])).values.any()


def test_changes_of_state_reach_the_encoder_in_units_of_their_deviation(cart_pole_log, tmp_path):
    """With the "+" settings, and after saving; as in the authors' code, without them, they are raw."""
    changes = cart_pole_log.next_observations - cart_pole_log.observations
    before, moves, after = (
        column[5:6] for column in (cart_pole_log.observations, cart_pole_log.actions, cart_pole_log.next_observations)
    )
    for config, expected in (("Vanilla CaDM", after - before), ("Vanilla CaDM+", (after - before) / changes.std(0))):
        fit_cadm(cart_pole_log, config=config, device="cpu", progress=False, **TINY).save(tmp_path / "model.cadm")
        history = CaDM.load(tmp_path / "model.cadm").new_histories(1).after(before, moves, after)
        np.testing.assert_allclose(history.values[0, :4], expected[0], rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_hidden_units_in_bfloat16_change_losses_and_gradients_little(cart_pole_log, method):
    """Inputs and outputs are exact: the first and the last layer are not rounded."""
    trainer, config = trainer_of(cart_pole_log, method, hidden=(64, 64, 64), encoder_hidden=(32, 32))
    rows = torch.arange(64).expand(config.num_members, -1)
    batch, weights = standardized(cart_pole_log, config).batch(rows, torch.arange(3)), list(trainer.parameters.values())
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        loss = losses(trainer.parameters, config, batch, dtype)
        gradients = torch.autograd.grad(loss.sum(), weights, allow_unused=True)
        assert loss.dtype is torch.float32 and all(one.dtype is torch.float32 for one in gradients if one is not None)
        found[dtype] = loss, torch.cat([one.flatten() for one in gradients if one is not None])
    (exact, gradient), (rounded, rounded_gradient) = found.values()
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0.0)
    assert torch.nn.functional.cosine_similarity(gradient, rounded_gradient, dim=0) > 0.999


def test_medium_precision_trains_with_bfloat16_hidden_units(cart_pole_log, monkeypatch):
    """Where the processor has such products; weights stay float32."""
    seen = set()

    def recorded(*arguments):
        seen.add(arguments[-1])
        return losses(*arguments)

    monkeypatch.setattr(cadm_training, "losses", recorded)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    for precision, dtype in (("medium", torch.bfloat16), ("highest", torch.float32)):
        seen.clear()
        model = fit_cadm(
            cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, matmul_precision=precision, **TINY
        )
        assert seen == {dtype}
        assert {array.dtype for array in model.parameters.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_are_those_of_the_paper(cart_pole_log, method):
    """Against a plain loop over members, contexts and future transitions."""
    trainer, config = trainer_of(cart_pole_log, method)
    data = standardized(cart_pole_log, config)
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.integers(cart_pole_log.num_transitions, size=(config.num_members, 4)))
    offsets = torch.arange(config.future_steps)
    found = losses(trainer.parameters, config, data.batch(rows, offsets)).detach()

    parameters = {name: tensor.detach().double() for name, tensor in trainer.parameters.items()}
    ends = np.repeat(cart_pole_log.episode_ends, cart_pole_log.episode_lengths)
    columns = expected_columns(cart_pole_log)

    def network(name, member, inputs, activation):
        depth = sum(key.startswith(name) and key.endswith("weight") for key in parameters)
        for index in range(depth):
            inputs = parameters[f"{name}.{index}.weight"][member] @ inputs
            inputs = inputs + parameters[f"{name}.{index}.bias"][member, :, 0]
            inputs = activation(inputs) if index < depth - 1 else inputs
        return inputs

    for member in range(config.num_members):
        terms = []
        for row in rows[member].tolist():
            history = data.histories(torch.tensor([[row]]))[0, :, 0].double()
            context = network("encoder", member, history, torch.relu)
            for future in range(row, min(row + config.future_steps, ends[row])):
                state, next_state, action, target, backward_target = columns[future].split((4, 4, 2, 4, 4))
                silu = torch.nn.functional.silu
                output = network("forward", member, torch.cat([state, action, context]), silu)
                backward = network("backward", member, torch.cat([next_state, action, context]), silu)
                if config.probabilistic:
                    mean, log_variance = output.chunk(2)
                    low, high = parameters["min_log_variance"][0, :, 0], parameters["max_log_variance"][0, :, 0]
                    log_variance = high - torch.log1p(torch.exp(high - log_variance))
                    log_variance = low + torch.log1p(torch.exp(log_variance - low))
                    forward = (mean - target) ** 2 / log_variance.exp() + log_variance
                else:
                    forward = (output - target) ** 2
                terms.append(forward.mean() + 0.5 * ((backward - backward_target) ** 2).mean())
        expected = torch.stack(terms).mean()
        if config.probabilistic:
            bounds = 0.01 * (parameters["max_log_variance"] - parameters["min_log_variance"]).sum()
            expected = expected + bounds / config.num_members
        assert float(found[member]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("network", ["forward", "backward"])
def test_the_context_learns_from_both_models(cart_pole_log, network):
    """The gradient of either model's loss reaches the encoder."""
    trainer, config = trainer_of(cart_pole_log)
    if network == "forward":
        config = config.with_changes(backward_weight=0.0)
    rows = torch.arange(config.num_members * 8).reshape(config.num_members, 8) + 20
    for name, tensor in trainer.parameters.items():
        tensor.requires_grad_(name.startswith("encoder"))
    batch = standardized(cart_pole_log, config).batch(rows, torch.arange(3))
    loss = losses(trainer.parameters, config, batch)
    if network == "backward":  # what is left when the forward model's part is taken away
        loss = loss - losses(trainer.parameters, config.with_changes(backward_weight=0.0), batch)
    loss.sum().backward()
    for index in range(3):
        assert (trainer.parameters[f"encoder.{index}.weight"].grad.abs().amax(dim=(1, 2)) > 0).all()


def test_who_is_simulated_changes_the_prediction(model, cart_pole_log):
    """Each agent's context is its own: exchanging agents exchanges contexts, and what is predicted with them."""
    states, actions = cart_pole_log.observations[:2], np.array([0, 1])
    contexts = [model.agent_contexts(np.array(pair), torch.device("cpu")) for pair in ([0, 1], [1, 0])]
    assert torch.allclose(contexts[0], contexts[1].flip(2)) and not torch.allclose(*contexts)
    one, other = (
        model.simulator(agents=pair).deterministic().step(states, actions).next_observations
        for pair in ([0, 1], [1, 0])
    )
    assert np.abs(one - other).max() > 1e-6
    alone = model.simulator(1).deterministic().step(states[:1], actions[:1]).next_observations
    np.testing.assert_allclose(alone[0], other[0], atol=1e-6)


def test_a_member_gets_the_context_of_its_own_encoder(cart_pole_log):
    """Changing one member's encoder changes the predictions of its own particles, and of no other's."""
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    changed = {name: array.copy() for name, array in model.parameters.items()}
    changed["encoder.2.bias"][3] += 5.0
    other = CaDM(
        model.task, changed, model.agent_labels, model.initial_observations,
        config=model.config, histories=model.histories,
    )  # fmt: skip
    states, actions = cart_pole_log.observations[:1], np.array([1])
    difference = np.abs(
        model.simulator(0).step_members(states, actions) - other.simulator(0).step_members(states, actions)
    )
    assert difference.shape[0] == 20
    touched = np.flatnonzero(difference.max(axis=(1, 2)) > 1e-7)
    assert touched.tolist() == [12, 13, 14, 15]


def test_side_by_side_each_member_has_its_own_context_too(cart_pole_log):
    """Agents simulated together get, member by member, what each of them gets alone."""
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    agents, states, actions = [0, 5, 9], cart_pole_log.observations[:3], np.array([0, 1, 1])
    together = model.simulator(agents=agents).deterministic().step_members(states, actions)
    assert np.abs(together - np.roll(together, together.shape[0] // 5, axis=0)).max() > 1e-4  # the members differ
    for place, agent in enumerate(agents):
        row = slice(place, place + 1)
        alone = model.simulator(agent).deterministic().step_members(states[row], actions[row])
        np.testing.assert_allclose(together[:, row], alone, atol=1e-6)


def test_side_by_side_rollouts_are_of_each_members_own_context(cart_pole_log):
    """Of agents rolled out in one batch, as on a GPU, and of one agent alone."""
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    agents, starts = [0, 5, 9], cart_pole_log.observations[:3]
    candidates = np.random.default_rng(0).integers(2, size=(3, 7, 5))
    goal = PlanningObjective(lambda states, actions, reached: reached[..., 2], lambda reached: reached[..., 0] > 1e9)
    simulator = model.simulator(agents=agents).deterministic()
    together = simulated_returns(simulator, starts, objective=goal, together=True)(np.arange(3), candidates)
    for place, agent in enumerate(agents):
        row = slice(place, place + 1)
        alone = simulated_returns(model.simulator(agent).deterministic(), starts[row], objective=goal)
        np.testing.assert_allclose(together[row], alone(np.arange(1), candidates[row]), rtol=1e-4)


def test_particles_follow_their_member_and_differ(cart_pole_log):
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    simulator = model.simulator(0)
    states, actions = np.repeat(cart_pole_log.observations[:1], 4000, axis=0), np.zeros(4000, int)
    members = simulator.step_members(states, actions)
    assert members.shape == (20, 4000, 4) and simulator.stochastic
    means = members.mean(axis=1).reshape(5, 4, 4)
    noise = members.std(axis=1).max(axis=0) / np.sqrt(4000)
    assert np.abs(means - means[:, :1]).max() < 8 * noise.max()
    assert len(np.unique(members[:, 0, 0])) == 20
    again = model.simulator(0).step_members(states, actions)
    np.testing.assert_array_equal(members, again)


@pytest.mark.parametrize("stops, first", [([7], 0), ([5, 5, 9], 4), ([3, 4, 10, 11, 12, 20], 2), (range(2, 42, 2), 0)])
def test_particles_of_a_member_are_rows_of_one_product(model, stops, first):
    """Any number of each particle, of all of them or some, against one product a particle."""
    each, place = model.num_members // model.config.num_members, torch.device("cpu")
    if first + len(stops) > model.num_members:
        pytest.skip("fewer particles")
    parameters = {name: torch.tensor(array) for name, array in model.parameters.items()}
    contexts = model.agent_contexts(np.array([0]), place)
    rng = np.random.default_rng(0)
    states = parameters["input_mean"] + parameters["input_scale"] * torch.tensor(rng.normal(size=(4, stops[-1])))
    states, actions = states.float(), torch.tensor(rng.integers(2, size=stops[-1]))
    inputs = torch.cat([(states - parameters["input_mean"]) / parameters["input_scale"], torch.eye(2)[actions].T])
    expected = []
    for index, (left, right) in enumerate(itertools.pairwise([0, *stops])):
        member = (first + index) // each
        hidden = torch.cat([inputs[:, left:right], contexts[member].expand(-1, right - left)])
        for layer in range(3):
            weight, bias = (parameters[f"forward.{layer}.{kind}"][member] for kind in ("weight", "bias"))
            hidden = weight @ (torch.nn.functional.silu(hidden) if layer else hidden) + bias
        expected.append(hidden[:4])  # means; a variance after them is not drawn from
    expected = torch.cat(expected, dim=1)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network = ContextNetwork(model.dynamics(place), contexts.repeat_interleave(each, 0), None, dtype)
        changes = network.next_columns(states, actions, list(stops), first) - states
        found.append((changes - parameters["target_mean"]) / parameters["target_scale"])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected, rtol=0.05, atol=0.05)
    assert (found[0] - found[1]).abs().max() > 1e-4, "computed alike"


def test_columns_of_particles_go_where_their_states_go(model):
    """The network for rollouts that end early, and the one for states side by side; noise apart."""
    simulator = model.simulator(3)
    rng, count = np.random.default_rng(1), simulator.num_members
    states, actions = rng.normal(size=(2000, 4)).astype(np.float32), rng.integers(2, size=2000)
    by_columns = simulator.cpu_network(3).step(states[:40], actions[:40])
    by_states = simulator.network(3).next_states(
        torch.tensor(states[:40].T).expand(count, -1, -1), torch.tensor(actions[:40])
    )
    assert by_columns.shape == (count, 40, 4)
    if not simulator.stochastic:
        np.testing.assert_allclose(by_columns, by_states.transpose(1, 2), rtol=1e-5, atol=1e-6)
        return
    same = np.repeat(states[:1], 2000, axis=0), np.zeros(2000, int)
    columns = simulator.cpu_network(3).step(*same)
    plain = simulator.network(3).next_states(torch.tensor(same[0].T).expand(count, -1, -1), torch.tensor(same[1]))
    plain = plain.transpose(1, 2).numpy()
    error = np.hypot(columns.std(axis=1), plain.std(axis=1)) / np.sqrt(2000)
    assert (np.abs(columns.mean(axis=1) - plain.mean(axis=1)) < 5 * error).all()
    np.testing.assert_allclose(columns.std(axis=1), plain.std(axis=1), rtol=0.15)


def test_everything_takes_the_simulator(model, cart_pole_log):
    """Prediction error, planners, environments, and the agent whose context follows the episode."""
    dynamics: LearnedDynamics = model
    rows = persim_gym.prediction_error(dynamics, policy=lambda o: (o[:, 2] > 0) * 1, agents=[1, 3], episodes=3)
    assert [row.agent for row in rows] == ["1", "3"] and all(np.isfinite(row.rmse) for row in rows)
    planner = persim_gym.MPCAgent(model.simulator(2), horizon=4, num_candidates=8)
    assert planner.predict(cart_pole_log.observations[:3])[0].shape == (3,)

    env = PersonalizedEnv(model, agent="4")
    first = [env.reset(seed=1)[0], *(env.step(action)[0] for action in (0, 1, 1))]
    second = [env.reset(seed=1)[0], *(env.step(action)[0] for action in (0, 1, 1))]
    np.testing.assert_array_equal(first, second)
    assert env.step(0)[4]["disagreement"].shape == (4,)

    vector = PersonalizedVectorEnv(model, 3, agent=[0, 1, 2])
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    runs = [(vector.reset(seed=3)[0], vector.step(np.array([0, 1, 1]))[0]) for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])

    agent = CaDMAgent(model, horizon=4, num_candidates=8)
    covariates = {label: (10.0, 0.5) for label in ("0", "1")}
    (row, _) = persim_gym.policy_returns(model, agent, agents=["0", "1"], episodes=2, covariates=covariates)
    assert row.mean == row.length >= 5  # a pole takes some steps to fall, and each pays 1


def test_the_context_comes_from_the_beginning_of_the_episode(cart_pole_log):
    """`conditioned_on` and `CaDMAgent` see the same history; it stays fixed while the simulator steps."""
    model = fit_cadm(cart_pole_log, device="cpu", progress=False, **TINY)
    states, actions = cart_pole_log.observations[None, :10], cart_pole_log.actions[None, :9]
    bound = model.simulator(0).conditioned_on(states, actions)
    other = model.simulator(1).conditioned_on(states, actions)
    step = bound.step(states[:, -1], np.array([1])).next_observations
    np.testing.assert_array_equal(step, other.step(states[:, -1], np.array([1])).next_observations)
    np.testing.assert_array_equal(step, bound.step(states[:, -1], np.array([1])).next_observations)
    swapped = bound.conditioned_on(states, 1 - actions).step(states[:, -1], np.array([1])).next_observations
    assert np.abs(step - swapped).max() > 1e-7

    agent, state = CaDMAgent(model, horizon=2, num_candidates=4), None
    shown = np.empty_like(states[:, 0])
    for index in range(10):
        shown[:] = states[:, index]  # a buffer that the caller uses again
        chosen, state = agent.predict(shown, state)
        state = dataclasses.replace(state, actions=actions[:, min(index, 8)])
    history = model.new_histories(1)
    for index in range(9):
        history = history.after(states[:, index], actions[:, index], states[:, index + 1])
    np.testing.assert_array_equal(state.history.values, history.values)
    _, restarted = agent.predict(states[:, 0], state, np.array([True]))
    assert not restarted.history.values.any()


def test_predictions_are_of_whom_the_episode_shows(cart_pole_log):
    """The error along an episode is that with the context of its beginning, whatever the agent did in the log."""
    model = fit_cadm(cart_pole_log, device="cpu", progress=False, **TINY)
    stranger = dataclasses.replace(model, histories=np.ones_like(model.histories))
    settings = {"policy": lambda o: (o[:, 2] > 0) * 1, "agents": [1], "episodes": 3}
    own, other = (persim_gym.prediction_error(one, **settings) for one in (model, stranger))
    assert own == other
    states, actions = cart_pole_log.observations[:1], cart_pole_log.actions[:1]
    first, second = (one.simulator(1).step(states, actions).next_observations for one in (model, stranger))
    assert np.abs(first - second).max() > 1e-6


def test_continuous_actions_and_the_features_of_half_cheetah(cheetah_log):
    """The pitch enters by sine and cosine, the forward speed is predicted itself and is no input."""
    model = fit_cadm(cheetah_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    states, actions = cheetah_log.observations[:2].copy(), cheetah_log.actions[:2]
    before = model.simulator(0).step_members(states, actions)
    states[:, 0] += 7.0
    states[:, 2] += 2 * np.pi
    after = model.simulator(0).step_members(states, actions)
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=1e-4)
    np.testing.assert_allclose(after[..., 2], before[..., 2] + 2 * np.pi, atol=1e-4)
    agent = CaDMAgent(model, horizon=3, num_candidates=6, num_elites=2, num_rounds=1)
    chosen, state = agent.predict(states)
    chosen, state = agent.predict(states, state)
    assert chosen.shape == (2, 6) and np.abs(chosen).max() <= 1


def test_the_log_is_replayed_in_parts(cart_pole_log):
    """Every iteration adds agents; all together they see every transition; the epochs keep to the limit of steps."""
    config = CaDMConfig(iterations=5, max_gradient_steps=30, batch_size=64, max_epochs=9)
    parts = replayed_parts(cart_pole_log, config, seed=0)
    seen = [np.append(*part) for part in parts]
    assert [len(np.unique(cart_pole_log.agents[rows])) for rows in seen] == [4, 8, 12, 16, 20]
    np.testing.assert_array_equal(np.sort(seen[-1]), np.arange(cart_pole_log.num_transitions))
    assert not set(parts[-1][0]) & set(parts[-1][1])
    steps = sum(-(-len(kept) // 64) for kept, _ in parts)
    assert epochs_per_iteration(parts, config) == max(1, min(9, 30 // steps))


def test_same_seed_same_model_and_a_file_keeps_it(cart_pole_log, tmp_path):
    one, two = (fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY) for _ in range(2))
    one.save(tmp_path / "model.cadm")
    loaded = CaDM.load(tmp_path / "model.cadm")
    assert loaded.config == one.config and loaded.provenance["gradient_steps"] == one.provenance["gradient_steps"]
    states, actions = cart_pole_log.observations[:5], cart_pole_log.actions[:5]
    runs = [model.simulator(0).step_members(states, actions) for model in (one, two, loaded)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_cadm_training_resumes_to_the_same_bits(cart_pole_log, tmp_path, monkeypatch, method):
    settings = {**TINY, "config": method, "iterations": 4, "device": "cpu", "progress": False, "seed": 3}
    whole = fit_cadm(cart_pole_log, **settings)
    written = interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit_cadm(cart_pole_log, checkpoint=tmp_path / "model.cadm", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["model.cadm.part"]
    with pytest.raises(FileFormatError, match=r"model\.cadm\.part is a checkpoint of another.*\(different seed\)"):
        fit_cadm(cart_pole_log, checkpoint=tmp_path / "model.cadm", **{**settings, "seed": 4})
    resumed = fit_cadm(cart_pole_log, checkpoint=tmp_path / "model.cadm", **settings)
    assert written == ["model.cadm.part"] * 3  # after all iterations but the last: none is done twice
    assert all(np.array_equal(resumed.parameters[name], array) for name, array in whole.parameters.items())
    assert resumed.provenance["gradient_steps"] == whole.provenance["gradient_steps"]
    assert list(tmp_path.iterdir()) == []


def test_it_is_trained_at_the_precision_asked_for(cart_pole_log, monkeypatch):
    before, seen = torch.get_float32_matmul_precision(), set()

    def recorded(*arguments):
        seen.add(torch.get_float32_matmul_precision())
        return losses(*arguments)

    monkeypatch.setattr(cadm_training, "losses", recorded)
    fit_cadm(cart_pole_log, device="cpu", progress=False, **TINY, matmul_precision="medium")
    assert seen == {"medium"} and torch.get_float32_matmul_precision() == before
    with pytest.raises(InvalidArgumentError, match="matmul_precision='low' must be one of highest, high, medium"):
        CaDMConfig(matmul_precision="low")


def test_training_learns_the_walk():
    """On a linear system with agents of different speed the error falls far below that of predicting no change."""
    task = walk_task(limit=40)
    log = persim_gym.collect(task, num_agents=12, seed=0)
    model = fit_cadm(
        log, task=task, device="cpu", progress=False, hidden=(32, 32), encoder_hidden=(32,), iterations=2,
        max_epochs=60, futures_per_context=3, batch_size=64,
    )  # fmt: skip
    starts = log.episode_starts
    states = np.stack([log.observations[start : start + 20] for start in starts])
    actions = np.stack([log.actions[start : start + 20] for start in starts])
    simulator = model.simulator(agents=list(range(12))).conditioned_on(states, actions[:, :19])
    predicted = simulator.step(states[:, -1], actions[:, -1]).next_observations
    true = np.stack([log.next_observations[start + 19] for start in starts])
    unchanged = np.square(true - states[:, -1])[:, 0].mean()
    assert np.square(true - predicted)[:, 0].mean() < 0.05 * unchanged


def expected_columns(log):
    """Return standardized states, next states, actions, changes and changes back (T, ·), from the log itself."""
    states, following = (np.asarray(column, np.float64) for column in (log.observations, log.next_observations))
    centre, scale = states.mean(0), states.std(0)
    parts = [(states - centre) / scale, (following - centre) / scale, np.eye(2)[log.actions]]
    for change in (following - states, states - following):
        parts.append((change - change.mean(0)) / change.std(0))
    return torch.tensor(np.concatenate(parts, axis=1))


@pytest.mark.parametrize("config", METHODS)
def test_planners_start_all_candidates_from_one_state(cart_pole_log, cheetah_log, config):
    """With either propagation, for discrete and continuous actions, one environment or several."""
    for log in (cart_pole_log, cheetah_log):
        model = fit_cadm(log, config=config, device="cpu", progress=False, **{**TINY, "max_epochs": 1})
        few = {"num_candidates": 6} if log.discrete else {"num_candidates": 6, "num_elites": 2, "num_rounds": 2}
        for propagation, count in itertools.product(("per_member", "mean_state"), (1, 3)):
            planner = persim_gym.MPCAgent(model.simulator(0), horizon=3, propagation=propagation, **few)
            actions, _ = planner.predict(log.observations[:count])
            assert len(actions) == count and np.isfinite(actions).all()


def test_drawn_states_are_those_of_one_stream_however_many_threads_there_are(cart_pole_log):
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            agent = persim_gym.MPCAgent(model.simulator(0, seed=5), horizon=5, num_candidates=64, seed=1)
            found.append(agent.plan(cart_pole_log.observations[:6]).returns)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_particle_is_drawn_with_the_deviation_that_its_network_predicts(cart_pole_log):
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    states, actions = np.repeat(cart_pole_log.observations[:1], 4000, axis=0), np.ones(4000, int)
    simulator, dynamics = model.simulator(0), model.dynamics(torch.device("cpu"))
    found = simulator.step_members(states, actions).std(axis=1)[::4]
    features = (torch.tensor(states[:1].T) - dynamics.inputs.mean) / dynamics.inputs.scale
    fed = torch.cat([features, torch.tensor([[0.0], [1.0]])]).expand(5, -1, -1)
    fed = torch.cat([fed, model.agent_contexts(np.array([0]), torch.device("cpu"))], dim=1)
    for index in range(3):
        fed = dynamics.parameters[f"forward.{index}.weight"] @ fed + dynamics.parameters[f"forward.{index}.bias"]
        fed = torch.nn.functional.silu(fed) if index < 2 else fed
    low, high = dynamics.log_variance_bounds
    log_variance = high - torch.log1p(torch.exp(high - fed[:, 4:]))
    log_variance = low + torch.log1p(torch.exp(log_variance - low))
    expected = (0.5 * log_variance).exp() * dynamics.targets.scale
    np.testing.assert_allclose(found, expected[:, :, 0].numpy(), rtol=0.06)


def test_a_batch_without_a_transition_before_the_end_teaches_nothing(cart_pole_log):
    """The last batch of an epoch may be that small; its loss is that of the bounds alone, and no weight is lost."""
    trainer, config = trainer_of(cart_pole_log)
    last = torch.tensor(cart_pole_log.episode_ends[:1] - 1).expand(config.num_members, 1)
    batch = standardized(cart_pole_log, config).batch(last, torch.tensor([3, 7]))
    loss = losses(trainer.parameters, config, batch)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(tensor.grad).all() for tensor in trainer.parameters.values() if tensor.grad is not None)
    assert not trainer.parameters["forward.0.weight"].grad.any()


def test_an_iteration_ends_when_the_average_of_its_validation_loss_grows(cart_pole_log, monkeypatch):
    trainer, _ = trainer_of(cart_pole_log)
    kept, held_out = np.arange(40, 400), np.arange(40)
    monkeypatch.setattr(trainer, "run_epoch", lambda rows, step: epochs.append(rows) or 1.0)
    bar = ProgressBar("", 1, False)
    # The average starts at 1.5 times the first score and moves by a hundredth: 1.495, 1.492, 1.491, then it grows.
    slow = [1.0, 1.2, 1.4, 1.6, 0.0]
    negative = [-3.0, -1.9, 0.0]  # at two thirds: −2.01, which −1.9 raises
    for scores, expected in (([5.0] * 9, 9), ([5.0, 4.0, 3.0, 1000.0, 0.0], 4), (slow, 4), (negative, 2)):
        epochs, left = [], iter(scores)
        monkeypatch.setattr(trainer, "validation_loss", lambda rows, left=left: next(left))
        trainer.run_iteration(kept, held_out, len(scores), bar)
        assert len(epochs) == expected
    assert {tuple(rows.shape) for rows in epochs} == {(5, 360)}
    drawn = [set(rows.tolist()) for rows in epochs[0]]
    assert all(set(range(40, 400)) > rows for rows in drawn) and len(set(map(frozenset, drawn))) == 5  # bootstrap


def test_vanilla_cadm_learns_from_every_row_once(cart_pole_log, monkeypatch):
    trainer, _ = trainer_of(cart_pole_log, "Vanilla CaDM")
    seen = []
    monkeypatch.setattr(trainer, "run_epoch", lambda rows, step: seen.append(rows.tolist()) or 1.0)
    trainer.run_iteration(np.arange(40, 400), np.arange(40), 1, ProgressBar("", 1, False))
    assert seen == [[list(range(40, 400))]]


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_with_the_rows_of_the_first_iteration(cart_pole_log, method):
    """They alone standardize; log variances may then be from −10 to 0.5."""
    trainer, _ = trainer_of(cart_pole_log, method)
    if trainer.parameters.keys() & {"min_log_variance"}:
        bounds = [trainer.parameters[f"{name}_log_variance"].detach() for name in ("min", "max")]
        assert (bounds[0] == -10).all() and (bounds[1] == 0.5).all()
    trainer.run_iteration(np.arange(20, 90), np.arange(20), 1, ProgressBar("", 1, False))
    states = cart_pole_log.observations[:90]
    found = trainer.model({}).parameters
    np.testing.assert_allclose(found["input_mean"][:, 0], states.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["input_scale"][:, 0], states.std(0), rtol=1e-4)
    assert np.abs(states.mean(0) - cart_pole_log.observations.mean(0)).max() > 1e-3


def test_agents_are_replayed_in_an_order_drawn_by_the_seed(cart_pole_log):
    config = CaDMConfig(iterations=5)
    first = []
    for seed in range(3):
        kept, held_out = replayed_parts(cart_pole_log, config, seed)[0]
        first.append(frozenset(cart_pole_log.agents[np.append(kept, held_out)].tolist()))
    assert len(set(first)) == 3 and frozenset(range(4)) not in first


PAPERS_SETTINGS = {
    "history_length": 10, "future_steps": 10, "futures_per_context": 10, "context_size": 10, "iterations": 20,
    "encoder_hidden": (256, 128, 64), "hidden": (200, 200, 200, 200), "backward_weight": 0.5, "variance_weight": 0.01,
    "batch_size": 256, "learning_rate": 1e-3, "max_epochs": 200, "validation_fraction": 0.1, "absolute": (),
    "angles": (), "matmul_precision": "highest",
}  # fmt: skip
"""Of the authors' code, and of the paper's appendix D; for both methods."""


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_are_those_of_paper_and_code(method):
    config = get_cadm_config(method, "CartPole")
    assert {name: getattr(config, name) for name in PAPERS_SETTINGS} == PAPERS_SETTINGS
    ensemble = (config.probabilistic, config.num_members, config.num_particles)
    assert ensemble == ((True, 5, 20) if method == "PE-TS CaDM" else (False, 1, 1))
    cheetah = get_cadm_config(method, "HalfCheetah")
    assert cheetah == config.with_changes(absolute=(0,), angles=(2,))


@pytest.mark.parametrize("log", ["cart_pole_log", "cheetah_log"])
def test_every_particle_of_a_plan_follows_its_own_trajectory(log, request, monkeypatch):
    """For continuous actions, too, where PerSim's planner follows the mean."""
    log = request.getfixturevalue(log)
    model = fit_cadm(log, config="PE-TS CaDM", device="cpu", progress=False, **{**TINY, "max_epochs": 1})
    asked = []

    def noting(*arguments, propagation, **settings):
        asked.append(propagation)
        return simulated_returns(*arguments, propagation=propagation, **settings)

    monkeypatch.setattr("persim_gym.planning.agent.simulated_returns", noting)
    few = {"num_candidates": 4} if log.discrete else {"num_candidates": 4, "num_elites": 2, "num_rounds": 1}
    CaDMAgent(model, horizon=2, **few).predict(log.observations[:1])
    assert set(asked) == {"per_member"}


def test_a_tenth_of_each_part_is_held_out_and_the_decay_reaches_the_optimizer(cart_pole_log):
    trainer, config = trainer_of(cart_pole_log)
    for kept, held_out in replayed_parts(cart_pole_log, config, seed=0):
        assert len(held_out) == pytest.approx(0.1 * (len(kept) + len(held_out)), abs=2)
    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays == {0.0, 2.5e-5, 5e-5, 7.5e-5}


def test_generating_with_an_agent_whose_memory_is_cut_down(cart_pole_log):
    """Episodes that are over take their histories with them."""
    model = fit_cadm(cart_pole_log, device="cpu", progress=False, **TINY)
    agent = CaDMAgent(model, horizon=2, num_candidates=4)
    _, state = agent.predict(cart_pole_log.observations[:3])
    _, state = agent.predict(cart_pole_log.observations[1:4], state)
    left = state[np.array([0, 2])]
    np.testing.assert_array_equal(left.history.values, state.history.values[[0, 2]])
    actions, after = agent.predict(cart_pole_log.observations[[2, 4]], left)
    assert actions.shape == (2,) and len(after.observations) == 2


def test_which_weights_are_penalized():
    assert weight_decay("encoder.0.weight") == 2.5e-5 and weight_decay("encoder.3.weight") == 7.5e-5
    assert weight_decay("forward.4.weight") == 1e-4 and weight_decay("backward.1.weight") == 5e-5
    assert weight_decay("forward.4.bias") == weight_decay("max_log_variance") == 0.0


def test_features_of_states():
    states = torch.tensor([[1.0], [0.5], [2.0]])
    features = Features(absolute=(0,), angles=(1,))
    expected = torch.tensor([[2.0], [np.sin(0.5)], [np.cos(0.5)]], dtype=torch.float32)
    torch.testing.assert_close(features.of(states), expected)
    assert features.size(3) == 3 and features.base(states)[0] == 0


def test_cadm_refuses_wrong_logs_settings_and_contexts(cart_pole_log, cheetah_log, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown config 'CaDM'; named ones are Vanilla CaDM, PE-TS CaDM, "):
        fit_cadm(cart_pole_log, config="CaDM")
    assert get_cadm_config(None, "HalfCheetah") == get_cadm_config("Vanilla CaDM", "HalfCheetah")
    with pytest.raises(InvalidDataError, match="the log's actions are continuous|18 observation coordinates"):
        fit_cadm(cheetah_log, task="CartPole")
    with pytest.raises(InvalidArgumentError, match="num_particles=3 must be a multiple of num_members=2"):
        CaDMConfig(num_members=2, num_particles=3)
    with pytest.raises(InvalidArgumentError, match="batch_size=0 must be a whole number"):
        CaDMConfig(batch_size=0)
    with pytest.raises(InvalidArgumentError, match="futures_per_context=11 must be at most future_steps=10"):
        CaDMConfig(futures_per_context=11)
    with pytest.raises(UnknownNameError, match="no setting 'layers' of CaDM"):
        CaDMConfig().with_changes(layers=3)
    model = fit_cadm(cart_pole_log, device="cpu", progress=False, **{**TINY, "max_epochs": 1})
    with pytest.raises(InvalidArgumentError, match="or agents=, a list of them, and only one of the two"):
        model.simulator()
    with pytest.raises(InvalidArgumentError, match="aggregate='max' must be one of"):
        model.simulator(0, aggregate="max")
    with pytest.raises(InvalidStateError, match=r"must have shape \(B, T \+ 1, 4\) .*; got shape \(3, 4\)"):
        model.simulator(0).conditioned_on(np.zeros((3, 4)), np.zeros((3,), int))
    with pytest.raises(InvalidStateError, match=r"3 observations need actions of shape \(1, 2\), got \(1, 3\)"):
        model.simulator(0).conditioned_on(np.zeros((1, 3, 4)), np.zeros((1, 3), int))
    with pytest.raises(InvalidActionError, match="whole numbers from 0 to 1"):
        model.simulator(0).conditioned_on(np.zeros((1, 3, 4)), np.array([[0, -1]]))
    with pytest.raises(InvalidStateError, match="finite"):
        model.simulator(0).conditioned_on(np.full((1, 3, 4), np.nan), np.zeros((1, 2), int))
    (tmp_path / "broken").write_bytes(b"12345678901234567890")
    with pytest.raises(FileFormatError):
        CaDM.load(tmp_path / "broken")


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("validation_fraction=1", {"validation_fraction": 1}),
        ("validation_fraction='a' must be at least 0 and below 1", {"validation_fraction": "a"}),
        ("max_validation=-1 must be a whole number of at least 0", {"max_validation": -1}),
        ("probabilistic='no' must be True or False", {"probabilistic": "no"}),
        ("absolute=0 must be a tuple of coordinates", {"absolute": 0}),
        ("learning_rate=-1", {"learning_rate": -1}),
        ("absolute=-1 must be a whole number", {"absolute": (-1,)}),
        (r"absolute=\(0, 0\) must have each coordinate once", {"absolute": (0, 0)}),
        ("coordinate 1 is in absolute and in angles", {"absolute": (0, 1), "angles": (1,)}),
        ("angles has coordinate 4; those of task CartPole are 0 … 3", {"angles": (4,)}),
        ("hidden=8 must be a tuple of widths", {"hidden": 8}),
        (r"hidden=\(\) needs at least one layer", {"hidden": ()}),
        ("config=3 must be a name or a CaDMConfig", {"config": 3}),
        ("seed=-1 must be a whole number", {"seed": -1}),
    ],
)
def test_cadm_settings_out_of_range(cart_pole_log, message, changes):
    with pytest.raises(InvalidArgumentError, match=message):
        fit_cadm(cart_pole_log, progress=False, **changes)


def test_what_an_agent_refuses(model, cart_pole_log, half_cheetah):
    observations = cart_pole_log.observations
    with pytest.raises(InvalidArgumentError, match="cannot plan in .*: give a CaDM"):
        CaDMAgent(half_cheetah)
    with pytest.raises(InvalidArgumentError, match="horizn=3 is no setting"):
        CaDMAgent(model, horizn=3)
    agent = CaDMAgent(model, horizon=2, num_candidates=4)
    with pytest.raises(InvalidStateError, match=r"must have shape \(E, 4\); got shape \(1, 3\)"):
        agent.predict(np.zeros((1, 3)))
    _, state = agent.predict(observations[:2])
    with pytest.raises(InvalidArgumentError, match=r"episode_start of shape \(3,\) must be"):
        agent.predict(observations[:2], state, [True, False, True])
    for wrong in (state, np.zeros((3, 2))):
        with pytest.raises(InvalidArgumentError, match="state is not what predict returned for 3 environments"):
            agent.predict(observations[:3], wrong)


def test_what_only_an_ensemble_knows_is_said(model, cart_pole_log, tmp_path):
    with pytest.raises(MissingStatisticsError, match="CaDM knows no posterior"):
        model.simulator(0).step(cart_pole_log.observations[:1], [0], uncertainty=True)
    with pytest.raises(MissingStatisticsError, match="CaDM knows no posterior"):
        persim_gym.nearest_agents(model, 0)
    newcomer = dataclasses.replace(cart_pole_log.select([0]), agent_labels=("new",))
    for call in (
        lambda: persim_gym.fit_covariate_map(model),
        lambda: persim_gym.plot_agents(model, tmp_path / "agents.png"),
        lambda: persim_gym.personalize(model, newcomer),
        lambda: persim_gym.personalize(model, covariates={"new": {}}),
        lambda: persim_gym.refit_factors(model, cart_pole_log),
        lambda: persim_gym.update(model, cart_pole_log),
    ):
        with pytest.raises(MissingStatisticsError, match="CaDM knows no posterior"):
            call()
    for wanted in ({"ensemble": "posterior"}, {"uncertainty": True}):
        with pytest.raises(MissingStatisticsError, match="CaDM knows no posterior"):
            PersonalizedEnv(model, 0, **wanted)
    with pytest.raises(MissingStatisticsError, match="CaDM knows no posterior"):
        PersonalizedVectorEnv(model, 2, 0, ensemble="posterior")
    states, actions = cart_pole_log.observations[:1], np.zeros((1, 3), int)
    with pytest.raises(MissingStatisticsError, match="CaDM knows no posterior"):
        persim_gym.forecast(model, 0, states, actions)


def test_seeds_of_its_simulators(model, cart_pole_log):
    """NumPy's whole numbers are seeds; what is none is refused, as everywhere."""
    states, actions = cart_pole_log.observations[:1], [0]
    one, other = (model.simulator(0, seed=seed).step(states, actions) for seed in (np.int64(1), 1))
    np.testing.assert_array_equal(one.next_observations, other.next_observations)
    if model.config.probabilistic:
        for wrong in (-1, None, "x", 0.5):
            with pytest.raises(InvalidArgumentError, match=f"seed={wrong!r} must be a whole number"):
                model.simulator(0, seed=wrong)


@pytest.mark.parametrize("policy", ["plan", "agent"])
def test_synthetic_trajectories_of_its_simulators(model, policy):
    """By plans in the logged agents' contexts, or by the agent whose context follows each episode."""
    few = {"horizon": 3, "num_candidates": 4}
    how = {"policy": "plan", **few} if policy == "plan" else {"policy": CaDMAgent(model, **few)}
    made = persim_gym.generate(model, agents=[2, "5"], episodes_per_agent=2, max_episode_steps=4, progress=False, **how)
    assert made.agent_labels == ("2", "5") and made.num_episodes == 4 and made.provenance["synthetic"]
    limits = get_task("CartPole").observation_space
    assert made.episode_lengths.max() == 4 and limits.contains(made.next_observations.min(0))
    np.testing.assert_array_equal(made.terminated, get_task("CartPole").terminated(made.next_observations))


def test_what_a_policy_earns_in_its_simulators(model):
    """It is one model: there are no members to ask."""
    rows = persim_gym.simulated_policy_returns(model, "random", agents=[2, "5"], episodes=2, max_episode_steps=4)
    assert [(row.agent, row.members, row.episodes) for row in rows] == [("2", (), 2), ("5", (), 2)]
    assert all(1 <= row.mean == row.length <= 4 for row in rows)


@pytest.mark.parametrize("name", ["parameters.input_mean", "parameters.target_scale", "histories", "covariates"])
def test_damaged_files(model, tmp_path, name):
    """An array that is missing, or of another shape; covariates need not be there."""
    model.save(tmp_path / "model.cadm")
    arrays, document = storage.read(tmp_path / "model.cadm", "cadm")
    arrays = {key: np.array(array) for key, array in arrays.items()}
    spoiled = [{**arrays, name: arrays[name][1:]}]
    if name != "covariates":
        spoiled.append({key: array for key, array in arrays.items() if key != name})
    for index, contents in enumerate(spoiled):
        storage.write(tmp_path / f"{index}.cadm", "cadm", contents, document)
        with pytest.raises(FileFormatError, match=f"{name.removeprefix('parameters.')!r} is missing or has the wrong"):
            CaDM.load(tmp_path / f"{index}.cadm")


def test_a_caller_may_change_the_actions_it_gets(model, cart_pole_log):
    """The context is of those that the agent returned."""
    agent = CaDMAgent(model, horizon=3, num_candidates=8)
    actions, state = agent.predict(cart_pole_log.observations[:3])
    kept = actions.copy()
    actions += 1
    np.testing.assert_array_equal(state.actions, kept)


def test_every_plan_draws_next_states_of_its_own(model, cart_pole_log):
    """From one state, by the same action, at the beginning of an episode: each call sees other ones."""
    if not model.simulator(0).stochastic:
        pytest.skip("it draws nothing")
    seen = {0: [], 1: []}

    def reward(states, actions, next_states):
        seen[int(actions[0])].append(np.array(next_states))
        return 0 * next_states[..., 0]

    agent, state = CaDMAgent(model, horizon=1, num_candidates=1, objective=PlanningObjective(reward)), None
    for _ in range(8):
        _, state = agent.predict(cart_pole_log.observations[:1], state, np.array([True]))
    assert sum(map(len, seen.values())) == 8
    for drawn in seen.values():
        assert len({one.tobytes() for one in drawn}) == len(drawn)


def test_a_conditioned_simulator_computes_as_the_one_it_is_made_from(model, cart_pole_log):
    """In bfloat16 a step is nearly that of float32, not the same."""
    beginning = cart_pole_log.observations[None, :4], cart_pole_log.actions[None, :3]
    exact, halved = (
        model.simulator_of(model.histories[:1], device=torch.device("cpu"), dtype=dtype)
        .conditioned_on(*beginning)
        .deterministic()
        .step_members(cart_pole_log.observations[3:4], [1])
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < np.abs(halved - exact).max() < 0.05


def test_models_are_shown_in_a_line(model):
    assert repr(model).startswith("CaDM(CartPole: 20 agents, ")
    assert repr(model.simulator(3)).startswith("CaDMSimulator(CartPole: agent 3, ")
    assert repr(persim_gym.MPCAgent(model.simulator(3))).startswith("MPCAgent(random_shooting, horizon 50, in CaDMSim")


def test_drawn_states_go_by_the_seed_and_by_nothing_else(cart_pole_log):
    """Synthetic trajectories of two seeds differ; a question or a plan in between leaves an episode as it is."""
    model = fit_cadm(cart_pole_log, config="PE-TS CaDM", device="cpu", progress=False, **TINY)
    fixed = {"starts": np.zeros(4), "max_episode_steps": 4, "progress": False}
    made = [
        persim_gym.generate(model, [3], 4, lambda o: np.ones(len(o), int), seed=seed, **fixed) for seed in (0, 0, 1)
    ]
    assert np.array_equal(made[0].observations, made[1].observations)
    assert not np.array_equal(made[0].observations, made[2].observations)
    alone = PersonalizedEnv(model, 3)
    several = PersonalizedVectorEnv(model, 2, 3)
    for env, actions in ((alone, 1), (several, np.array([1, 1]))):
        seen = []
        for asks in (False, True):
            env.reset(seed=1)
            if asks:
                env.simulator.step(np.zeros((1, 4)), [0])
                persim_gym.MPCAgent(env, horizon=3, num_candidates=4).predict(np.zeros((1, 4)))
            seen.append(env.step(actions)[0])
        np.testing.assert_array_equal(*seen)


def test_value_iteration_plans_with_the_means_of_what_is_drawn(model):
    simulator = model.simulator(3)
    still, states, actions = simulator.deterministic(), np.zeros((500, 4)), np.zeros(500, int)
    means = [still.step_members(states, actions) for _ in "ab"]
    np.testing.assert_array_equal(*means)
    assert not still.stochastic and (still is simulator) == (not simulator.stochastic)
    drawn = simulator.step_members(states, actions)
    apart = np.abs(drawn.mean(axis=1) - means[0].mean(axis=1))
    assert (apart <= 5 * drawn.std(axis=1) / 500**0.5 + 1e-6).all()
    agent = persim_gym.ValueIterationAgent(simulator, points=4)
    states = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 0.05
    np.testing.assert_array_equal(agent.predict(states)[0], agent.predict(states)[0])


def test_ids_are_of_persim_only(model):
    with pytest.raises(InvalidArgumentError, match=r"CaDM\(CartPole.*PersonalizedEnv\(model, agent\)"):
        persim_gym.register_ensemble(model)
