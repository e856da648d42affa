"""Bad input: an error that is a `PerSimError` and the built-in one, says what was wrong, and leaves nothing behind."""

import dataclasses
import inspect
import json
import shutil
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import SMALL, keep_checkpoints, perfect_walk_ensemble, random_ensemble, walk_task

import persim_gym
from persim_gym import (
    Ensemble,
    MPCAgent,
    PerSimConfig,
    Trajectories,
    collect,
    errors,
    fit,
    mpc_returns,
    prediction_error,
    storage,
)
from persim_gym.baselines import fit_joint
from persim_gym.collection import logging_policies
from persim_gym.collection.logging_policies import logging_policy
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv
from persim_gym.interop import from_dataframe, from_minari
from persim_gym.interop.episodes import number_of_actions
from persim_gym.model.dynamics import LearnedDynamics
from persim_gym.tasks import Covariate

GENERIC = "PerSim-CartPole-v0"
TINY = PerSimConfig(rank=3, state_hidden=(4,), num_members=1, epochs=1, normalize=False)


def refuses(kind, builtin, message, call):
    """The call raises this error, which is one of ours and the built-in, with a message that matches."""
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, errors.PerSimError) and isinstance(caught.value, builtin)


def small_log(**changes):
    """Six rows of two agents for MountainCar, with some columns replaced."""
    columns = {
        "agents": [0, 0, 0, 1, 1, 1],
        "observations": np.zeros((6, 2)),
        "actions": [0, 1, 2, 0, 1, 2],
        "next_observations": np.zeros((6, 2)),
        "task": "MountainCar",
    }
    return Trajectories.from_arrays(**{**columns, **changes})


def with_value(shape, value):
    """Zeros, but for one value in row 4."""
    array = np.zeros(shape)
    array[4] = value
    return array


fit_tiny = partial(fit, config=TINY, progress=False)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("unknown task 'Cartpole'; known are MountainCar, CartPole", lambda: collect("Cartpole")),
        (
            r"unknown task 'Nope'.* fit\(log, task=task\).*register_task\(task\)",
            lambda: fit_tiny(small_log(), task="Nope"),
        ),
        ("unknown task 'Nope'", lambda: gymnasium.make("Heterogeneous-CartPole-v0", task="Nope")),
        (r"no agent 500: agents are indices 0 … 499", lambda: gymnasium.make(GENERIC, agent=500)),
        (r"no agent -1", lambda: gymnasium.make(GENERIC, agent=-1)),
        (r"no agent 1\.5", lambda: gymnasium.make(GENERIC, agent=1.5)),
        (r"no agent True", lambda: gymnasium.make(GENERIC, agent=True)),
        (r"no agent is labelled 'bob'; labels are '0', '1'", lambda: gymnasium.make(GENERIC, agent="bob")),
        (r"no agent 2", lambda: small_log().select([2])),
        (r"labelled 'bob'", lambda: small_log().select(["bob"])),
        (r"no agent 3", lambda: random_ensemble("CartPole").simulator(agents=[0, 3])),
        (r"no agent 9", lambda: prediction_error(random_ensemble("CartPole"), policy="random", agents=[9])),
        (
            "no covariate 'gravity'; it has force, length",
            lambda: gymnasium.make("Heterogeneous-CartPole-v0", gravity=1),
        ),
        ("unknown config 'CartPol'; named ones are", lambda: fit_tiny(small_log(), config="CartPol")),
        ("no setting 'ranks' of PerSimConfig; settings are", lambda: TINY.with_changes(ranks=3)),
        ("'learning_rat' of .*; did you mean learning_rate", lambda: fit_tiny(small_log(), learning_rat=1e-3)),
        ("'clip_state' of .*; did you mean clip_states", lambda: fit_joint(small_log(), clip_state=True)),
    ],
)
def test_unknown_names(message, call):
    """Tasks, agents, labels, covariates, settings: the message has the name and those there are."""
    refuses(errors.UnknownNameError, KeyError, message, call)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["observations", "next_observations", "rewards", "actions", "covariates"])
def test_logs_with_what_is_not_a_number(column, value):
    """The column and the row are named."""
    if column == "covariates":
        changes = {"covariates": [[1.0], [value]], "covariate_names": ["mass"]}
        row = 1
    else:
        changes = {column: with_value((6,) if column == "rewards" else (6, 2), value)}
        row = 4
    refuses(
        errors.InvalidDataError, ValueError, rf"{column} holds .*{value}.* in row {row}", lambda: small_log(**changes)
    )


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("task=3 must be a Task or the name of one", {"task": 3}),
        ("observations must have 2 axes", {"observations": np.zeros(6)}),
        ("observations must be numbers", {"observations": [["a", "b"]] * 6}),
        ("observations must be numbers", {"observations": [[0.0], [0.0, 1.0]]}),
        ("next_observations has 5 rows, observations has 6", {"next_observations": np.zeros((5, 2))}),
        (r"next_observations have shape \(6, 3\)", {"next_observations": np.zeros((6, 3))}),
        ("actions has 5 rows, observations has 6", {"actions": np.zeros(5, int)}),
        ("actions of shape .* integers for discrete", {"actions": np.zeros(6)}),
        ("rewards must have 1 axes", {"rewards": np.zeros((6, 1))}),
        (r"terminated has shape \(1,\), expected \(6,\)", {"terminated": [True]}),
        (r"agents has shape \(5,\), expected \(6,\)", {"agents": [0] * 5}),
        ("agents", {"agents": [0, 0, 0, 1, 1, np.nan]}),
        ("agents", {"agents": ["a", "a", "a", "b", "b", None]}),
        (r"covariates have shape \(3, 1\)", {"covariates": np.ones((3, 1)), "covariate_names": ["mass"]}),
        ("'mass' twice", {"covariates": np.ones((3, 2)), "covariate_names": ["mass", "mass"]}),
        ("covariates", {"covariates": [["heavy"], ["light"]], "covariate_names": ["mass"]}),
        ("episode_starts", {"episode_starts": [1, 3]}),
        ("episode_starts", {"episode_starts": [0, 3, 3]}),
        ("episode_starts", {"episode_starts": [0, 3, 99]}),
        ("episode_starts", {"episode_starts": [0, 3, 99], "next_observations": None}),
        ("episode_starts", {"episode_starts": [[0], [3]]}),
        ("episode_starts", {"episode_starts": []}),
        ("the agent changes within an episode, at row 3", {"episode_starts": [0]}),
        ("row 1 is terminated .* goes on", {"terminated": [0, 1, 0, 0, 0, 0], "episode_starts": [0, 3]}),
        ("single row and no next observation", {"next_observations": None, "terminated": [1, 0, 0, 0, 0, 0]}),
        ("has no transition", {"agents": [0, 0, 0, 2, 2, 2], "agent_labels": ["a", "b", "c"]}),
        ("agent indices run from 0 to 1, but there are 1", {"agent_labels": ["a"]}),
        ("'a' is used twice", {"agent_labels": ["a", "a"]}),
        ("no transition", {"agents": [], "observations": np.zeros((0, 2)), "actions": [], "next_observations": None}),
    ],
)
def test_logs_that_do_not_fit_together(message, changes):
    """Wrong shapes, types, bounds of episodes, and agents without a transition."""
    refuses(errors.InvalidDataError, ValueError, message, lambda: small_log(**changes))


