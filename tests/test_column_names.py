"""Names of observations and actions: from a table, by log, task, ensemble and file, to the tables written of them."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

import persim_gym
from persim_gym import errors, storage
from persim_gym.interop import from_dataframe, to_dataframe
from persim_gym.tasks import registry

pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore:task Ward leaves", "ignore:the learned")

NAMES = {"observation_names": ("glucose", "step"), "action_names": ("dose",)}


def table(**changes):
    rng = np.random.default_rng(0)
    columns = {
        "patient": np.repeat(["p-4", "p-17", "p-2"], 12),
        "glucose": rng.normal(150, 10, 36),
        "step": rng.normal(0, 1, 36),
        "dose": rng.integers(3, size=36),
        "score": rng.normal(size=36),
    }
    return pandas.DataFrame(columns | changes)


def read(frame, **changes):
    roles = {"agent": "patient", "observations": ["glucose", "step"], "action": "dose", "reward": "score"}
    return from_dataframe(frame, **{**roles, "task": "Ward", **changes})


def ward(**changes):
    return persim_gym.Task(
        name="Ward", observation_space=spaces.Box(-1e4, 1e4, (2,)), action_space=spaces.Discrete(3),
        max_episode_steps=20, **changes,
    )  # fmt: skip


def learned(log, task):
    return persim_gym.fit(log, task=task, progress=False, epochs=2, num_members=2, state_hidden=(8,), rank=2)


@pytest.fixture
def log():
    return read(table())


def test_a_log_keeps_the_names_of_its_tables_columns(log, tmp_path):
    assert log.given_names == NAMES
    log.save(tmp_path / "log.safetensors")
    parts = [persim_gym.Trajectories.load(tmp_path / "log.safetensors"), log.select(["p-2"]), *log.split(0.5)]
    parts.append(persim_gym.Trajectories.concatenate([replace(log, observation_names=()), log]))
    assert all(part.given_names == NAMES for part in parts)
    arrays, document = storage.read(tmp_path / "log.safetensors", "trajectories")
    older = {name: value for name, value in document.items() if not name.endswith("n_names")}
    storage.write(tmp_path / "older.safetensors", "trajectories", arrays, older)
    assert persim_gym.Trajectories.load(tmp_path / "older.safetensors").observation_names == ()
    continuous = read(table(), observations=["glucose"], action=["dose", "score"], reward=None)
    assert continuous.given_names == {"observation_names": ("glucose",), "action_names": ("dose", "score")}
    assert read(table().rename(columns={"step": 7}), observations=["glucose", 7]).observation_names == ()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_come_back_from_a_table_that_was_written(log, suffix, tmp_path):
    """Columns whose names are taken say what they are of."""
    frame = to_dataframe(log)
    assert list(frame)[3:6] == ["glucose", "observation step", "dose"] and "next glucose" in frame
    path, columns = tmp_path / f"log.{suffix}", frame.attrs["persim_gym"]["columns"]
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path, index=False)
    again = from_dataframe(path, **(columns if suffix == "csv" else {}))
    second = "observation step" if suffix == "csv" else "step"  # a CSV file keeps nothing but its columns
    assert again.given_names == {"observation_names": ("glucose", second), "action_names": ("dose",)}
    np.testing.assert_array_equal(again.observations, log.observations)


def test_what_is_learned_and_simulated_has_the_names(log, tmp_path):
    task = ward()
    ensemble = learned(log, task)
    assert ensemble.task.given_names == NAMES and task.observation_names == ("observation 0", "observation 1")
    ensemble.save(tmp_path / "ward.persim")
    loaded = persim_gym.load(tmp_path / "ward.persim")
    assert loaded.task.given_names == NAMES
    synthetic = persim_gym.generate(loaded, ["p-4"], 2, "random", progress=False)
    assert {"glucose", "observation step", "dose", "next glucose"} <= set(to_dataframe(synthetic))
    assert persim_gym.Trajectories.concatenate([log, synthetic]).given_names == NAMES
    with pytest.raises(errors.InvalidStateError, match=r"glucose = 1e\+09 is outside"):
        persim_gym.envs.PersonalizedEnv(loaded, "p-4").reset(options={"state": np.array([1e9, 0.0])})


def test_names_outlast_d3rlpy_and_minari(log, tmp_path, monkeypatch):
    """Of d3rlpy's dumps, too; a buffer of two logs has the names that one of them lacks, and never two of a kind."""
    d3rlpy = pytest.importorskip("d3rlpy")
    pytest.importorskip("minari")
    from persim_gym.interop.d3rlpy import Episode, TransitionPicker, from_d3rlpy, to_d3rlpy
    from persim_gym.interop.minari import from_minari, to_minari

    buffer = to_d3rlpy(log, action_size=3)
    with open(tmp_path / "buffer.h5", "w+b") as file:
        buffer.dump(file)
    with open(tmp_path / "buffer.h5", "rb") as file:
        again = d3rlpy.dataset.ReplayBuffer.load(
            file, d3rlpy.dataset.InfiniteBuffer(), episode_cls=Episode, transition_picker=TransitionPicker()
        )
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert from_d3rlpy(buffer).given_names == from_d3rlpy(again).given_names == NAMES
    assert from_minari(to_minari(log, "ward-v0", action_size=3)).given_names == NAMES

    unnamed, renamed = replace(log, action_names=()), replace(log, action_names=("units",))
    for others, joined in ((unnamed, NAMES), (renamed, None)):
        for episode in to_d3rlpy(others, action_size=3).episodes:
            (both := to_d3rlpy(log, action_size=3)).append_episode(episode)
        if joined is None:
            with pytest.raises(errors.InvalidDataError, match=r"different action_names .*'dose'.*'units'"):
                from_d3rlpy(both)
        else:
            assert from_d3rlpy(both).given_names == joined


