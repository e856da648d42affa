"""Logs in other libraries: nothing is lost on the way there and back, and those libraries take what they get."""

import dataclasses
import importlib
import os
import re
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support import walk_task

import persim_gym
from persim_gym import Trajectories, errors, interop

LABELS = ("patient-17", "007", "NA", "é ß", 'a,"b"', "1e5", "", "None", "true", "x/y")


def random_log(rng, *, task=None):
    """Ragged episodes of length 1 and more, in any order of agents, chained or not, with every kind of end."""
    num_agents = int(rng.integers(1, 5))
    episodes = np.concatenate([np.arange(num_agents), rng.integers(num_agents, size=rng.integers(0, 4))])
    rng.shuffle(episodes)
    lengths = rng.integers(1, 7, size=len(episodes))
    starts, total = np.append(0, np.cumsum(lengths)[:-1]), int(lengths.sum())
    last = np.zeros(total, bool)
    last[starts + lengths - 1] = True
    size, discrete = int(rng.integers(1, 4)), bool(rng.integers(2))
    observations = (rng.normal(size=(total, size)) * 10.0 ** rng.integers(-30, 30, (total, size))).astype(np.float32)
    observations[rng.random(observations.shape) < 0.1] = -0.0
    following = rng.normal(size=(total, size)).astype(np.float32)
    if rng.integers(2):
        following[~last] = observations[1:][~last[:-1]]
    num_covariates = int(rng.integers(0, 3))
    provenance = [{}, {"policy": "random", "seed": 3}, {"synthetic": True, "policy": "plan", "nested": {"a": [1.5]}}]
    return Trajectories.from_arrays(
        agents=np.repeat(episodes, lengths),
        agent_labels=[str(label) for label in rng.permutation(np.array(LABELS))[:num_agents]],
        observations=observations,
        actions=rng.integers(3, size=total) if discrete else rng.normal(size=(total, int(rng.integers(1, 3)))),
        next_observations=following,
        rewards=rng.normal(size=total),
        terminated=last & (rng.random(total) < 0.5),
        truncated=last & (rng.random(total) < 0.7),
        episode_starts=starts,
        covariates=rng.normal(size=(num_agents, num_covariates)) if num_covariates else None,
        covariate_names=[f"covariate {index}" for index in range(num_covariates)],
        task=task,
        provenance=provenance[rng.integers(3)],
    )


def assert_same(found, log, *, provenance=True):
    """Bit by bit, types and labels included."""
    for name in ("agents", "observations", "actions", "rewards", "next_observations", "terminated", "truncated"):
        ours, theirs = np.asarray(getattr(log, name)), np.asarray(getattr(found, name))
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
        assert ours.tobytes() == theirs.tobytes(), name
    assert found.episode_starts.tolist() == log.episode_starts.tolist()
    assert found.agent_labels == log.agent_labels and found.task == log.task
    assert found.covariate_names == log.covariate_names
    if log.covariates is None:
        assert found.covariates is None
    else:
        assert found.covariates.tobytes() == log.covariates.tobytes()
    if provenance:
        assert dict(found.provenance) == dict(log.provenance)


def through_file(log, folder):
    log.save(folder / "log.safetensors")
    return Trajectories.load(folder / "log.safetensors")


def through_dataframe(log, folder):
    pytest.importorskip("pandas")
    return interop.from_dataframe(interop.to_dataframe(log))


def through_parquet(log, folder):
    pytest.importorskip("pyarrow")
    interop.to_dataframe(log).to_parquet(folder / "log.parquet")
    return interop.from_dataframe(folder / "log.parquet")


def through_csv(log, folder):
    """A CSV file keeps neither the arguments nor the provenance, but for the mark of a synthetic log."""
    pytest.importorskip("pandas")
    frame = interop.to_dataframe(log)
    frame.to_csv(folder / "log.csv", index=False)
    found = interop.from_dataframe(folder / "log.csv", **frame.attrs["persim_gym"]["columns"])
    assert found.provenance.get("synthetic") == log.provenance.get("synthetic")
    return found


def through_d3rlpy(log, folder):
    pytest.importorskip("d3rlpy")
    return interop.from_d3rlpy(interop.to_d3rlpy(log, action_size=3 if log.discrete else None))


def through_d3rlpy_file(log, folder):
    """By d3rlpy's own `dump` and `load`."""
    pytest.importorskip("d3rlpy")
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    from persim_gym.interop.d3rlpy import Episode, TransitionPicker

    with open(folder / "log.h5", "w+b") as file:
        interop.to_d3rlpy(log, action_size=3 if log.discrete else None).dump(file)
    with open(folder / "log.h5", "rb") as file:
        loaded = ReplayBuffer.load(file, InfiniteBuffer(), episode_cls=Episode, transition_picker=TransitionPicker())
    return interop.from_d3rlpy(loaded)


