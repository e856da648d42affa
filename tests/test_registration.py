"""Ids: which there are, where they point, and what the model home does to them."""

import dataclasses
import json
import shutil
from functools import partial

import gymnasium
import numpy as np
import pytest
from support import perfect_walk_ensemble, random_ensemble, walk_task
from test_storage import rewrite_header

import persim_gym
import persim_gym.tasks
from persim_gym import errors, registration, storage
from persim_gym.envs import PersonalizedEnv, PersonalizedVectorEnv

SHIPPED = registration.SHIPPED_MODELS / "CartPole.persim"
UNLIMITED = {"time_limit": -1}
LIST_IDS = "import persim_gym, gymnasium; print(*[i for i in gymnasium.registry if i.startswith('PerSim-')])"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty model home."""
    monkeypatch.setenv("PERSIM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def saved(tmp_path):
    """A file with three agents of CartPole."""
    random_ensemble("CartPole", num_agents=3).save(tmp_path / "mine.persim")
    return tmp_path / "mine.persim"


def test_step_limits_are_the_tasks():
    """The ids' limits are written down twice, for import must be cheap; they agree."""
    assert set(registration._BUILT_IN) == set(persim_gym.task_names())
    for name in persim_gym.task_names():
        limit = persim_gym.get_task(name).max_episode_steps
        assert gymnasium.spec(f"Heterogeneous-{name}-v0").max_episode_steps == limit
        assert registration._BUILT_IN[name] == limit


def test_shipped_agents_have_ids():
    """500 agents each, and the generic id; what an id needs is JSON."""
    for path, header in registration.installed_models():
        ids = [f"PerSim-{path.stem}-v0", *(f"PerSim-{path.stem}-agent{n}-v0" for n in range(header["num_agents"]))]
        assert len(ids) == 501 and set(ids) <= set(gymnasium.registry)
        assert json.loads(gymnasium.spec(ids[-1]).to_json())["kwargs"] == {
            "model": str(path),
            "agent": 499,
            **UNLIMITED,
        }
    assert registration.find_model("CartPole") == SHIPPED
    assert persim_gym.load("CartPole").agent_labels == persim_gym.load(SHIPPED).agent_labels
    with pytest.raises(errors.UnknownNameError, match="Nobody"):
        registration.find_model("Nobody")


def test_a_model_is_found_by_name_wherever_one_is_asked_for(saved, registry, tmp_path, monkeypatch):
    """Whether the name has a dot or is a folder's too; an id is none, and the message says what to give instead."""
    (tmp_path / "CartPole").mkdir()
    monkeypatch.chdir(tmp_path)
    persim_gym.register_ensemble(saved, name="ward.v2")
    loaders = [
        persim_gym.load,
        lambda name: PersonalizedEnv(name).ensemble,
        lambda name: PersonalizedVectorEnv(name).ensemble,
        lambda name: gymnasium.make("PerSim-CartPole-v0", model=name).unwrapped.ensemble,
    ]
    for load in loaders:
        assert load("ward.v2").num_agents == load("mine.persim").num_agents == 3
        assert load("CartPole").num_agents == 500
        for name, message in {
            "CartPole-agent7": "'CartPole-agent7' is an environment's id.*give the model 'CartPole', and agent 7 where",
            "PerSim-ward.v2-agent0-v0": "give the model 'ward.v2', and agent 0 where",
            "PerSim-CartPole-v0": "give the model 'CartPole'$",
            "Heterogeneous-CartPole-v0": "no model, and no file, is named 'Heterogeneous-CartPole-v0'",
            "ward.v3": "no model, and no file, is named 'ward.v3'",
        }.items():
            with pytest.raises(errors.UnknownNameError, match=message):
                load(name)
        with pytest.raises(errors.MissingFileError, match="there is no file yours.persim"):
            load("yours.persim")


def test_register_a_file(saved, registry, monkeypatch):
    """Ids for its agents under a name of one's own, from a relative path; nothing is copied."""
    monkeypatch.chdir(saved.parent)
    ids = persim_gym.register_ensemble("mine.persim", name="Mine")
    assert ids == ["PerSim-Mine-v0", "PerSim-Mine-agent0-v0", "PerSim-Mine-agent1-v0", "PerSim-Mine-agent2-v0"]
    monkeypatch.chdir("/")
    for agent, env_id in enumerate(ids[1:]):
        env = gymnasium.make(env_id)
        assert env.unwrapped.agent == agent and env.spec.max_episode_steps == 200
    assert registry["PerSim-Mine-v0"].kwargs == {"model": str(saved), **UNLIMITED}