@pytest.mark.parametrize(
    ("message", "log", "task"),
    [
        (r"action 3 in row 2 is outside 0 … 2", {"actions": [0, 1, 3, 0, 1, 2]}, "MountainCar"),
        (r"action -1 in row 0: number discrete actions from 0 on", {"actions": [-1, 1, 2, 0, 1, 2]}, "MountainCar"),
        (r"2 observation coordinates, task CartPole has 4", {}, "CartPole"),
        (r"actions are continuous, task MountainCar's discrete", {"actions": np.zeros((6, 1))}, "MountainCar"),
        (
            r"observations holds position = 20 in row 4, of agent '1', outside its range from -1\.2 to 0\.6",
            {"observations": np.full((6, 2), [[0.0, 0.01]]) + np.eye(6, 2, k=-4) * 20},
            "MountainCar",
        ),
    ],
)
def test_logs_that_do_not_fit_the_task(message, log, task):
    """Found before training begins."""
    refuses(errors.InvalidDataError, ValueError, message, lambda: fit_tiny(small_log(**log), task=task))


def test_continuous_actions_outside_the_space():
    """The row is named; the bound itself is inside, and a rounding error too."""
    actions = np.tile(np.linspace(-0.5, 0.5, 6)[:, None], 6)
    actions[3, 2] = -1.01
    columns = {"observations": np.zeros((6, 18)), "next_observations": np.ones((6, 18)), "task": "HalfCheetah"}
    log = partial(small_log, **columns)
    refuses(errors.InvalidDataError, ValueError, "in row 3 is outside", lambda: fit_tiny(log(actions=actions)))
    actions[3, 2] = -1.0 - 1e-7
    assert fit_tiny(log(actions=actions), config=SMALL, epochs=1).num_agents == 2


@pytest.mark.parametrize("actions", [7, -1, 0.5, np.nan])
def test_a_policy_that_leaves_the_action_space_is_not_recorded(actions):
    """MountainCar has the actions 0, 1 and 2."""
    with pytest.raises(errors.PerSimError, match="action"):
        collect("MountainCar", num_agents=2, policy=lambda observations: np.full(len(observations), actions))


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)])
def test_a_policy_whose_actions_have_the_wrong_shape(shape):
    """CartPole takes one integer for each of the three agents."""
    with pytest.raises(errors.PerSimError, match="action"):
        collect("CartPole", num_agents=3, policy=lambda observations: np.ones(shape, int))


def test_a_table_of_covariates_names_them_itself():
    """In another order than the user it is refused."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"mass": [1.0, 2.0], "age": [30, 40]})
    known = {"covariates": table, "agent_labels": ["a", "b"]}
    assert small_log(covariate_names=["mass", "age"], **known).covariates.tolist() == [[1, 30], [2, 40]]
    message = r"columns \['mass', 'age'\], but covariate_names=\['age', 'mass'\]"
    refuses(errors.InvalidDataError, ValueError, message, lambda: small_log(covariate_names=["age", "mass"], **known))


def test_logs_of_different_kinds_do_not_join():
    """Other tasks, other sizes, other covariates, and one label with two sets of them."""
    known = {"covariate_names": ["mass"], "agent_labels": ["a", "b"]}
    for message, one, other in (
        ("tasks", {}, {"task": "Mine"}),
        ("observation sizes", {}, {"observations": np.zeros((6, 3)), "next_observations": np.zeros((6, 3))}),
        ("kinds of actions", {}, {"actions": np.zeros((6, 1))}),
        ("covariates.*'mass'.* and \\(\\); leave them out", {"covariates": [[1], [2]], **known}, {}),
        ("covariates.*'mass'.* and \\(\\); leave them out", {"covariates": [[1], [2]], **known}, known),
        ("'b' has covariates", {"covariates": [[1], [2]], **known}, {"covariates": [[1], [3]], **known}),
    ):
        logs = [small_log(**one), small_log(**other)]
        refuses(errors.InvalidDataError, ValueError, message, partial(Trajectories.concatenate, logs))
    refuses(errors.InvalidDataError, ValueError, "nothing", partial(Trajectories.concatenate, []))
    refuses(errors.InvalidArgumentError, ValueError, "agent", partial(small_log().select, []))
    refuses(errors.InvalidArgumentError, ValueError, "twice", partial(small_log().select, [0, 0]))


def test_messages_name_the_cause(tmp_path):
    """Nothing given, numbers beyond float32, a task that is not known here, a Parquet file that is none."""
    columns = {"agents": [0, 0], "actions": [0, 1], "next_observations": np.zeros((2, 1))}
    for observations, message in (
        (None, "observations is not given"),
        ([[0.0], [1e39]], r"observations holds \[1e\+39\] in row 1: too large for float32"),
        ([[0.0], [np.inf]], r"observations holds \[inf\] in row 1: NaN and infinity are not allowed"),
    ):
        with pytest.raises(errors.InvalidDataError, match=message):
            Trajectories.from_arrays(observations=observations, **columns)
    with pytest.raises(errors.InvalidArgumentError, match="names task 'Gluc', which is not known here"):
        number_of_actions(Trajectories.from_arrays(observations=np.ones((2, 1)), task="Gluc", **columns), None, None)
    pytest.importorskip("pyarrow")
    (tmp_path / "log.parquet").write_bytes(b"no table")
    with pytest.raises(errors.InvalidDataError, match="log.parquet cannot be read.*; write or fetch it again"):
        from_dataframe(tmp_path / "log.parquet", observations=["x"])


@pytest.fixture
def model(tmp_path):
    """An ensemble's file."""
    random_ensemble("CartPole").save(tmp_path / "model.persim")
    return tmp_path / "model.persim"