def through_minari(log, folder, *, number=[0]):  # noqa: B006  (counts the data sets of this process)
    pytest.importorskip("minari")
    number[0] += 1
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    interop.to_minari(log, f"test/log-v{number[0]}", action_size=3 if log.discrete else None)
    return interop.from_minari(f"test/log-v{number[0]}")


ROADS = {
    through_file: 100,
    through_dataframe: 100,
    through_parquet: 60,
    through_csv: 60,
    through_d3rlpy: 600,
    through_d3rlpy_file: 50,
    through_minari: 30,
}


@pytest.mark.filterwarnings("ignore:the columns .* are not what the next row")  # of logs that are not chained
@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_round_trips_are_bit_equal(road, tmp_path, monkeypatch):
    """1000 random data sets in all, every column, every transition, whatever the ends of their episodes.

    PERSIM_ROUND_TRIPS=1000 sends as many down each road.
    """
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    assert sum(ROADS.values()) == 1000
    rng = np.random.default_rng(list(ROADS).index(road))
    for _ in range(int(os.environ.get("PERSIM_ROUND_TRIPS", ROADS[road]))):
        log = random_log(rng)
        assert_same(road(log, tmp_path), log, provenance=road is not through_csv)


@pytest.fixture(scope="module")
def continuous_log():
    """Two agents of a one-dimensional system with two continuous actions."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(60, 3))
    return Trajectories.from_arrays(
        agents=np.repeat([0, 1], 30), observations=observations, actions=rng.uniform(-1, 1, (60, 2)),
        next_observations=observations + 0.1, rewards=-(observations**2).sum(1), agent_labels=["a", "b"],
        episode_starts=[0, 20, 30],
    )  # fmt: skip


def test_d3rlpy_loses_nothing_of_a_truncated_episode(cart_pole_log):
    """Its own episode class does: one transition each. Every sample is a row of the log."""
    d3rlpy = pytest.importorskip("d3rlpy")
    log = cart_pole_log.select([0, 1])
    cut = Trajectories.from_arrays(
        agents=log.agents, agent_labels=log.agent_labels, observations=log.observations, actions=log.actions,
        next_observations=log.next_observations, rewards=log.rewards, task="CartPole",
    )  # fmt: skip
    buffer = interop.to_d3rlpy(cut)
    assert buffer.transition_count == len(cut) and cut.truncated.sum() == 2
    assert buffer.dataset_info.action_size == 2 and buffer.dataset_info.action_space.name == "DISCRETE"
    own = [d3rlpy.dataset.Episode(e.observations, e.actions, e.rewards, terminated=False) for e in buffer.episodes]
    plain = d3rlpy.dataset.ReplayBuffer(
        d3rlpy.dataset.InfiniteBuffer(), episodes=own, action_size=2, action_space=buffer.dataset_info.action_space,
        observation_signature=buffer.dataset_info.observation_signature,
        action_signature=buffer.dataset_info.action_signature, reward_signature=buffer.dataset_info.reward_signature,
    )  # fmt: skip
    assert plain.transition_count == len(cut) - 2
    rows = {row.tobytes() for row in np.hstack([cut.observations, cut.next_observations])}
    picked = [buffer.transition_picker(*buffer.buffer[index]) for index in range(buffer.transition_count)]
    assert {np.hstack([one.observation, one.next_observation]).tobytes() for one in picked} == rows
    assert buffer.sample_transition_batch(64).terminals.sum() == 0
    ended = interop.to_d3rlpy(log)
    assert ended.transition_picker(*ended.buffer[len(log) - 1]).terminal == log.terminated[-1] == 1
    back = interop.from_d3rlpy(plain, agents=["left", "right"], task="CartPole")
    assert len(back) == len(cut) - 2 and back.agent_labels == ("left", "right")


def test_d3rlpys_recipe_for_reading_a_buffer_back(continuous_log, tmp_path):
    """Every transition of truncated episodes can be drawn, with its own next observation."""
    pytest.importorskip("d3rlpy")
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    from persim_gym.interop.d3rlpy import Episode, TransitionPicker

    with open(tmp_path / "log.h5", "w+b") as file:
        interop.to_d3rlpy(continuous_log).dump(file)
    (recipe,) = re.findall(r"``(ReplayBuffer.load\(.*?\))``", Episode.deserialize.__doc__ or "")
    names = {"InfiniteBuffer": InfiniteBuffer, "Episode": Episode, "TransitionPicker": TransitionPicker}
    with open(tmp_path / "log.h5", "rb") as file:
        buffer = eval(recipe, {"ReplayBuffer": ReplayBuffer, "file": file, **names})
    picked = [buffer.transition_picker(*buffer.buffer[index]) for index in range(buffer.transition_count)]
    np.testing.assert_array_equal([one.next_observation for one in picked], continuous_log.next_observations)


@pytest.mark.parametrize("coordinates", [1, 2])
def test_continuous_actions_that_are_whole_numbers_stay_continuous(coordinates, tmp_path):
    """Of a buffer that it loads d3rlpy itself takes them for discrete ones."""
    actions = np.array([[-1.0], [1.0], [0.0], [1.0]]).repeat(coordinates, 1)
    states = np.arange(4.0)[:, None]
    log = Trajectories.from_arrays(agents=[0] * 4, observations=states, actions=actions, next_observations=states + 1)
    assert_same(through_d3rlpy_file(log, tmp_path), log)


def test_d3rlpy_goes_on_online(cart_pole_log):
    """In the simulator, with the log's transitions in the same buffer as those that it adds."""
    d3rlpy = pytest.importorskip("d3rlpy")
    buffer = interop.to_d3rlpy(cart_pole_log)
    learner = d3rlpy.algos.DQNConfig(batch_size=64).create(device="cpu:0")
    learner.fit_online(
        gymnasium.make("PerSim-CartPole-agent2-v0"), buffer, n_steps=60, n_steps_per_epoch=60, update_start_step=30,
        show_progress=False, logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )  # fmt: skip
    assert buffer.transition_count > len(cart_pole_log) + 40
    picked = [
        buffer.transition_picker(*buffer.buffer[index]) for index in range(len(cart_pole_log), len(buffer.buffer))
    ]
    assert len(picked) > 40 and all(np.abs(one.next_observation - one.observation).max() < 5 for one in picked)