def test_an_id_without_a_limit_leaves_the_environment_its_own(home, registry, known_tasks):
    """Where a file does not tell the time limit, and its task is made known later than its ids."""
    task, home_file = dataclasses.replace(walk_task(), name="Later"), home / "Later.persim"
    home.mkdir()
    perfect_walk_ensemble(task).save(home_file)
    definition = {name: value for name, value in task.to_json().items() if name != "max_episode_steps"}
    rewrite_header(home_file, task_definition=definition)
    registration.register_all()
    env_id = "PerSim-Later-agent0-v0"
    persim_gym.register_task(task)
    assert registry[env_id].max_episode_steps is None
    assert gymnasium.make(env_id).unwrapped.max_episode_steps == task.max_episode_steps


def test_without_a_name_it_replaces_the_tasks(saved, registry):
    """`PerSim-CartPole-…` are then the user's agents, and ids of agents it does not have are gone."""
    others = {env_id for env_id in registry if not env_id.startswith("PerSim-CartPole-")}
    ids = persim_gym.register_ensemble(saved)
    assert gymnasium.spec("PerSim-CartPole-agent2-v0").kwargs["model"] == str(saved)
    assert set(registry) == others | set(ids)


def test_a_file_written_anew_is_loaded_anew(tmp_path, registry):
    """Environments made after the change show it."""
    path, states = tmp_path / "model.persim", []
    for seed in (0, 1):
        random_ensemble("CartPole", seed=seed).save(path)
        env_id = persim_gym.register_ensemble(path, name="Changing")[1]
        env = gymnasium.make(env_id)
        env.reset(seed=0)
        states.append(env.step(0)[0])
    assert not np.array_equal(*states)


def test_install_is_for_later_sessions(saved, home, registry, run_python):
    """A fresh process has the ids without the original file, and those of an `Ensemble` that was in none."""
    persim_gym.register_ensemble(saved, name="Kept", install=True)
    saved.unlink()
    persim_gym.register_ensemble(random_ensemble("MountainCar", num_agents=2), name="Object", install=True)
    assert sorted(path.name for path in home.iterdir()) == ["Kept.persim", "Object.persim"]
    ids = run_python(LIST_IDS, PERSIM_HOME=str(home)).split()
    assert {"PerSim-Kept-agent2-v0", "PerSim-Object-agent1-v0", "PerSim-CartPole-agent499-v0"} <= set(ids)
    names = {path.stem for path, _ in registration.installed_models()}
    assert {"Kept", "Object", "CartPole"} <= names


def test_nothing_is_installed_unless_told(home, registry):
    """An `Ensemble` in no file has no ids without `install`; the message says what to do."""
    before = dict(registry)
    with pytest.raises(errors.InvalidArgumentError, match="save it and register the file, or pass install=True"):
        persim_gym.register_ensemble(random_ensemble("CartPole", num_agents=2))
    assert registry == before and not home.exists()


def test_installed_models_come_first(home, registry, run_python):
    """One of the same name as a shipped one takes its ids, all of them."""
    persim_gym.register_ensemble(random_ensemble("CartPole", num_agents=2), install=True)
    assert registration.find_model("CartPole").parent == home
    ids = run_python(LIST_IDS, PERSIM_HOME=str(home)).split()
    assert [env_id for env_id in ids if env_id.startswith("PerSim-CartPole-agent")] == [
        "PerSim-CartPole-agent0-v0",
        "PerSim-CartPole-agent1-v0",
    ]


def spoil_text(path):
    path.write_text("not a model")


def spoil_truncated(path):
    path.write_bytes(SHIPPED.read_bytes()[:-1])


def spoil_header(path):
    storage.write(path, "ensemble", {"x": np.zeros(1)}, {"task": "CartPole"})