def change_header(path, **changes):
    """Write a file again with another document in its header."""
    with safe_open(path, "numpy") as file:
        document = {**json.loads(file.metadata()["persim_gym"]), **changes}
    document = {key: value for key, value in document.items() if value is not ...}
    save_file(load_file(path), path, metadata={"persim_gym": json.dumps(document)})


def change_array(path, name, value):
    """Write a file again with one number of an array replaced."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    arrays[name].flat[0] = value
    save_file(arrays, path, metadata=metadata)


def change_written(path, name, value):
    """Do so as if this had been written, in a file without digests."""
    change_header(path, digests=...)
    change_array(path, name, value)


def change_slightly(path):
    """Double a weight, as one wrong bit of its exponent does."""
    change_array(path, "state.0.weight", 2 * load_file(path)["state.0.weight"].flat[0])


@pytest.mark.parametrize(
    ("message", "spoil"),
    [
        ("cut short", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("cut short", lambda path: path.write_bytes(path.read_bytes()[:50])),
        ("cut short", lambda path: path.write_bytes(b"")),
        ("not a file of persim-gym", lambda path: path.write_text("observation,action\n0.1,1\n" * 20)),
        ("not a file of persim-gym", lambda path: save_file(load_file(path), path)),
        ("upgrade persim-gym", lambda path: change_header(path, format_version=storage.FORMAT_VERSION + 1)),
        ("of kind 'trajectories'; one of kind 'ensemble'", lambda path: change_header(path, kind="trajectories")),
        ("missing or has the wrong shape", lambda path: change_header(path, task="MountainCar")),
        ("missing or has the wrong shape", lambda path: change_header(path, num_agents=4, agent_labels=None)),
        ("damaged", lambda path: change_header(path, config=...)),
        ("damaged", lambda path: change_header(path, provenance=...)),
        ("damaged", lambda path: change_header(path, agent_labels=["only one"])),
        ("damaged", lambda path: change_header(path, config={"depth": 3})),
        ("damaged", lambda path: change_header(path, provenance=None)),
        ("damaged", lambda path: change_header(path, outcomes=None)),
        ("1 of them different", lambda path: change_header(path, agent_labels=["a", "a", "a"])),
        ("task_definition", lambda path: change_header(path, task="Mine", task_definition=[])),
        ("task_definition", lambda path: change_header(path, task="Mine", task_definition={})),
        ("task_definition", lambda path: change_header(path, task="Mine", task_definition={"reference": 5})),
        ("'normalizer.change_scale' holds NaN", lambda path: change_written(path, "normalizer.change_scale", np.nan)),
        ("'agent.weight' holds NaN", lambda path: change_written(path, "agent.weight", np.inf)),
        ("'state.0.weight' holds NaN", lambda path: change_written(path, "state.0.weight", np.nan)),
        ("'agent.weight' is not what was", lambda path: change_array(path, "agent.weight", np.nan)),
        (r"model\.persim is damaged: array 'state.0.weight' is not what was", change_slightly),
        ("damaged", lambda path: change_header(path, digests=3)),
        ("folder", lambda path: (path.unlink(), path.mkdir())),
    ],
)
def test_damaged_and_foreign_models(model, registry, message, spoil):
    """Cut short, of a newer format, of another kind, not ours, with a header that lies: never loaded or registered."""
    spoil(model)
    before = set(registry)
    for call in (Ensemble.load, persim_gym.load, partial(persim_gym.register_ensemble, name="Bad")):
        refuses(errors.FileFormatError, ValueError, message, partial(call, model))
    assert set(registry) == before


def test_models_of_another_task(model):
    """Asked for by task; and of a task that this session does not know."""
    message = r"model\.persim is of task CartPole, not of MountainCar"
    refuses(errors.FileFormatError, ValueError, message, lambda: persim_gym.load(model, task="MountainCar"))
    assert persim_gym.load(model, task="CartPole").task.name == "CartPole"
    change_header(model, task="Insulin")
    refuses(errors.UnknownNameError, KeyError, "'Insulin'.*register_task", lambda: persim_gym.load(model))


@pytest.mark.parametrize("column", ["actions", "next_observations", "episode_starts", "agents"])
def test_damaged_logs(tmp_path, column):
    """A file that lacks a column, or whose columns do not fit together."""
    path = tmp_path / "log"
    small_log().save(path)
    arrays, document = storage.read(path, "trajectories")
    arrays = {name: np.array(array) for name, array in arrays.items()}
    short = {**arrays, column: arrays[column][:0] if column == "episode_starts" else arrays[column][:-1]}
    missing = {name: array for name, array in arrays.items() if name != column}
    for damaged in (short, missing):
        storage.write(path, "trajectories", damaged, document)
        with pytest.raises(errors.PerSimError):
            Trajectories.load(path)
    storage.write(path, "trajectories", arrays, {**document, "agent_labels": ["0"]})
    with pytest.raises(errors.PerSimError, match="agent indices"):
        Trajectories.load(path)
    shutil.copy(persim_gym.registration.SHIPPED_MODELS / "CartPole.persim", path)
    refuses(
        errors.FileFormatError,
        ValueError,
        "one of kind 'trajectories'",
        lambda: Trajectories.load(path),
    )


@pytest.mark.parametrize("call", [persim_gym.load, persim_gym.register_ensemble, Trajectories.load])
def test_files_that_are_not_there(tmp_path, call):
    """The message names the file."""
    refuses(errors.PerSimError, FileNotFoundError, "nowhere", lambda: call(tmp_path / "nowhere.persim"))


@pytest.mark.parametrize("env_id", ["PerSim-CartPole-agent7-v0", "Heterogeneous-CartPole-v0"])
def test_states_that_are_none(env_id):
    """In `reset`: wrong length, wrong axes, not finite, not numbers; and the environment still works afterwards."""
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    for state, message in (
        ([0.0, 0.0], r"shape \(4,\): position, velocity, angle, angular velocity; got shape \(2,\)"),
        (np.zeros((1, 4)), r"got shape \(1, 4\)"),
        ([0.0, np.nan, 0.0, 0.0], "must be finite, got nan as velocity"),
        ("upright", "not an array of numbers"),
        ([0.0, 0.0, 3.0, 0.0], "angle = 3 is outside its range from -0.4.* to 0.4.*: correct the state, or widen"),
    ):
        refuses(errors.InvalidStateError, ValueError, message, partial(env.reset, options={"state": state}))
    env.reset(seed=0)
    env.step(0)


@pytest.mark.parametrize("state", [[0.0, 0.0], np.zeros((3, 4)), [np.inf] * 4, ["upright"] * 4, [[0.0] * 4, [0.0] * 2]])
def test_states_that_are_none_in_a_vector(state):
    """For two environments."""
    vector = gymnasium.make_vec(GENERIC, 2, vectorization_mode="vector_entry_point")
    refuses(errors.InvalidStateError, ValueError, "state", partial(vector.reset, options={"state": state}))


def test_a_ragged_reset_mask():
    vector = gymnasium.make_vec(GENERIC, 2, vectorization_mode="vector_entry_point")
    vector.reset()
    reset = partial(vector.reset, options={"reset_mask": [[True], [True, False]]})
    refuses(errors.InvalidArgumentError, ValueError, r"reset_mask must be booleans of shape \(2,\)", reset)


@pytest.mark.parametrize("action", [2, -1, 0.5, None, [0, 1], "left", np.nan])
@pytest.mark.parametrize("env_id", ["PerSim-CartPole-agent7-v0", "Heterogeneous-CartPole-v0"])
def test_actions_that_are_none(env_id, action):
    """Outside a discrete space."""
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    refuses(errors.InvalidActionError, ValueError, "one integer from 0 to 1", lambda: env.step(action))
    env.step(1)


def test_continuous_actions_that_are_none(half_cheetah):
    """Of the wrong length, or not finite."""
    env = PersonalizedEnv(half_cheetah)
    env.reset(seed=0)
    for action in (np.zeros(5), np.full(6, np.nan), 0.0, "run"):
        refuses(errors.InvalidActionError, ValueError, "6 finite numbers", partial(env.step, action))
    vector = PersonalizedVectorEnv(half_cheetah, 2)
    vector.reset(seed=0)
    for wrong in (np.full((2, 6), np.nan), np.array([["run"] * 6] * 2), np.zeros((3, 6)), np.zeros(6)):
        refuses(errors.InvalidActionError, ValueError, "must be finite numbers", partial(vector.step, wrong))


def test_what_a_simulator_refuses():
    """Shapes and actions that are not its task's, named with those wanted."""
    simulator = random_ensemble("CartPole").simulator(agents=[0, 1])
    states, ones = np.zeros((2, 4)), np.ones(2, int)
    for kind, message, call in (
        (errors.InvalidStateError, r"\(B, 4\)", lambda: simulator.step(np.zeros((2, 3)), ones)),
        (errors.InvalidStateError, r"\(B, 4\)", lambda: simulator.step(np.zeros(4), ones)),
        (errors.InvalidStateError, "every axis at least 1", lambda: simulator.step(np.zeros((0, 4)), ones[:0])),
        (errors.InvalidStateError, "not an array of numbers", lambda: simulator.step([["left"] * 4] * 2, ones)),
        (errors.InvalidStateError, "2 agents", lambda: simulator.step(np.zeros((3, 4)), np.ones(3, int))),
        (errors.InvalidActionError, "from 0 to 1 .*, got 1 to 2", lambda: simulator.step(states, ones + [0, 1])),
        (errors.InvalidActionError, "whole numbers .*, float64 of", lambda: simulator.step(states, ones.astype(float))),
        (errors.InvalidActionError, r"\(2,\), got \[\[1\], \[1, 0\]\]", lambda: simulator.step(states, [[1], [1, 0]])),
        (errors.InvalidActionError, r"of shape \(2, H\)", lambda: simulator.rollout(states, ones)),
    ):
        refuses(kind, ValueError, message, call)