def continued(log):
    """A buffer with a log's episodes and two of d3rlpy's own, of 4 rows each, the last of them terminated."""
    buffer = interop.to_d3rlpy(log)
    for terminated in (False, True):
        for step in range(4):
            buffer.append(np.full(log.observations.shape[1], step, np.float32), 1, 0.5)
        buffer.clip_episode(terminated)
    return buffer


def test_a_log_that_d3rlpy_went_on_with_keeps_all_it_had(cart_pole_log):
    """Only d3rlpy's own episodes lose their last rows."""
    pytest.importorskip("d3rlpy")
    log = dataclasses.replace(cart_pole_log, covariates=None, covariate_names=())
    labels = [log.agent_labels[agent] for agent in log.episode_agents]
    found = interop.from_d3rlpy(continued(log), agents=[*labels, "online", "online"])
    assert log.terminated.any()
    assert_same(found.select(log.agent_labels), log, provenance=False)
    online = found.select(["online"])
    assert online.observations[:, 0].tolist() == [0, 1, 2] * 2
    assert online.next_observations[:, 0].tolist() == [1, 2, 3] * 2
    assert not online.terminated.any() and online.truncated.tolist() == [False, False, True] * 2


def test_a_buffer_of_episodes_of_two_logs(cart_pole_log):
    """Covariates are told by name; other ones, two values of one agent, and two tasks are refused."""
    d3rlpy = pytest.importorskip("d3rlpy")
    named = {"covariates": cart_pole_log.covariates[:, ::-1], "covariate_names": cart_pole_log.covariate_names[::-1]}
    swapped = dataclasses.replace(cart_pole_log, **named)

    def together(*logs):
        episodes = [episode for log in logs for episode in interop.to_d3rlpy(log, task="CartPole").episodes]
        buffer = d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=episodes)
        return interop.from_d3rlpy(buffer)

    assert_same(together(cart_pole_log.select([0]), swapped.select([1])), cart_pole_log.select([0, 1]))
    refuses = partial(_refuses, errors.InvalidDataError, ValueError)
    other = dataclasses.replace(cart_pole_log, covariate_names=("force", "mass"))
    refuses("episode 1 has the covariates force, mass, those before it have force, length",
            lambda: together(cart_pole_log.select([0]), other.select([1])))  # fmt: skip
    mine = dataclasses.replace(cart_pole_log, task=None)
    refuses("different tasks, CartPole and None: give task=",
            lambda: together(cart_pole_log.select([0]), mine.select([1])))  # fmt: skip
    heavier = dataclasses.replace(cart_pole_log, covariates=cart_pole_log.covariates + 1)
    refuses("agent '0' has covariates {'force'.*in episode 1; give different agents",
            lambda: together(cart_pole_log.select([0]), heavier.select([0])))  # fmt: skip


@pytest.mark.parametrize(("mark", "joint"), [({}, None), ({"synthetic": True}, "in part")])
def test_what_d3rlpy_adds_does_not_pass_for_the_log(cart_pole_log, mark, joint):
    """Nothing is known of where its episodes come from."""
    pytest.importorskip("d3rlpy")
    log = dataclasses.replace(cart_pole_log.select([0]), provenance={"policy": "nurses", **mark})
    found = interop.from_d3rlpy(continued(log), agents="0").provenance
    assert found["concatenated"] == [log.provenance, {}] and found.get("synthetic") == joint