def test_a_task_that_is_known_without_names_is_the_same_task(log, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    task = ward(reward=lambda before, actions, after: -abs(after[..., 0]))
    persim_gym.register_task(task)
    quiet = replace(log, rewards=np.zeros_like(log.rewards))
    ensemble = learned(quiet, "Ward")
    persim_gym.register_task(ensemble.task)
    persim_gym.register_task(task)
    ensemble.save(tmp_path / "ward.persim")
    loaded = persim_gym.load(tmp_path / "ward.persim").task
    assert loaded.given_names == NAMES and loaded.reward is task.reward


def test_names_that_only_number_are_made_anew_for_other_spaces():
    task = replace(ward(), action_space=spaces.Box(-1, 1, (2,)), observation_space=spaces.Box(-1, 1, (3,)))
    assert task.observation_names[-1] == "observation 2" and task.action_names == ("action 0", "action 1")
    assert replace(task, action_space=spaces.Discrete(2)).action_names == ("action",)
    assert ward(observation_names=("x", "action")).observation_names[1] == "action", "nobody named the action so"


def test_a_tasks_own_names_stay(log):
    own = ward(observation_names=("Glucose (mg/dl)", "drift"))
    given = learned(log, own).task.given_names
    assert given == {"observation_names": ("Glucose (mg/dl)", "drift"), "action_names": ("dose",)}


def test_a_built_in_task_is_not_renamed(cart_pole_log):
    named = replace(cart_pole_log, observation_names=("x", "v", "angle", "turn"), action_names=("push",))
    assert learned(named, None).task is persim_gym.get_task("CartPole")


def test_a_data_frame_of_another_library(log):
    arrow = pytest.importorskip("pyarrow").Table.from_pandas(table())
    found = read(arrow)
    assert found.digest == log.digest and found.given_names == NAMES


@pytest.mark.parametrize("kind", [float, np.float32, object])
def test_agents_that_are_whole_numbers_have_the_same_labels_as_floats(kind):
    """Pandas makes whole numbers floats, where a column had gaps, or was joined with one that has."""
    ids = np.repeat(np.array([13, 2**24 + 2, 7], kind), 12)
    assert read(table(patient=ids)).agent_labels == ("13", "16777218", "7")
    arrays = {"observations": np.zeros((36, 1)), "actions": np.zeros(36, int), "next_observations": np.ones((36, 1))}
    assert persim_gym.Trajectories.from_arrays(agents=ids, **arrays).agent_labels == ("13", "16777218", "7")
    half = persim_gym.Trajectories.from_arrays(agents=ids.astype(float) + 0.5, **arrays)
    assert half.agent_labels == ("13.5", "16777218.5", "7.5")


def test_columns_in_another_order_or_of_other_names_are_refused(log, tmp_path):
    swapped = read(table(), observations=["step", "glucose"], task=None)
    task = ward(observation_names=("glucose", "step"))
    with pytest.raises(errors.InvalidDataError, match=r"\['step', 'glucose'\] are those of task Ward in another order"):
        learned(swapped, task)
    with pytest.raises(errors.InvalidDataError, match="logs of different observation_names cannot be joined"):
        persim_gym.Trajectories.concatenate([replace(log, task=None), swapped])
    two = {"agents": [0, 0], "observations": np.zeros((2, 2)), "actions": [0, 1], "next_observations": np.ones((2, 2))}
    for wrong in (["x"], ["x", "x"], ["x", 3]):
        with pytest.raises(errors.InvalidDataError, match="must be 2 different texts"):
            persim_gym.Trajectories.from_arrays(**two, observation_names=wrong)
    with pytest.raises(errors.InvalidDataError, match="must be 1 different text"):
        persim_gym.Trajectories.from_arrays(**two, action_names=["x", "y"])
    with pytest.raises(errors.InvalidArgumentError, match="names"):
        persim_gym.Trajectories.from_arrays(**two, observation_names="xy")
    three = read(table(more=0.0), observations=["glucose", "step", "more"], task=None)
    with pytest.raises(errors.InvalidDataError, match="3 observation coordinates, task Ward has 2"):
        learned(three, ward())
    with pytest.raises(errors.InvalidArgumentError, match="of task Ward must be 1: one of discrete actions"):
        ward(action_names=("a", "b"))
    with pytest.raises(errors.InvalidArgumentError, match="two observations or actions named 'x'"):
        ward(observation_names=("x", "y"), action_names=("x",))


@pytest.mark.parametrize(
    "call",
    [
        lambda ensemble, log: persim_gym.log_error(ensemble, log, horizon=2),
        lambda ensemble, log: persim_gym.update(ensemble, log),
        lambda ensemble, log: persim_gym.personalize(ensemble, replace(log, agent_labels=("new", "newer", "newest"))),
    ],
)
@pytest.mark.filterwarnings("ignore:the model was trained on this very log", "ignore:the model has learned from these")
@pytest.mark.filterwarnings("ignore:the ensemble was trained on 3 agents")
def test_a_model_is_not_silent_about_other_columns(log, call):
    """A column of another's name is refused, another name and another task are told."""
    ensemble = learned(log, ward())
    call(ensemble, log)
    with pytest.raises(errors.InvalidDataError, match="has 'step' in place 0, where task Ward has 'glucose'"):
        call(ensemble, replace(log, observation_names=("step", "insulin")))
    with pytest.warns(RuntimeWarning, match=r"\['age', 'step'\] are taken for \['glucose', 'step'\]"):
        call(ensemble, replace(log, observation_names=("age", "step")))
    with pytest.warns(RuntimeWarning, match="the log is of task 'Insulin', and is taken for one of 'Ward'"):
        call(ensemble, replace(log, task="Insulin"))


@pytest.mark.filterwarnings("ignore:the model was trained on this very log")
def test_the_names_that_a_model_was_trained_with_are_its_own(log):
    """Where a task brings others, as built-in ones do, the user has said once that these are the same."""
    ensemble = learned(log, ward(observation_names=("blood sugar", "count")))
    assert ensemble.task.observation_names == ("blood sugar", "count")
    persim_gym.log_error(ensemble, log, horizon=2)