def test_what_a_planner_refuses():
    """Observations that are no numbers, or of another size."""
    agent = MPCAgent(random_ensemble("CartPole").simulator(0), horizon=2, num_candidates=4)
    for observation, message in (
        (["left"] * 4, "not an array of numbers"),
        ([[0.0] * 4, [0.0] * 2], "not an array of numbers"),
        (np.zeros((1, 1, 4)), r"\(E, 4\); got"),
    ):
        refuses(errors.InvalidStateError, ValueError, message, partial(agent.predict, observation))
    for value in (np.nan, np.inf):
        observations = np.zeros((2, 4))
        observations[1, 2] = value
        message = f"must be finite, got {value} as angle"
        refuses(errors.InvalidStateError, ValueError, message, partial(agent.predict, observations))
    ragged = partial(agent.predict, np.zeros((2, 4)), [[0, 1], [0]])
    refuses(errors.InvalidArgumentError, ValueError, r"state has shape \(\), expected \(2, 2\)", ragged)
    agent.predict(observations, running=[True, False])  # what an episode that is over shows does not matter


def plan_cart_poles(observations, *state):
    agent = MPCAgent(random_ensemble("CartPole").simulator(0), horizon=5, num_candidates=4)
    return agent.predict(observations, *state)


def plan_cheetah(**settings):
    return MPCAgent(random_ensemble("HalfCheetah").simulator(0), horizon=2, **settings).predict(np.zeros((1, 18)))


def cheetah_agent(planner, **settings):
    return lambda: MPCAgent(random_ensemble("HalfCheetah").simulator(0), planner=planner, **settings)


def value_iteration(**settings):
    return persim_gym.ValueIterationAgent(random_ensemble("CartPole").simulator(0), **settings)


def generate_cart_pole(**settings):
    return persim_gym.generate(random_ensemble("CartPole"), [0], policy="random", progress=False, **settings)