def test_covariates_outlast_labels_that_a_user_gives(cart_pole_log):
    """A buffer that d3rlpy went on with needs them; an agent without covariates, or made of several, is told."""
    pytest.importorskip("d3rlpy")
    log = cart_pole_log.select([0, 1])
    buffer, labels = continued(log), [log.agent_labels[agent] for agent in log.episode_agents]
    found = interop.from_d3rlpy(buffer, agents=[*labels, "1", "1"])
    assert found.covariate_names == log.covariate_names
    np.testing.assert_array_equal(found.covariates, log.covariates)
    for agents, unknown in (([*labels, "online", "online"], "online"), ("all", "all")):
        with pytest.warns(RuntimeWarning, match=f"covariates of agent '{unknown}' are not known.*are left out"):
            assert interop.from_d3rlpy(buffer, agents=agents).covariates is None


def test_foreign_d3rlpy_data_sets():
    """Agents must be named; the row whose next observation d3rlpy does not keep is dropped; pictures are refused."""
    d3rlpy = pytest.importorskip("d3rlpy")

    def data_set(observations, actions):
        count = len(actions)
        return d3rlpy.dataset.MDPDataset(
            observations, actions, np.ones(count, np.float32), np.arange(count) == 2, np.arange(count) == count - 1
        )

    observations, actions = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 0, 1, 1, 2])
    foreign = data_set(observations, actions)
    log = interop.from_d3rlpy(foreign, agents="robot")
    assert log.observations[:, 0].tolist() == [0, 2, 6, 8] and log.next_observations[:, 0].tolist() == [2, 4, 8, 10]
    assert log.truncated.tolist() == [False, True] * 2 and log.agent_labels == ("robot",)
    refuses = partial(_refuses, errors.InvalidDataError, ValueError)
    refuses("does not say whose.*2 episodes", lambda: interop.from_d3rlpy(foreign))
    refuses("names 3 agents for 2 episodes", lambda: interop.from_d3rlpy(foreign, agents=["a", "b", "c"]))
    refuses("action 2 in row", lambda: interop.from_d3rlpy(data_set(observations, actions[::-1].copy()), agents="a",
                                                           task=own_task_of_two_actions()))  # fmt: skip
    rows = (observations[:3], actions[:3], np.ones(3, np.float32), np.array([0, 1, 1]))
    single = d3rlpy.dataset.MDPDataset(*rows)
    refuses("episode 1 has a single row and no next obs", lambda: interop.from_d3rlpy(single, agents="a"))
    pictures = data_set(np.zeros((6, 1, 4, 4), np.uint8), actions)
    refuses(r"observations of episode 0 have shape \(3, 1, 4, 4\)", lambda: interop.from_d3rlpy(pictures, agents="a"))


def own_task_of_two_actions():
    return dataclasses.replace(walk_task(), action_space=spaces.Discrete(2))


@pytest.mark.parametrize("name", ["DiscreteCQL", "DiscreteBCQ", "CQL", "BCQ"])
def test_d3rlpy_learns_from_it(name, cart_pole_log, continuous_log, tmp_path):
    """Real learners, a few steps; afterwards they act."""
    d3rlpy = pytest.importorskip("d3rlpy")
    log = cart_pole_log if name.startswith("Discrete") else continuous_log
    learner = getattr(d3rlpy.algos, f"{name}Config")(batch_size=8).create(device="cpu:0")
    learner.fit(
        interop.to_d3rlpy(log), n_steps=4, n_steps_per_epoch=4, show_progress=False, save_interval=100,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )  # fmt: skip
    assert learner.action_size == 2
    actions = learner.predict(log.observations[:5])
    assert actions.shape == ((5,) if log.discrete else (5, 2))


def test_minari_reads_it_itself(tmp_path, monkeypatch, cart_pole_log):
    """`load_dataset`, `iterate_episodes`, the episodes' metadata, the spaces; L + 1 observations an episode."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    interop.to_minari(cart_pole_log, "cartpole/random-v0", author="us")
    dataset = minari.load_dataset("cartpole/random-v0")
    assert dataset.total_steps == len(cart_pole_log) and dataset.storage.metadata["author"] == {"us"}
    assert dataset.action_space == spaces.Discrete(2)
    metadata = list(dataset.storage.get_episode_metadata(dataset.episode_indices))
    bounds = zip(cart_pole_log.episode_starts, cart_pole_log.episode_ends, strict=True)
    for episode, known, (start, end) in zip(dataset.iterate_episodes(), metadata, bounds, strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], cart_pole_log.observations[start:end])
        np.testing.assert_array_equal(episode.observations[1:], cart_pole_log.next_observations[start:end])
        np.testing.assert_array_equal(episode.terminations, cart_pole_log.terminated[start:end])
        agent = cart_pole_log.agents[start]
        assert known["agent"] == cart_pole_log.agent_labels[agent]
        np.testing.assert_array_equal(known["covariates"], cart_pole_log.covariates[agent])


def test_data_sets_that_minari_combined(tmp_path, monkeypatch, cart_pole_log):
    """Minari drops the agents and the mark of synthetic logs: they cannot pass for recorded ones."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    synthetic = dataclasses.replace(cart_pole_log, provenance={"synthetic": True})
    parts = [interop.to_minari(cart_pole_log, "real-v0"), interop.to_minari(synthetic, "made-v0")]
    minari.combine_datasets(parts, "both-v0")
    with pytest.raises(
        errors.InvalidDataError, match="agents of 'real-v0' .*combined 'real-v0', 'made-v0'.*concatenate"
    ):
        interop.from_minari("both-v0", agents="one")
    joint = Trajectories.concatenate([interop.from_minari("real-v0"), interop.from_minari("made-v0")])
    assert joint.provenance["synthetic"] == "in part" and joint.agent_labels == cart_pole_log.agent_labels
    foreign = foreign_minari(
        tmp_path, parts[0].observation_space, parts[0].action_space, np.zeros((4, 4), np.float32), np.array([0, 1, 1])
    )
    for name in ("real-v0", "made-v0"):
        minari.delete_dataset(name)
    minari.combine_datasets([foreign], "foreigners-v0")
    assert len(interop.from_minari("foreigners-v0", agents="one")) == 3