def spoil_link(path):
    path.symlink_to(path.parent / "gone")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("a.persim", spoil_text),
        ("a.persim", spoil_truncated),
        ("a.persim", spoil_header),
        ("a.persim", spoil_link),
        ("my model.persim", partial(shutil.copy, SHIPPED)),
    ],
)
def test_a_bad_file_in_the_home_does_no_harm(home, run_python, name, spoil):
    """Importing warns, names the file, and registers all the others."""
    home.mkdir()
    spoil(home / name)
    shutil.copy(SHIPPED, home / "zzz.persim")
    code = (
        "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    import persim_gym, gymnasium\n"
        "assert 'PerSim-zzz-agent499-v0' in gymnasium.registry\nprint(*[w.message for w in caught])"
    )
    assert name in run_python(code, PERSIM_HOME=str(home))


@pytest.mark.parametrize("name", ["my model", "a/b", "../outside", "", "CartPole-agent7"])
def test_a_name_that_makes_no_id_is_refused(home, registry, name):
    """Before anything is written or registered."""
    before = set(registry)
    with pytest.raises(errors.InvalidArgumentError, match="name"):
        persim_gym.register_ensemble(random_ensemble("CartPole"), name=name, install=True)
    assert set(registry) == before
    assert [path.name for path in home.parent.rglob("*.persim")] == []


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch, registry):
    """The message names the folder and PERSIM_HOME."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PERSIM_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(errors.ModelHomeError, match=r"file/home.*PERSIM_HOME") as caught:
        persim_gym.register_ensemble(random_ensemble("CartPole"), name="Lost", install=True)
    assert isinstance(caught.value, OSError)
    assert "PerSim-Lost-v0" not in registry


def test_damaged_models_are_left_out_with_a_warning(home, saved, registry, run_python):
    """The others are there, on import and in the list."""
    home.mkdir()
    shutil.copy(saved, home / "Good.persim")
    (home / "Junk.persim").write_bytes(b"junk")
    (home / "Nested.persim").write_bytes((20_000).to_bytes(8, "little") + b"[" * 20_000)
    changes = {"Task": {"task": ["x"]}, "Steps": {"task_definition": [1]}, "Count": {"num_agents": "3"}}
    for name, change in changes.items():
        shutil.copy(saved, home / f"{name}.persim")
        rewrite_header(home / f"{name}.persim", **change)
    with pytest.warns(RuntimeWarning, match="left out") as told:
        registration.register_all()
        assert "Good" in [path.stem for path, _ in registration.installed_models()]
    assert len({str(one.message) for one in told}) == 5
    assert "PerSim-Good-agent2-v0" in gymnasium.registry
    assert not any("Junk" in known or "Nested" in known for known in gymnasium.registry)


def test_an_empty_model_home_is_none(monkeypatch):
    monkeypatch.setenv("PERSIM_HOME", "")
    assert registration.model_home().name == "persim-gym"


def test_a_changed_task_takes_the_place_of_the_old_one_only_when_told(home, registry, known_tasks):
    """As when a cell of a notebook is run again."""

    def model(reward):
        task = dataclasses.replace(walk_task(), name="Notebook", reward=lambda s, a, n: reward + 0 * n[..., 0])
        return perfect_walk_ensemble(task)

    first, second = model(1.0), model(2.0)
    registration.register_ensemble(first, install=True)
    with pytest.raises(errors.InvalidArgumentError, match="replace=True"):
        registration.register_ensemble(second, install=True)

    def rewarded():
        env = gymnasium.make("PerSim-Notebook-agent0-v0")
        env.reset(seed=0)
        return env.step(1)[1]

    assert rewarded() == 1.0
    persim_gym.register_task(second.task, replace=True)
    assert rewarded() == 2.0, "the file is read again"
    registration.register_ensemble(second, install=True)
    assert rewarded() == 2.0
    with pytest.raises(errors.InvalidArgumentError, match="built-in"):
        persim_gym.register_task(dataclasses.replace(second.task, name="CartPole"), replace=True)


def test_the_home_may_be_named_by_a_tilde_or_from_here(tmp_path, monkeypatch):
    """An id goes on working in another folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PERSIM_HOME", "~/models")
    assert persim_gym.registration.model_home() == tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSIM_HOME", "models")
    assert persim_gym.registration.model_home() == tmp_path / "models"