def unbounded_actions():
    task = random_ensemble("HalfCheetah").task
    return dataclasses.replace(task, action_space=spaces.Box(-np.inf, np.inf, (6,), np.float32))


WALK = perfect_walk_ensemble(walk_task())
SEEDED = {
    "MLPPolicy": lambda seed: persim_gym.MLPPolicy("CartPole", [(np.zeros((4, 2)), np.zeros(2))], seed=seed),
    "MPCAgent": lambda seed: MPCAgent(WALK.simulator(0), seed=seed),
    "calibrate": lambda seed: persim_gym.calibrate(WALK, small_log(), seed=seed),
    "collect": lambda seed: collect("CartPole", num_agents=1, seed=seed),
    "fit": lambda seed: fit_tiny(small_log(), seed=seed),
    "Trajectories.split": lambda seed: small_log().split(0.5, by="agent", seed=seed),
    "fit_covariate_map": lambda seed: persim_gym.fit_covariate_map(WALK, seed=seed),
    "forecast": lambda seed: persim_gym.forecast(WALK, 0, np.zeros((1, 2)), [[0]], seed=seed),
    "generate": lambda seed: persim_gym.generate(WALK, [0], 1, "random", seed=seed, progress=False),
    "interval_coverage": lambda seed: persim_gym.interval_coverage(WALK, small_log(), seed=seed),
    "mpc_returns": lambda seed: mpc_returns(WALK, seed=seed),
    "plot_frames": lambda seed: persim_gym.plot_frames(WALK, "never.png", agents=[0], seed=seed),
    "plot_trajectories": lambda seed: persim_gym.plot_trajectories(WALK, "never.png", agents=[0], seed=seed),
    "policy_returns": lambda seed: persim_gym.policy_returns(WALK, "random", seed=seed),
    "prediction_error": lambda seed: prediction_error(WALK, policy="random", seed=seed),
    "simulated_policy_returns": lambda seed: persim_gym.simulated_policy_returns(WALK, "random", seed=seed),
    "true_mpc_returns": lambda seed: persim_gym.true_mpc_returns(WALK, seed=seed),
    "value_iteration_returns": lambda seed: persim_gym.value_iteration_returns(WALK, seed=seed),
    "logging_policy": lambda seed: logging_policy("pure", "CartPole", np.ones((1, 2)), seed=seed),
    "test_policy": lambda seed: logging_policies.test_policy("CartPole", seed=seed),
}
LISTED = {
    "Ensemble.with_agents": WALK.with_agents,
    "Trajectories.select": small_log().select,
    "generate": lambda agents: persim_gym.generate(WALK, agents, 1, "random", progress=False),
    "mpc_returns": lambda agents: mpc_returns(WALK, agents=agents),
    "plot_frames": lambda agents: persim_gym.plot_frames(WALK, "never.png", agents=agents),
    "plot_trajectories": lambda agents: persim_gym.plot_trajectories(WALK, "never.png", agents=agents),
    "policy_returns": lambda agents: persim_gym.policy_returns(WALK, "random", agents=agents),
    "simulated_policy_returns": lambda agents: persim_gym.simulated_policy_returns(WALK, "random", agents=agents),
    "prediction_error": lambda agents: prediction_error(WALK, policy="random", agents=agents),
    "true_mpc_returns": lambda agents: persim_gym.true_mpc_returns(WALK, agents=agents),
    "value_iteration_returns": lambda agents: persim_gym.value_iteration_returns(WALK, agents=agents),
}
ROWS = {
    "Ensemble.simulator": lambda agents: WALK.simulator(agents=agents),
    "forecast": lambda agents: persim_gym.forecast(WALK, agents, np.zeros((1, 2)), [[0]]),
    "nearest_agents": lambda agents: persim_gym.nearest_agents(WALK, agents[0]),
    "personalize": lambda agents: persim_gym.personalize(WALK, agents=agents),
    "plot_agents": lambda agents: persim_gym.plot_agents(WALK, "never.png", label=agents),
}
UNKNOWN, NOT_LISTED = ([99], "no agent 99"), (99, r"(agents|label)=99 must be a list of .*, such as \[99\]")
BAD = [
    *((name, SEEDED, seed, f"seed={seed!r} must be a whole") for name in SEEDED for seed in (-1, 1.5, True, "one")),
    *((name, LISTED, *bad) for name in LISTED for bad in (UNKNOWN, NOT_LISTED, ("x", "='x' must be a list"),
      ([0, 0], r"agents=\[0, 0\] must .* none twice: 0 is"), ([], r"agents=\[\] must name at least one"))),
    *((name, ROWS, *UNKNOWN) for name in ROWS if name != "personalize"),
    *((name, ROWS, *NOT_LISTED) for name in ("Ensemble.simulator", "personalize", "plot_agents")),
    ("forecast", ROWS, [0, 1], r"agents=\[0, 1\] must be one agent, or 1, one for each observation"),
    ("forecast", ROWS, 99, "no agent 99"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "calls", "bad", "message"), BAD, ids=[f"{name}-{bad}" for name, _, bad, _ in BAD])
def test_a_bad_seed_and_a_bad_agent(name, calls, bad, message):
    """Wherever one can be given the error is ours, and has the value in it."""
    with pytest.raises(errors.PerSimError, match=message):
        calls[name](bad)


@pytest.mark.parametrize(("argument", "calls"), [("seed", SEEDED), ("agents", {**LISTED, **ROWS})])
def test_no_public_function_was_forgotten(argument, calls):
    """Whatever takes a seed, or a list of agents, is among those above; classes take agents as arrays."""
    public = {name: getattr(persim_gym, name) for name in persim_gym.__all__}
    asked = {name: one for name, one in public.items() if inspect.isfunction(one) or argument == "seed"}
    taking = {name for name, one in asked.items() if callable(one) and argument in inspect.signature(one).parameters}
    assert taking and taking <= calls.keys()


def test_generators_are_seeds_where_they_were():
    rng = np.random.default_rng(3)
    for seed in (rng, np.int64(3), None):
        assert MPCAgent(WALK.simulator(0), seed=seed, horizon=2, num_candidates=4).predict(np.zeros(2))[0].shape == ()
    assert MPCAgent(WALK.simulator(0), seed=rng)._rng is rng