def foreign_minari(folder, observation_space, action_space, observations, actions, *, dataset_id="foreign-v0"):
    """A data set of one episode that somebody else made."""
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    steps = len(actions)
    buffer = EpisodeBuffer(
        observations=observations, actions=actions, rewards=np.ones(steps), terminations=np.zeros(steps, bool),
        truncations=np.arange(steps) == steps - 1,
    )  # fmt: skip
    with pytest.warns(UserWarning):
        return minari.create_dataset_from_buffers(
            dataset_id, [buffer], observation_space=observation_space, action_space=action_space
        )


def test_a_foreign_minari_data_set(tmp_path, monkeypatch):
    """Its agents must be named; spaces and actions are checked."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    box, two = spaces.Box(-9, 9, (2,), np.float64), spaces.Discrete(2)
    observations, actions = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1])
    dataset = foreign_minari(tmp_path, box, two, observations, actions)
    log = interop.from_minari(dataset, agents="pump")
    assert log.agent_labels == ("pump",) and log.actions.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(log.next_observations, observations[1:])
    assert log.provenance == {"minari": "foreign-v0"}
    refuses = partial(_refuses, errors.InvalidDataError, ValueError)
    refuses("does not say whose", lambda: interop.from_minari(dataset))
    refuses("names 2 agents for 1 episodes", lambda: interop.from_minari(dataset, agents=["a", "b"]))
    refuses("2 observation coord.*CartPole has 4", lambda: interop.from_minari(dataset, agents="a", task="CartPole"))
    outside = foreign_minari(tmp_path, box, two, observations, np.array([0, 1, 5]), dataset_id="outside-v0")
    refuses("action 5 in row 2 is outside", lambda: interop.from_minari(outside, agents="a"))
    supported = r"Box with one axis.*Discrete from 0"
    many = foreign_minari(
        tmp_path, box, spaces.MultiDiscrete([2, 2]), observations, np.zeros((3, 2), int), dataset_id="many-v0"
    )
    refuses(rf"MultiDiscrete.*{supported}", lambda: interop.from_minari(many, agents="a"))
    nested = foreign_minari(
        tmp_path, spaces.Dict({"x": box}), two, {"x": observations}, actions, dataset_id="nested-v0"
    )
    refuses(rf"Dict.*{supported}", lambda: interop.from_minari(nested, agents="a"))
    _refuses(errors.MissingFileError, FileNotFoundError, "nowhere", lambda: interop.from_minari("nowhere-v0"))


def _refuses(kind, builtin, message, call):
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, errors.PerSimError) and isinstance(caught.value, builtin)


@pytest.mark.parametrize("dataset_id", ["no version", "noversion", "a b-v0", "x-v", "../up-v0", "", "log-v0"])
def test_minari_ids(tmp_path, monkeypatch, cart_pole_log, dataset_id):
    """Those against its rules and those that exist are refused, and nothing is left behind."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    interop.to_minari(cart_pole_log, "log-v0")
    before = sorted(tmp_path.rglob("*"))
    message = "exists already.*delete_dataset" if dataset_id == "log-v0" else "must look like 'name-v0'"
    _refuses(errors.InvalidArgumentError, ValueError, message, lambda: interop.to_minari(cart_pole_log, dataset_id))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_that_its_task_refuses(cart_pole_log):
    """Before anything of it reaches another library: an action outside the space, observations of another size."""
    pytest.importorskip("d3rlpy")
    pytest.importorskip("minari")
    log = Trajectories.from_arrays(agents=[0, 0], observations=np.zeros((2, 4)), actions=[0, 2],
                                   next_observations=np.zeros((2, 4)), task="CartPole")  # fmt: skip
    for call in (interop.to_d3rlpy, partial(interop.to_minari, dataset_id="refused-v0")):
        _refuses(errors.InvalidDataError, ValueError, "action 2 in row 1 is outside", partial(call, log))
        other = partial(call, log, task="MountainCar")
        _refuses(errors.InvalidDataError, ValueError, "4 observation coord", other)
        _refuses(
            errors.InvalidArgumentError, ValueError, "action_size=",
            partial(call, Trajectories.from_arrays(agents=[0], observations=[[0.0]], actions=[0],
                                                   next_observations=[[0.0]])),
        )  # fmt: skip
        fits = Trajectories.from_arrays(agents=[0], observations=np.zeros((1, 4)), actions=[0],
                                        next_observations=np.zeros((1, 4)), task="CartPole")  # fmt: skip
        for size, message in ((5, "but task CartPole has 2 actions"), (2.5, "must be a whole"), ("3", "must be a")):
            _refuses(
                errors.InvalidArgumentError, ValueError, f"action_size='?{size}'?,? {message}",
                partial(call, fits, action_size=size),
            )  # fmt: skip
    _refuses(errors.InvalidDataError, ValueError, "not a replay buffer", lambda: interop.from_d3rlpy([1]))


