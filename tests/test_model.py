"""`Ensemble`: its file, its parts, and who its agents are."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open
from support import DEEP, SMALL, random_ensemble

import persim_gym
from persim_gym import Ensemble, errors, storage
from persim_gym.data.labels import NumberedLabels
from persim_gym.model.normalizer import Normalizer
from persim_gym.training.errors import one_step_errors

ENSEMBLES = ("cart_pole", "mountain_car", "half_cheetah")


@pytest.fixture(params=ENSEMBLES)
def ensemble(request):
    """Each of the trained ones."""
    return request.getfixturevalue(request.param)


def test_a_saved_ensemble_is_loaded_to_the_bit(ensemble, tmp_path):
    """Every array to the bit, and everything else."""
    ensemble.save(tmp_path / "model.persim")
    loaded = persim_gym.load(tmp_path / "model.persim")
    assert set(loaded.parameters) == set(ensemble.parameters)
    for name, array in ensemble.parameters.items():
        assert loaded.parameters[name].dtype == np.float32
        np.testing.assert_array_equal(loaded.parameters[name], array)
    for field in dataclasses.fields(Normalizer):
        found, saved = (getattr(one.normalizer, field.name) for one in (loaded, ensemble))
        np.testing.assert_array_equal(found, saved)
    np.testing.assert_array_equal(loaded.initial_observations, ensemble.initial_observations)
    if ensemble.covariates is None:
        assert loaded.covariates is None
    else:
        np.testing.assert_array_equal(loaded.covariates, ensemble.covariates)
    assert (loaded.task, loaded.config) == (ensemble.task, ensemble.config)
    assert (loaded.agent_labels, loaded.provenance) == (ensemble.agent_labels, ensemble.provenance)


def test_provenance_of_a_selected_rank_survives_saving(cart_pole_log, tmp_path):
    """The validation losses by rank come back as they were."""
    config = SMALL.with_changes(epochs=1, num_members=1)
    ensemble = persim_gym.fit(cart_pole_log, config=config, rank="auto", progress=False)
    ensemble.save(tmp_path / "model")
    assert persim_gym.load(tmp_path / "model").provenance == ensemble.provenance


def test_the_file_is_safetensors_and_its_header_is_enough(cart_pole, tmp_path):
    """The library reads the arrays; task, agents, settings and provenance stand in the header as JSON."""
    path = tmp_path / "model.persim"
    cart_pole.save(path)
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("agent.weight"), cart_pole.parameters["agent.weight"])
        document = json.loads(file.metadata()["persim_gym"])
    assert (document["task"], document["num_agents"], document["config"]["rank"]) == ("CartPole", 20, 5)
    assert document["provenance"]["data_digest"] == cart_pole.provenance["data_digest"]


def test_own_labels_survive_saving(tmp_path):
    """Agents with names."""
    ensemble = random_ensemble("CartPole", num_agents=3)
    ensemble.save(tmp_path / "model")
    loaded = Ensemble.load(tmp_path / "model")
    assert loaded.agent_labels == ("agent 0", "agent 1", "agent 2")
    assert loaded.agent_index("agent 2") == loaded.agent_index(2) == loaded.agent_index(np.int64(2)) == 2


def test_agents_keep_their_own_factors(cart_pole):
    """u is a row of the agent table plus the shared bias; w a row of the action table plus its own."""
    u = cart_pole.agent_factors([3])[:, 0]
    np.testing.assert_allclose(
        u, cart_pole.parameters["agent.weight"][:, 3] + cart_pole.parameters["agent.bias"], rtol=1e-6
    )
    w = cart_pole.action_factors()[:, 1]
    np.testing.assert_allclose(
        w, cart_pole.parameters["action.weight"][:, 1] + cart_pole.parameters["action.bias"], rtol=1e-6
    )
    np.testing.assert_array_equal(cart_pole.agent_covariates(4), [10.0, 0.15])


def test_factors_that_are_given_are_those_of_their_agents(cart_pole):
    """Of some agents, whatever the order, or of all; the others and the ensemble itself stay as they are."""
    before, rng = cart_pole.agent_factors(), np.random.default_rng(0)
    factors = rng.normal(size=before.shape)
    some = cart_pole.with_factors(factors[:, :2], [7, 3])
    np.testing.assert_allclose(some.agent_factors([7, 3]), factors[:, :2], rtol=1e-5, atol=1e-6)
    others = np.delete(np.arange(cart_pole.num_agents), [3, 7])
    np.testing.assert_array_equal(some.agent_factors(others), before[:, others])
    everyone = cart_pole.with_factors(factors)
    np.testing.assert_allclose(everyone.agent_factors(), factors, rtol=1e-5, atol=1e-6)
    assert everyone.parameters["agent.weight"].dtype == np.float32
    np.testing.assert_array_equal(cart_pole.agent_factors(), before)


def test_with_members(cart_pole):
    """Some of the members, in the order given, predict what they predicted among all."""
    states, actions = np.full((2, 4), 0.01), np.array([0, 1])
    everyone = cart_pole.simulator(0).step_members(states, actions)
    some = cart_pole.with_members([4, 1]).simulator(0).step_members(states, actions)
    np.testing.assert_allclose(some, everyone[[4, 1]], atol=1e-6)
    with pytest.raises(errors.InvalidArgumentError, match="members"):
        cart_pole.with_members([5])


def test_normalizer_is_mean_and_unbiased_deviation():
    """Over all transitions; a coordinate that never changes keeps scale 1, and its change has scale 0."""
    rng = np.random.default_rng(0)
    states, after = rng.normal(2, 3, (50, 3)), rng.normal(1, 2, (50, 3))
    states[:, 2], after[:, 2] = 4.0, 4.0
    normalizer = Normalizer.of(states.astype(np.float32), after.astype(np.float32))
    np.testing.assert_allclose(normalizer.state_mean, states.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalizer.state_scale[:2], states.std(0, ddof=1)[:2], rtol=1e-6)
    np.testing.assert_allclose(normalizer.change_mean, (after - states).mean(0), atol=1e-6)
    np.testing.assert_allclose(normalizer.change_scale[:2], (after - states).std(0, ddof=1)[:2], rtol=1e-6)
    assert normalizer.state_scale[2] == normalizer.change_divisor[2] == 1.0 and normalizer.change_scale[2] == 0.0


@pytest.mark.parametrize(("task", "config"), [("CartPole", SMALL), ("HalfCheetah", DEEP)])
def test_repr_says_what_an_ensemble_is(task, config):
    """Task, agents, members, rank."""
    text = repr(random_ensemble(task, config))
    for part in (task, "3 agents", "3 members", "rank 3"):
        assert part in text


def test_numbered_labels():
    """The labels of agents without names behave as the tuple they stand for, and cost nothing."""
    labels, plain = NumberedLabels(12), tuple(str(index) for index in range(12))
    assert labels == plain and tuple(labels) == plain and labels != plain[:-1] and labels[2:4] == ("2", "3")
    assert labels == NumberedLabels(12) and hash(labels) == hash(plain)
    for label in ("0", "11", "12", "-1", "01", "a", "", "²"):
        assert (label in labels) == (label in plain)
    assert labels.index("11") == 11 and labels[-1] == "11"
    for wrong in (lambda: labels.index("12"), lambda: labels[12]):
        with pytest.raises((ValueError, IndexError)):
            wrong()
    many = NumberedLabels(10**12)
    assert str(10**11) in many and many.index("7") == 7 and len(many) == 10**12


def test_a_saved_ensemble_of_unnamed_agents_lists_no_names(tmp_path):
    """Its labels come back; neither the header nor loading grows with the number of agents."""
    ensemble = dataclasses.replace(random_ensemble("CartPole"), agent_labels=("0", "1", "2"))
    ensemble.save(tmp_path / "unnamed.persim")
    assert storage.read_document(tmp_path / "unnamed.persim", "ensemble")["agent_labels"] is None
    loaded = Ensemble.load(tmp_path / "unnamed.persim")
    assert loaded.agent_labels == ("0", "1", "2") and loaded.agent_index("2") == 2
    with pytest.raises(errors.UnknownNameError, match="no agent is labelled '3'; labels are '0', '1', '2'"):
        loaded.agent_index("3")
    loaded.with_members([1]).save(tmp_path / "again.persim")
    assert Ensemble.load(tmp_path / "again.persim").agent_labels == loaded.agent_labels


def test_an_ensemble_of_some_agents_predicts_as_the_whole_does(cart_pole_log, cart_pole):
    """Also before it has been saved and loaded, whatever the layout of its arrays in memory."""
    labels = [cart_pole.agent_labels[agent] for agent in (4, 1)]
    part = cart_pole_log.select(labels)
    rows = np.flatnonzero(np.isin(cart_pole_log.agents, [4, 1]))
    some = cart_pole.with_agents(part.agent_labels)
    np.testing.assert_array_equal(some.covariates, cart_pole.covariates[[4, 1]])
    np.testing.assert_array_equal(some.posterior.moments([0, 1])[0], cart_pole.posterior.moments([4, 1])[0])
    np.testing.assert_allclose(one_step_errors(some, part), one_step_errors(cart_pole, cart_pole_log, rows), rtol=1e-5)


def test_members_that_are_left_out_take_the_calibration_with_them():
    """It was measured with all of them; in another order they are all still there."""
    known = dataclasses.replace(random_ensemble("CartPole"), calibration=np.ones((4, 3, 4)))
    assert known.with_members([0, 2]).calibration is None
    assert known.with_members([2, 0, 1]).calibration is not None