@pytest.mark.parametrize("members", [[0, 0], [], [2], [-1], ["a"], [0.0], 1])
def test_members_are_distinct_and_known(members):
    refuses(errors.InvalidArgumentError, ValueError, "members=", lambda: WALK.with_members(members))


def test_a_model_without_posteriors_lacks_statistics():
    known_posterior = LearnedDynamics.known_posterior
    refuses(errors.MissingStatisticsError, ValueError, "object knows no posterior", lambda: known_posterior(object()))


def with_arguments(call, *arguments, **settings):
    return lambda: call(*arguments, **settings)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("num_agents=0", with_arguments(collect, "CartPole", num_agents=0)),
        ("covariates", with_arguments(collect, "CartPole", covariates=[[1.0]])),
        ("length", with_arguments(collect, "CartPole", covariates=[[10.0, -0.5]])),
        ("length=-3", with_arguments(gymnasium.make, "Heterogeneous-CartPole-v0", length=-3)),
        ("length", with_arguments(gymnasium.make, "Heterogeneous-CartPole-v0", length="long")),
        ("render_mode", with_arguments(PersonalizedEnv, random_ensemble("CartPole"), render_mode="ascii")),
        ("aggregate='mode' must be one of mean, median", with_arguments(gymnasium.make, GENERIC, aggregate="mode")),
        ("ensemble='all' must be one of", with_arguments(gymnasium.make, GENERIC, ensemble="all")),
        ("num_envs", with_arguments(gymnasium.make_vec, GENERIC, 3, "vector_entry_point", agent=[0, 1])),
        ("rank=0", lambda: fit_tiny(small_log(), rank=0)),
        ("rank='many'", lambda: fit_tiny(small_log(), rank="many")),
        ("epochs=0", lambda: fit_tiny(small_log(), epochs=0)),
        ("validation_fraction", lambda: fit_tiny(small_log(), validation_fraction=1.0)),
        ("validation_fraction", lambda: fit_tiny(small_log(), validation_fraction=0, rank="auto")),
        ("device='abacus'", lambda: fit_tiny(small_log(), device="abacus")),
        ("the log names no task", lambda: fit_tiny(small_log(task=None))),
        ("planner='grid' must be one of", lambda: MPCAgent(random_ensemble("CartPole").simulator(0), planner="grid")),
        ("does not plan discrete", lambda: MPCAgent(random_ensemble("CartPole").simulator(0), planner="cem")),
        ("fraction=0.1 of 6 transitions is none", lambda: fit_tiny(small_log(), validation_fraction=0.1, rank="auto")),
        ("rank=2.5 must be a whole number", lambda: fit_tiny(small_log(), rank=2.5)),
        ("seed=-1 must be a whole number", lambda: fit_tiny(small_log(), seed=-1)),
        ("seed=None must be a whole number", lambda: fit_tiny(small_log(), seed=None)),
        ("rank='none' must be a whole number", lambda: fit_tiny(small_log(), rank="none")),
        ("config={'rank': 3} must be a name", lambda: fit(small_log(), config={"rank": 3}, progress=False)),
        ("state_hidden=256 must be a tuple", lambda: PerSimConfig(state_hidden=256)),
        (r"state_hidden\[1\]=0 must be a whole", lambda: PerSimConfig(state_hidden=(8, 0))),
        ("halve_learning_rate_every=-1", lambda: PerSimConfig(halve_learning_rate_every=-1)),
        ("weight_decay=nan must be a finite number of at least 0", lambda: PerSimConfig(weight_decay=np.nan)),
        ("learning_rate=inf must be a finite number above 0", lambda: PerSimConfig(learning_rate=np.inf)),
        ("checkpoint='' must be a file name", lambda: fit_tiny(small_log(), checkpoint="")),
        ("agents=3 must be a list", lambda: random_ensemble("CartPole").simulator(agents=3)),
        ("agents='agent 1' must be a list", lambda: random_ensemble("CartPole").simulator(agents="agent 1")),
        (
            "num_candidate=5 is no setting of planner 'random_shooting'; it has num_candidates",
            lambda: MPCAgent(random_ensemble("CartPole").simulator(0), num_candidate=5),
        ),
        ("num_candidates=7.5", lambda: MPCAgent(random_ensemble("CartPole").simulator(0), num_candidates=7.5)),
        ("num_elites=9 must be at most num_candidates=4", lambda: plan_cheetah(num_elites=9, num_candidates=4)),
        ("execute='mean' must be one of elite_mean, best", lambda: plan_cheetah(execute="mean")),
        ("smoothing=5 must be", lambda: plan_cheetah(smoothing=5)),
        ("smoothing=1.0 must be at least 0 and below 1", cheetah_agent("icem", smoothing=1.0)),
        ("smoothing=nan must be at least 0 and below 1", cheetah_agent("icem", smoothing=np.nan)),
        ("num_elites=9 must be at most num_candidates=4", cheetah_agent("icem", num_elites=9, num_candidates=4)),
        ("num_elites=201 must be at most num_candidates=200", cheetah_agent("cem", num_elites=201)),
        ("num_elites=2.5 must be a whole number", cheetah_agent("icem", num_elites=2.5)),
        ("num_elites=None must be a whole number", cheetah_agent("icem", num_elites=None)),
        ("num_candidates=None must be a whole number", cheetah_agent("cem", num_candidates=None)),
        ("num_rounds=0 must be a whole number", cheetah_agent("mppi", num_rounds=0)),
        ("decay=0.9 must be a finite number of at least 1", cheetah_agent("icem", decay=0.9)),
        ("kept_fraction=1.1 must be from 0 to 1", cheetah_agent("icem", kept_fraction=1.1)),
        ("noise_exponent='pink' must be a finite number", cheetah_agent("icem", noise_exponent="pink")),
        ("temperature=0 must be a finite number above 0", cheetah_agent("mppi", temperature=0)),
        ("deviation=-1 must be a finite number of at least 0", cheetah_agent("mppi", deviation=-1)),
        ("noise_smoothing=1 must be at least 0 and below 1", cheetah_agent("mppi", noise_smoothing=1)),
        ("initial_deviation=0.5 must be a range", lambda: plan_cheetah(initial_deviation=0.5)),
        (r"initial_deviation=\(0.6, 0.3\) must be .* lower", lambda: plan_cheetah(initial_deviation=(0.6, 0.3))),
        ("objective=5 must be a persim_gym.tasks.PlanningObjective", lambda: plan_cheetah(objective=5)),
        ("initial_deviation=inf must be a finite number", lambda: plan_cheetah(initial_deviation=(0.3, np.inf))),
        (
            r"initial_deviation=\(0.3, 0.6\) must be a finite number",
            lambda: plan_cheetah(planner="icem", initial_deviation=(0.3, 0.6)),
        ),
        (
            "must be given by name, such as {'force'",
            lambda: PersonalizedEnv(random_ensemble("CartPole"), covariates=[3]),
        ),
        ("must have finite bounds", lambda: unbounded_actions()),
        (r"points=\(5, 6, 7\) must be one whole number, or 4", lambda: value_iteration(points=(5, 6, 7))),
        ("points=2.5 must be a whole number", lambda: value_iteration(points=2.5)),
        ("bounds='wide' must be", lambda: value_iteration(bounds="wide")),
        ("max_disagreement='a' must be above 0", lambda: generate_cart_pole(max_disagreement="a")),
        ("seed=-1 must be a whole number", lambda: generate_cart_pole(seed=-1)),
        ("episodes_per_agent=1.5 must be", lambda: generate_cart_pole(episodes_per_agent=1.5)),
        ("agents=4 must be a list", lambda: mpc_returns(perfect_walk_ensemble(walk_task()), agents=4)),
        ("max_episode_steps='9' must be", lambda: PersonalizedEnv(random_ensemble("CartPole"), time_limit="9")),
        ("num_envs=2.5 must be", lambda: PersonalizedVectorEnv(random_ensemble("CartPole"), 2.5)),
        ("horizon=0", lambda: MPCAgent(random_ensemble("CartPole").simulator(0), horizon=0)),
        ("num_candidates=0", lambda: MPCAgent(random_ensemble("CartPole").simulator(0), num_candidates=0)),
        ("cannot plan in 3", lambda: MPCAgent(3)),
        (r"cannot plan in .*ensemble.simulator\(agent\)", lambda: MPCAgent(random_ensemble("CartPole"))),
        (
            r"episode_start=\[0.5, 0\] must be truth values, one for all or 2",
            lambda: plan_cart_poles(np.zeros((2, 4)), np.zeros((2, 5), int), [0.5, 0]),
        ),
        (
            r"episode_start of shape \(3,\) must be one truth value, or 2",
            lambda: plan_cart_poles(np.zeros((2, 4)), np.zeros((2, 5), int), [True, False, True]),
        ),
        (
            r"ensemble='CartPole' must be an ensemble: persim_gym.load\(name\)",
            lambda: persim_gym.generate("CartPole", [0]),
        ),
        (r"must be an ensemble: .*env.unwrapped", lambda: persim_gym.generate(gymnasium.make(GENERIC), [0])),
        (
            "one agent, not 3: more go with .*vectorization_mode='vector_entry_point'",
            lambda: gymnasium.make_vec(GENERIC, 3, vectorization_mode="sync", agent=[0, 1, 2]),
        ),
        ("episodes=0", lambda: prediction_error(perfect_walk_ensemble(walk_task()), policy="random", episodes=0)),
        ("episodes=0", lambda: mpc_returns(perfect_walk_ensemble(walk_task()), episodes=0)),
    ],
)
def test_arguments_out_of_range(message, call):
    """The message names the argument, or its value."""
    refuses(errors.InvalidArgumentError, ValueError, message, call)