HOURLY = dict(observations=["heart rate", "pressure"], action="dose", agent="patient", reward="score", time="hour")


@pytest.fixture
def table():
    """Two patients of a hospital, hour by hour."""
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(
        {
            "patient": ["patient-17"] * 3 + ["patient-4"] * 2,
            "hour": [0, 1, 2, 5, 6],
            "heart rate": [80.0, 82.0, 81.0, 70.0, 71.0],
            "pressure": [120, 121, 119, 110, 111],
            "dose": [0, 1, 0, 2, 0],
            "score": [0.0, 1.0, 0.5, 0.0, 1.0],
            "age": [61, 61, 61, 44, 44],
        }
    )


def test_a_hospitals_table(table):
    """The next row is the next state; each patient's last row has none. Labels stay, order is that of the rows."""
    log = interop.from_dataframe(table, covariates=["age"], **HOURLY)
    assert log.agent_labels == ("patient-17", "patient-4") and log.covariates.tolist() == [[61], [44]]
    assert log.observations.tolist() == [[80, 120], [82, 121], [70, 110]]
    assert log.next_observations.tolist() == [[82, 121], [81, 119], [71, 111]]
    assert log.rewards.tolist() == [0, 1, 0] and log.actions.tolist() == [0, 1, 2]
    assert log.truncated.tolist() == [False, True, True]
    continuous = interop.from_dataframe(table, **{**HOURLY, "action": ["dose"]})
    assert continuous.actions.tolist() == [[0], [1], [2]]


def test_times_with_gaps(table):
    """Hours as time stamps; a missing hour begins a new episode if one says so."""
    pandas = pytest.importorskip("pandas")
    table["hour"] = pandas.Timestamp("2026-01-01") + pandas.to_timedelta(table["hour"], unit="h")
    hourly = {**HOURLY, "time_step": pandas.Timedelta("1h")}
    assert len(interop.from_dataframe(table, **hourly)) == 3
    gapped = table.drop(index=1)
    with pytest.raises(errors.InvalidDataError, match="'patient-17' goes from .* in row 1: steps are missing"):
        interop.from_dataframe(gapped, **hourly)
    split = interop.from_dataframe(pandas.concat([table, table.tail(2).assign(hour=table["hour"].tail(2).iloc[-1]
                                   + pandas.to_timedelta([3, 4], unit="h"))]), gaps="split", **hourly)  # fmt: skip
    assert split.episode_starts.tolist() == [0, 2, 3]
    with pytest.raises(errors.InvalidDataError, match="no transition"):
        interop.from_dataframe(gapped, gaps="split", **hourly)
    with pytest.raises(errors.InvalidArgumentError, match="time_step"):
        interop.from_dataframe(table, **HOURLY)


@pytest.mark.parametrize(
    ("message", "change", "arguments"),
    [
        ("no column 'patient' of agents.*single_agent=", lambda t: t.drop(columns="patient"), {}),
        ("no column 'age at birth'", lambda t: t, {"covariates": ["age at birth"]}),
        ("'hour' of agent 'patient-17' goes from 0 to 2 in row 1: steps are missing", lambda t: t.drop(index=1), {}),
        ("goes from 1 to 0 in row 1: rows are out of order.*sort_values", lambda t: t.iloc[[1, 0, 2, 3, 4]], {}),
        ("row 3 goes on with agent 'patient-17'.*sort_values", lambda t: t.iloc[[0, 3, 4, 1, 2]], {"time": None}),
        ("'heart rate' has no value in row 2", lambda t: t.replace({"heart rate": {81.0: None}}), {}),
        ("'heart rate' holds 'high' in row 0.*no number", lambda t: t.assign(**{"heart rate": "high"}), {}),
        ("'heart rate' holds 'high' in row 1.*no number",
         lambda t: t.assign(**{"heart rate": ["80", "high", "70", "71", "72"]}), {}),
        ("'heart rate' holds numbers as object; make it.*astype",
         lambda t: t.assign(**{"heart rate": t["heart rate"].astype(object)}), {}),
        ("goes from 0 to 0 in row 1: two rows have the same time", lambda t: t.assign(hour=[0, 0, 1, 0, 1]), {}),
        ("rows are out of order", lambda t: t.assign(hour=np.array([1, 0, 1, 0, 1], np.uint8)), {}),
        ("several columns 'age'", lambda t: t.rename(columns={"hour": "age"}), {"time": None, "covariates": ["age"]}),
        ("has no observation coordinate", lambda t: t, {"observations": []}),
        ("'dose' holds 0.5 in row 0.*action=\\['dose'\\]", lambda t: t.assign(dose=0.5), {}),
        ("'dose' holds -1.0 in row 0", lambda t: t.assign(dose=-1), {}),
        ("covariate 'score' of agent 'patient-17' is 0.0 at first and 1.0 in row 1", lambda t: t,
         {"covariates": ["score"]}),
        ("'age' holds 61 in row 0; it must hold true or false", lambda t: t, {"terminated": "age"}),
        ("the table has no row", lambda t: t.iloc[:0], {}),
        ("2 observation coord.*CartPole has 4", lambda t: t, {"task": "CartPole"}),
        ("action 2 in row 3 is outside 0 … 1", lambda t: t, {"task": "two doses"}),
        ("agent_labels lacks", lambda t: t, {"agent_labels": ["patient-17"]}),
        ("'patient-5' has no transition", lambda t: t, {"agent_labels": ["patient-17", "patient-4", "patient-5"]}),
    ],
)  # fmt: skip
def test_tables_that_are_refused(table, message, change, arguments):
    """Each with the column, the row and what to do."""
    if arguments.get("task") == "two doses":
        arguments = {"task": own_task_of_two_actions()}
    call = partial(interop.from_dataframe, change(table), **{**HOURLY, **arguments})
    _refuses(errors.InvalidDataError, ValueError, message, call)


def test_tables_that_are_none(tmp_path, table):
    """Other files, no names, and one agent only if one says so."""
    (tmp_path / "log.xlsx").write_text("")
    refuses = partial(_refuses, errors.InvalidArgumentError, ValueError)
    refuses("csv or .parquet", lambda: interop.from_dataframe(tmp_path / "log.xlsx"))
    refuses(r"what has to_pandas\(\), or a file, got list", lambda: interop.from_dataframe([1]))
    refuses("observations=", lambda: interop.from_dataframe(table))
    refuses(r"\['dose'\]", lambda: interop.from_dataframe(table, **{**HOURLY, "observations": "dose"}))
    for step in (0, -1, float("nan")):
        refuses("time_step=.* must be above 0", lambda step=step: interop.from_dataframe(
            table, **{**HOURLY, "time_step": step}))  # fmt: skip
    refuses("gaps='fill'", lambda: interop.from_dataframe(table, gaps="fill", **HOURLY))
    refuses("named 'reward'", lambda: interop.to_dataframe(
        interop.from_dataframe(table, **HOURLY), observation_names=["reward", "x"]))  # fmt: skip
    _refuses(errors.MissingFileError, FileNotFoundError, "gone", lambda: interop.from_dataframe(tmp_path / "gone.csv"))
    one = interop.from_dataframe(table.head(3), single_agent="me", **{**HOURLY, "agent": "nobody"})
    assert one.agent_labels == ("me",)


def test_a_tables_labels_reach_gym_make(table, tmp_path, registry):
    """`gym.make(..., agent="patient-17")`."""
    import gymnasium

    log = interop.from_dataframe(table, **{**HOURLY, "reward": None})
    config = persim_gym.PerSimConfig(rank=1, state_hidden=(4,), num_members=1, epochs=1)
    ensemble = persim_gym.fit(log, task=walk_task(), config=config, validation_fraction=0, progress=False)
    env = gymnasium.make("PerSim-CartPole-v0", model=ensemble, agent="patient-17", disable_env_checker=True)
    assert env.unwrapped.agent == 0


@pytest.mark.parametrize(
    ("library", "module", "call"),
    [
        ("pandas", "pandas", "interop.to_dataframe(log)"),
        ("d3rlpy", "d3rlpy", "interop.to_d3rlpy(log)"),
        ("minari", "minari", "interop.to_minari(log, 'x-v0')"),
        ("pyarrow", "pyarrow", "interop.from_dataframe('log.parquet')"),
    ],
)
def test_a_missing_library_of_interop_names_its_extra(run_python, tmp_path, library, module, call):
    """As an ImportError that says what to install."""
    extra = {"pandas": "tables", "pyarrow": "tables"}.get(library, library)
    if library == "pyarrow":
        pytest.importorskip("pandas")
    (tmp_path / "log.parquet").touch()
    code = f"""
import sys
sys.modules[{module!r}] = None
import numpy as np, persim_gym
from persim_gym import interop
log = persim_gym.collect("CartPole", num_agents=1)
try:
    {call}
except persim_gym.errors.MissingExtraError as error:
    print(error)
"""
    assert f'{library} is needed for this: pip install "persim-gym[{extra}]"' in run_python(code, cwd=tmp_path)