def test_training_that_diverges():
    """It says what to change, and no ensemble of NaN is returned."""
    log = collect("CartPole", num_agents=5, seed=0)
    config = TINY.with_changes(learning_rate=1e18, epochs=5)
    refuses(errors.TrainingDivergedError, ArithmeticError, "learning_rate", lambda: fit_tiny(log, config=config))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("num_envs=10000000000000000", lambda: PersonalizedVectorEnv(random_ensemble("CartPole"), num_envs=10**16)),
        ("state_hidden", lambda: fit_tiny(small_log(), config=TINY.with_changes(state_hidden=(10**16,)))),
        (
            "num_candidates",
            lambda: MPCAgent(random_ensemble("CartPole").simulator(0), num_candidates=10**15).predict(np.zeros(4)),
        ),
    ],
)
def test_out_of_memory(message, call):
    """The message names what to lower."""
    refuses(errors.OutOfMemoryError, MemoryError, message, call)


@pytest.mark.parametrize(
    "make", [random_ensemble("CartPole").simulator, partial(PersonalizedVectorEnv, random_ensemble("CartPole"))]
)
def test_a_device_that_does_not_exist(make):
    """It is named, for simulators and vector environments alike."""
    for device in ("cuda:99", "abacus"):
        refuses(errors.InvalidArgumentError, ValueError, device, partial(make, agent=0, device=device))


@pytest.mark.parametrize("agents", [[0, 1, 2, 1], [1] * 4])
def test_any_layout_of_arrays(agents):
    """Columns first, strided, float64, read-only, small integers: the same steps as from plain float32 rows."""
    ensemble, rng = random_ensemble("CartPole"), np.random.default_rng(0)
    states, actions = rng.normal(size=(4, 4)).astype(np.float32), np.array([0, 1, 1, 0])
    simulator = ensemble.simulator(1) if agents[0] == 1 else ensemble.simulator(agents=agents)
    expected = simulator.step(states, actions).next_observations
    frozen = states.copy()
    frozen.flags.writeable = False
    for layout in (np.asfortranarray(states), np.repeat(states, 2, axis=1)[:, ::2], states.astype(np.float64), frozen):
        for kind in (np.int8, np.uint64):
            found = simulator.step(layout, np.repeat(actions, 3)[::3].astype(kind)).next_observations
            np.testing.assert_array_equal(found, expected)


def test_a_damaged_checkpoint(tmp_path, monkeypatch):
    """It is refused by name and left where it is."""
    keep_checkpoints(monkeypatch)
    fit_tiny(small_log(), checkpoint=tmp_path / "run", validation_fraction=0)
    (checkpoint,) = tmp_path.iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-20])
    resume = partial(fit_tiny, small_log(), checkpoint=tmp_path / "run", validation_fraction=0)
    refuses(errors.FileFormatError, ValueError, checkpoint.name, resume)
    assert checkpoint.exists()


def test_a_task_without_a_true_system():
    """Nothing can be collected or measured in it, and it has no pictures; simulating it works."""
    task = dataclasses.replace(walk_task(), make_system=None)
    with pytest.raises(errors.PerSimError, match="make_system"):
        collect(task, num_agents=2)
    ensemble = random_ensemble(task)
    with pytest.raises(errors.PerSimError, match="renderer"):
        PersonalizedEnv(ensemble, render_mode="rgb_array")
    env = PersonalizedEnv(ensemble)
    env.reset(seed=0)
    assert env.step(1)[0].shape == (2,)


def test_missing_mujoco_names_its_extra(run_python):
    """Without MuJoCo the cheetah says what to install, and CartPole works."""
    code = """
import sys
sys.modules["mujoco"] = None
import gymnasium, persim_gym
gymnasium.make("Heterogeneous-CartPole-v0")
try:
    gymnasium.make("Heterogeneous-HalfCheetah-v0")
except persim_gym.errors.MissingExtraError as error:
    print(isinstance(error, ImportError), error)
"""
    assert run_python(code).startswith('True mujoco is needed for this: pip install "persim-gym[mujoco]"')


@pytest.mark.parametrize(
    "call",
    [
        lambda model: persim_gym.log_error(model, "log.safetensors"),
        lambda model: persim_gym.interval_coverage(model, "log.safetensors"),
        lambda model: persim_gym.update(model, model),
        lambda model: persim_gym.refit_factors(model, "x"),
        lambda model: persim_gym.personalize(model, "x"),
        lambda model: persim_gym.calibrate(model, "x"),
        lambda model: persim_gym.Trajectories.concatenate(["x"]),
        lambda model: persim_gym.interop.to_dataframe(model),
    ],
)
def test_what_is_no_log_is_told_so(call):
    with pytest.raises(errors.InvalidArgumentError, match="is no log: give Trajectories"):
        call(random_ensemble("MountainCar"))


@pytest.mark.parametrize(
    "call",
    [
        lambda log: persim_gym.log_error(log, log),
        lambda log: persim_gym.interval_coverage(log, log),
        lambda log: persim_gym.update("x", log),
        lambda log: persim_gym.refit_factors(log, log),
        lambda log: persim_gym.personalize(log, log),
        lambda log: persim_gym.calibrate(log, log),
        lambda log: persim_gym.generate(log, [0], 1),
        lambda log: persim_gym.nearest_agents(log, 0),
        lambda log: persim_gym.forecast(log, 0, np.zeros((1, 4)), np.zeros((1, 2), int)),
        lambda log: persim_gym.mpc_returns(log),
        lambda log: persim_gym.plot_agents(log, "x.png"),
        lambda log: persim_gym.register_ensemble(log),
    ],
)
def test_what_is_no_ensemble_is_told_so(call):
    with pytest.raises(errors.InvalidArgumentError, match="must be an ensemble: persim_gym.load"):
        call(small_log())


@pytest.mark.parametrize("kind", [PersonalizedEnv, PersonalizedVectorEnv])
@pytest.mark.parametrize("model", [small_log(), None, 3])
def test_what_is_no_model_of_an_environment_is_told_so(kind, model):
    with pytest.raises(errors.InvalidArgumentError, match="model=.* must be an ensemble: persim_gym.load"):
        kind(model)


@pytest.mark.parametrize("kind", [PersonalizedEnv, PersonalizedVectorEnv])
def test_agents_and_covariates_of_an_environment_that_are_none(kind):
    ensemble = random_ensemble("MountainCar")
    with pytest.raises(errors.UnknownNameError, match=r"no agent array\(1\)"):
        kind(ensemble, agent=np.array(1))
    with pytest.raises(errors.InvalidArgumentError, match=r"covariates 0\.003 must be given by name, such as"):
        kind(ensemble, covariates=0.003)


AGE = Covariate("age", 18, 90, 50)


def walk_with(**changes):
    return dataclasses.replace(walk_task(), **changes)


def personalize_car(covariates, **arguments):
    ensemble = random_ensemble("MountainCar", num_agents=8)
    ensemble = dataclasses.replace(ensemble, covariates=np.linspace(0.001, 0.004, 8)[:, None])
    return persim_gym.personalize(ensemble, covariates=covariates, **arguments)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("provenance='ward A' must be a dict, such as", lambda: small_log(provenance="ward A")),
        ("path=None must be a file, or a model's name", lambda: persim_gym.load(None)),
        ("path=3 must be a file, or a model's name", lambda: persim_gym.load(3)),
        (r"covariates=\[.*must be given by label", lambda: personalize_car([{"gravity": 0.004}])),
        ("must be of Covariate: give", lambda: walk_with(covariates=("age",))),
        ("two covariates named 'age'", lambda: walk_with(covariates=(AGE, AGE))),
        ("planning_objective=<function .* must be a persim", lambda: walk_with(planning_objective=lambda s, a, t: 0)),
        (r"grid_bounds=\(0, 1\) .* must be \(low, high\), 2 numbers each", lambda: walk_with(grid_bounds=(0, 1))),
        ("make_system=3 .* must be a function", lambda: walk_with(make_system=3)),
    ],
)
def test_arguments_of_another_kind(message, call):
    refuses(errors.InvalidArgumentError, ValueError, message, call)


def test_labels_of_newcomers_may_be_numbers():
    assert personalize_car({5: {"gravity": 0.002}}).agent_labels[-1] == "5"
    assert personalize_car({5: {"gravity": 0.002}}, agents=[5]).agent_labels[-1] == "5"


def test_what_is_no_minari_data_set():
    pytest.importorskip("minari")
    refuses(
        errors.InvalidArgumentError, ValueError, "dataset=None must be a Minari data set", lambda: from_minari(None)
    )


def test_what_is_no_task_is_told_so():
    with pytest.raises(errors.InvalidArgumentError, match="task='x' must be a Task"):
        persim_gym.register_task("x")