def test_every_bridge_is_found():
    """By name, from the package."""
    for name in interop.__all__:
        module = importlib.import_module(getattr(interop, name).__module__)
        assert module.__name__.startswith("persim_gym.interop.")
        assert name in dir(interop)
    assert not hasattr(interop, "to_nowhere")


def test_an_agent_left_out_of_a_csv_file(tmp_path, table):
    """It is missing, not an agent without a name, unless one is expected."""
    table.assign(patient=["patient-17", None, *table["patient"][2:]]).to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(errors.InvalidDataError, match="'patient' has no value in row 1"):
        interop.from_dataframe(tmp_path / "log.csv", **HOURLY)


def test_a_column_of_ones_own_named_synthetic(table):
    """Recorded rows may say so in several ways; anything else marks the log."""
    for marks, expected in (
        ([0] * 5, None), (["no"] * 5, None), ([None] * 5, None), ([False] * 5, None),
        ([True] * 5, True), ([1] * 5, "in part"), ([True, False, True, True, True], "in part"),
    ):  # fmt: skip
        log = interop.from_dataframe(table.assign(synthetic=marks), **HOURLY)
        assert log.provenance.get("synthetic") == expected


def test_episodes_named_by_anything(table):
    """Numbers and texts in one column."""
    mixed = table.assign(stay=["a", "a", "a", 1, 1])
    assert interop.from_dataframe(mixed, episode="stay", **HOURLY).num_episodes == 2


TINY_CSV = "id,t,x,a\nann,0,1.5,0\nann,1,2.5,1\nann,2,3.5,0\n"
TINY = {"agent": "id", "observations": ["x"], "action": "a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,t,x,a\nann,0,1.5,0,\nann,1,2.5,1,\n", "more fields than its header has names"),
        ("id,x,x,a\nann,1,2,0\nann,2,3,0\n", "several columns 'x'"),
        ("", "cannot be read as a table"),
        (TINY_CSV + 'ann,3,"4.5,0\n', "cannot be read as a table"),
        (TINY_CSV + "ann,3,4.5,0,7,8\n", "cannot be read as a table"),
    ],
)
def test_broken_csv_files_are_refused(tmp_path, text, message):
    pytest.importorskip("pandas")
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(errors.InvalidDataError, match=message):
        interop.from_dataframe(path, **TINY)


def test_other_names_of_table_files(tmp_path):
    """Compressed, in capitals; an index with names counts as columns."""
    pandas = pytest.importorskip("pandas")
    (tmp_path / "T.CSV").write_text(TINY_CSV)
    table = pandas.read_csv(tmp_path / "T.CSV")
    table.to_csv(tmp_path / "t.csv.gz", index=False)
    for given in (tmp_path / "T.CSV", tmp_path / "t.csv.gz", table.set_index(["id", "t"])):
        log = interop.from_dataframe(given, **TINY, time="t")
        assert log.observations[:, 0].tolist() == [1.5, 2.5] and log.agent_labels == ("ann",)


def test_times_that_are_large_numbers():
    """Tenths of a second since 1970, in double precision: steps, as far as such numbers tell."""
    pandas = pytest.importorskip("pandas")
    times = 1.7e9 + np.arange(50) * 0.1
    table = pandas.DataFrame({"id": "ann", "t": np.delete(times, 20), "x": np.arange(49.0), "a": 0})
    log = interop.from_dataframe(table, **TINY, time="t", time_step=0.1, gaps="split")
    assert log.episode_lengths.tolist() == [19, 28]


def test_a_part_of_our_own_table(cart_pole_log):
    """Agents that are gone are left out; what the table says of itself is not changed without a word."""
    pytest.importorskip("pandas")
    frame = interop.to_dataframe(cart_pole_log)
    part = interop.from_dataframe(frame[frame["agent"] != "0"], task="CartPole", provenance={"policy": "mine"})
    assert_same(part, cart_pole_log.select(range(1, 20)), provenance=False)
    assert part.provenance == {"policy": "mine"}
    with pytest.raises(errors.InvalidArgumentError, match="reward= is given without observations="):
        interop.from_dataframe(frame, reward="score")


def test_ends_that_a_table_loses_are_told():
    """Without next observations the last row of an episode goes, and with it that it was terminal."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"id": "ann", "x": [3.0, 2.0, 1.0, 0.0], "a": 0, "dead": [0, 0, 0, 1]})
    with pytest.warns(RuntimeWarning, match="terminated is true in 1 row "):
        log = interop.from_dataframe(table, **TINY, terminated="dead")
    assert not log.terminated.any()


@pytest.mark.parametrize("step", [None, 0, "1h"])
def test_time_steps_that_are_none(step):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"id": "ann", "t": [0, 1, 2], "x": [3.0, 2.0, 1.0], "a": 0})
    with pytest.raises(errors.InvalidArgumentError, match="time_step="):
        interop.from_dataframe(table, **TINY, time="t", time_step=step)
