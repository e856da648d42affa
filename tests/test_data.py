"""`Trajectories`: made from a user's arrays, selected, joined, written and read."""

import dataclasses
import datetime

import numpy as np
import pytest
import torch

from persim_gym import Trajectories, errors, storage
from persim_gym.data.consistency import check_consistent
from persim_gym.data.labels import find_listed
from persim_gym.tasks import get_task

COLUMNS = ("agents", "observations", "actions", "rewards", "next_observations", "terminated", "truncated")


@pytest.fixture
def log():
    """Two episodes of "b" (3 rows, then 1), one of "a" (2 rows)."""
    return Trajectories.from_arrays(
        agents=["b", "b", "b", "b", "a", "a"],
        observations=np.arange(12).reshape(6, 2),
        actions=[0, 1, 0, 1, 0, 1],
        next_observations=np.arange(12).reshape(6, 2) + 1,
        rewards=[1, 2, 3, 4, 5, 6],
        terminated=[False, False, True, False, False, False],
        covariates=[[0.5], [0.25]],
        covariate_names=["mass"],
        task="Mine",
        provenance={"policy": "nurse"},
    )


def test_from_arrays(log):
    """Labels in order of appearance, episodes where the agent changes or one ended, the last rows cut."""
    assert log.agent_labels == ("b", "a")
    assert (log.num_transitions, log.num_agents, log.num_episodes, log.discrete) == (6, 2, 3, True)
    np.testing.assert_array_equal(log.agents, [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(log.episode_starts, [0, 3, 4])
    np.testing.assert_array_equal(log.episode_lengths, [3, 1, 2])
    np.testing.assert_array_equal(log.episode_agents, [0, 0, 1])
    np.testing.assert_array_equal(log.episode_returns, [6, 4, 11])
    np.testing.assert_array_equal(log.initial_observations, [[0, 1], [6, 7], [8, 9]])
    np.testing.assert_array_equal(log.truncated, [False, False, False, True, False, True])
    assert log.agent_index("a") == log.agent_index(1) == 1


def test_a_log_keeps_the_name_of_a_task_given_as_it_is(tmp_path):
    """So that it can be written and shown."""
    task = get_task("MountainCar")
    log = Trajectories.from_arrays(
        agents=[0], observations=[[0.0, 0.0]], actions=[1], next_observations=[[0.1, 0.0]], task=task
    )
    log.save(tmp_path / "log.safetensors")
    assert log.task == Trajectories.load(tmp_path / "log.safetensors").task == "MountainCar"
    assert repr(log).startswith("Trajectories(MountainCar: 1 agents")


def test_next_observations_are_successors():
    """Without them each row's successor is taken, within its episode only, and the last rows go."""
    log = Trajectories.from_arrays(
        agents=[7, 7, 7, 9, 9],
        observations=[[0.0], [1.0], [2.0], [10.0], [11.0]],
        actions=[[0.1], [0.2], [0.3], [0.4], [0.5]],
    )
    np.testing.assert_array_equal(log.observations[:, 0], [0, 1, 10])
    np.testing.assert_array_equal(log.next_observations[:, 0], [1, 2, 11])
    np.testing.assert_allclose(log.actions[:, 0], [0.1, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(log.episode_starts, [0, 2])
    np.testing.assert_array_equal(log.truncated, [False, True, True])
    assert log.agent_labels == ("7", "9") and not log.discrete


@pytest.mark.parametrize("ended", [True, False])
def test_the_row_before_the_one_that_goes_is_cut_unless_it_is_terminal(ended):
    """Where no row is said to be truncated: the last row, which has no successor, is the state that it leads to."""
    log = Trajectories.from_arrays(
        agents=[0] * 4, observations=np.eye(4, 1), actions=[0] * 4, terminated=[0, 0, ended, 0], truncated=[0] * 4
    )
    assert log.terminated.tolist() == [False, False, ended] and log.truncated.tolist() == [False, False, not ended]


def test_episode_starts_may_be_given():
    """Two episodes of one agent, told apart by nothing in the columns."""
    log = Trajectories.from_arrays(
        agents=np.zeros(4, int), observations=np.zeros((4, 1)), actions=np.zeros(4, int),
        next_observations=np.zeros((4, 1)), episode_starts=[0, 1], agent_labels=["x"],
    )  # fmt: skip
    np.testing.assert_array_equal(log.episode_lengths, [1, 3])
    np.testing.assert_array_equal(log.truncated, [True, False, False, True])


def test_select(log):
    """Agents in the order asked for, each with its own rows, episodes, label and covariates."""
    swapped = log.select(["a", "b"])
    rows = [4, 5, 0, 1, 2, 3]
    for name in COLUMNS[1:]:
        np.testing.assert_array_equal(getattr(swapped, name), getattr(log, name)[rows])
    np.testing.assert_array_equal(swapped.agents, [0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(swapped.episode_starts, [0, 2, 5])
    np.testing.assert_array_equal(swapped.covariates, [[0.25], [0.5]])
    assert swapped.agent_labels == ("a", "b")
    assert len(log.select([1])) == 2


def rows_of(*logs):
    """All that is in the rows of logs, but for cuts, in one order: labels, observations, actions, and what followed."""
    return sorted(
        (part.agent_labels[part.agents[row]], *(np.ravel(getattr(part, name)[row]).tolist() for name in COLUMNS[1:6]))
        for part in logs
        for row in range(len(part))
    )


def test_split_by_time(log):
    """The last rows of each agent; the episode that is cut is truncated there, and no transition is lost."""
    kept, held_out = log.split(0.4)
    assert kept.agent_labels == held_out.agent_labels == ("b", "a") and kept.provenance == log.provenance
    assert kept.rewards.tolist() == [1, 2, 5] and held_out.rewards.tolist() == [3, 4, 6]
    assert kept.episode_starts.tolist() == [0, 2] and held_out.episode_starts.tolist() == [0, 1, 2]
    assert kept.truncated.tolist() == [False, True, True] and not kept.terminated.any()
    assert held_out.truncated.tolist() == [False, True, True] and held_out.terminated.tolist() == [True, False, False]
    for fraction in (0.01, 0.25, 0.6, 0.99):
        parts = log.split(fraction)
        assert rows_of(*parts) == rows_of(log)
        for part in parts:
            check_consistent(part)
            assert part.num_agents == 2
    assert len(log.split(0.25)[1]) == 2 and len(log.split(0.99)[0]) == 2
    assert not log.truncated[1]  # the log itself stays as it is


def test_split_by_episode(log):
    """An agent with a single one is in the log to learn from only; labels and covariates stay with their agents."""
    swapped = log.select(["a", "b"])
    kept, held_out = swapped.split(0.9, by="episode")
    assert kept.agent_labels == ("a", "b") and kept.rewards.tolist() == [5, 6, 1, 2, 3]
    assert held_out.agent_labels == ("b",) and held_out.rewards.tolist() == [4] and held_out.agents.tolist() == [0]
    assert held_out.covariates.tolist() == [[0.5]] and kept.covariates.tolist() == [[0.25], [0.5]]
    np.testing.assert_array_equal(np.append(kept.truncated, held_out.truncated), swapped.truncated)
    assert rows_of(kept, held_out) == rows_of(log)


def test_split_by_agent():
    """Drawn by the seed, each in one of the logs, by time and its own label in both."""
    agents = np.repeat([f"agent {index}" for index in range(20)], 3)
    log = Trajectories.from_arrays(
        agents=agents, observations=np.arange(60.0)[:, None], actions=[0] * 60, provenance={"synthetic": True}
    )
    parts = {seed: log.split(0.3, by="agent", seed=seed) for seed in (0, 1)}
    for kept, held_out in parts.values():
        assert (kept.num_agents, held_out.num_agents) == (14, 6) and rows_of(kept, held_out) == rows_of(log)
        assert sorted(kept.agent_labels + held_out.agent_labels) == sorted(log.agent_labels)
        assert kept.provenance["synthetic"] is held_out.provenance["synthetic"] is True
    assert parts[0][1].digest == log.split(0.3, by="agent")[1].digest != parts[1][1].digest


def test_what_cannot_be_split(log):
    for fraction in (0, 1, -0.1, "half", np.nan):
        with pytest.raises(errors.InvalidArgumentError, match=f"fraction={fraction!r}"):
            log.split(fraction)
    with pytest.raises(errors.InvalidArgumentError, match="by='row' must be one of time, episode, agent"):
        log.split(0.5, by="row")
    single = Trajectories.from_arrays(agents=[0], observations=[[0.0]], actions=[0], next_observations=[[1.0]])
    for by, needed in (("time", "several transitions"), ("episode", "several episodes"), ("agent", "second agent")):
        with pytest.raises(errors.InvalidDataError, match=f"nothing can be held out by='{by}'.* no .*{needed}"):
            single.split(0.5, by=by)


def test_concatenate(log):
    """What was taken apart fits together again; a label is one agent wherever it appears."""
    parts = [log.select(["b"]), log.select(["a"]), log.select(["b"])]
    joined = Trajectories.concatenate(parts)
    assert joined.agent_labels == ("b", "a")
    np.testing.assert_array_equal(joined.agents, [0] * 4 + [1] * 2 + [0] * 4)
    np.testing.assert_array_equal(joined.episode_starts, [0, 3, 4, 6, 9])
    np.testing.assert_array_equal(joined.rewards, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4])
    np.testing.assert_array_equal(joined.covariates, log.covariates)


def test_covariates_in_another_order_are_joined_by_name(log):
    """As those of a log and of the synthetic data of a task that names them otherwise."""
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    one = dataclasses.replace(log, covariates=values, covariate_names=("mass", "age"))
    other = dataclasses.replace(log, covariates=values[:, ::-1], covariate_names=("age", "mass"))
    joined = Trajectories.concatenate([one.select(["b"]), other])
    assert joined.covariate_names == ("mass", "age") and joined.agent_labels == ("b", "a")
    np.testing.assert_array_equal(joined.covariates, values)


def test_a_saved_log_is_loaded_to_the_bit(log, tmp_path):
    """Every column to the bit, mapped and not read, and everything else."""
    path = tmp_path / "folder" / "log.safetensors"
    log.save(path)
    loaded = Trajectories.load(path)
    for name in (*COLUMNS, "episode_starts", "covariates"):
        saved, found = getattr(log, name), getattr(loaded, name)
        assert isinstance(found, np.memmap) and found.dtype == saved.dtype
        np.testing.assert_array_equal(found, saved)
    for name in ("agent_labels", "covariate_names", "task", "provenance"):
        assert getattr(loaded, name) == getattr(log, name)
    assert loaded.digest == log.digest


def test_a_log_without_extras_survives_saving(tmp_path):
    """No covariates, no task, continuous actions."""
    log = Trajectories.from_arrays(agents=[0, 0], observations=[[1.0], [2.0]], actions=[[1.0, 2.0], [3.0, 4.0]])
    log.save(tmp_path / "log")
    loaded = Trajectories.load(tmp_path / "log")
    assert loaded.covariates is None and loaded.task is None
    np.testing.assert_array_equal(loaded.actions, [[1.0, 2.0]])


def test_digest_sees_every_column(log):
    """Changing a single number or an episode's bound changes the digest."""
    digests = {log.digest}
    for name in COLUMNS:
        changed = getattr(log, name).copy()
        changed[-1] = 1 - changed[-1] if changed.dtype != bool else ~changed[-1]
        digests.add(dataclasses.replace(log, **{name: changed}).digest)
    digests.add(dataclasses.replace(log, episode_starts=np.array([0, 2, 4])).digest)
    assert len(digests) == len(COLUMNS) + 2


def test_repr_says_what_a_log_is(log):
    """Task, sizes, mean length and mean return, which a log without rewards does not have."""
    text = repr(log)
    for part in ("Mine", "2 agents", "3 episodes", "6 transitions", "2 observations", "length 2.0", "return 7.0"):
        assert part in text
    assert "(1–3), no rewards)" in repr(dataclasses.replace(log, rewards=np.zeros(6, np.float32)))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"terminated holds 'False' in row 0; it must be True or False", {"terminated": ["False"] * 4}),
        (r"terminated holds nan in row 1", {"terminated": [0, np.nan, 0, 1]}),
        (r"truncated holds 5 in row 3", {"truncated": [0, 0, 0, 5]}),
        (r"observations must .* some entries are masked", {"observations": np.ma.masked_values(np.eye(4, 2), 1.0)}),
        (r"actions must .* some entries are masked", {"actions": np.ma.masked_equal([0, 1, 9, 1], 9)}),
        (r"actions must .* some entries are masked", {"actions": np.ma.masked_values(np.eye(4, 2), 1.0)}),
        (r"terminated must .* some entries are masked", {"terminated": np.ma.masked_equal([0, 0, 1, 0], 1)}),
        (r"agents must .* some entries are masked", {"agents": np.ma.masked_equal([0, 0, 1, 1], 1)}),
        (
            r"covariates must .* some entries are masked",
            {"covariates": np.ma.masked_values([[1.0], [2.0]], 2.0), "covariate_names": ["age"]},
        ),
        (r"rewards must be numbers; .* requires grad", {"rewards": torch.zeros(4, requires_grad=True)}),
        (r"rewards must be real numbers, got complex128", {"rewards": np.ones(4) * 1j}),
        (r"rewards must be real numbers, got datetime64", {"rewards": np.zeros(4, "datetime64[s]")}),
        (r"observations holds \[1e\+40, 0.0\] in row 0: too large for float32", {"observations": np.eye(4, 2) * 1e40}),
        (r"no observation coordinate: observations have shape \(4, 0\)", {"observations": np.zeros((4, 0))}),
    ],
)
def test_columns_that_would_mean_something_else(message, changes):
    """Nothing becomes True, real or finite by being converted."""
    columns = {"agents": [0, 0, 1, 1], "observations": np.zeros((4, 2)), "actions": [0, 1, 0, 1]}
    columns["next_observations"] = np.zeros_like(changes.get("observations", columns["observations"]))
    with pytest.raises(errors.InvalidDataError, match=message):
        Trajectories.from_arrays(**{**columns, **changes})


def test_a_flag_that_is_not_known():
    pandas = pytest.importorskip("pandas")
    unknown = pandas.Series([True, False, None, False], dtype="boolean")
    with pytest.raises(errors.InvalidDataError, match="terminated holds <NA> in row 2"):
        Trajectories.from_arrays(
            agents=[0] * 4, observations=np.zeros((4, 1)), actions=[0] * 4, next_observations=np.zeros((4, 1)),
            terminated=unknown,
        )  # fmt: skip


def test_a_log_keeps_no_array_of_its_makers():
    """Who fills the same arrays again, in whatever type, does not change the log that was made of them before."""
    given = {
        "observations": np.zeros((4, 2), np.float32),
        "next_observations": np.zeros((4, 2), np.float32),
        "actions": np.zeros((4, 1), np.float32),
        "rewards": np.zeros(4, np.float32),
        "terminated": np.zeros(4, bool),
        "covariates": np.zeros((1, 1)),
    }
    log = Trajectories.from_arrays(agents=[0] * 4, covariate_names=["age"], **given)
    for column in given.values():
        column[...] = 1
    assert not any(np.any(getattr(log, name)) for name in given)


def test_agents_of_any_type():
    """Of several types at once; a missing one, whatever it is called, is refused."""
    log = Trajectories.from_arrays(
        agents=np.array([1, 1, "b", "b"], object), observations=np.zeros((4, 1)), actions=[0] * 4,
        next_observations=np.zeros((4, 1)),
    )  # fmt: skip
    assert log.agent_labels == ("1", "b")
    pandas = pytest.importorskip("pandas")
    for missing in (None, np.nan, pandas.NA):
        with pytest.raises(errors.InvalidDataError, match="no value in row 1"):
            Trajectories.from_arrays(
                agents=np.array(["a", missing], object), observations=np.zeros((2, 1)), actions=[0, 0]
            )


def test_indices_too_large_are_refused():
    """They would wrap around."""
    columns = {"observations": np.zeros((2, 1)), "next_observations": np.zeros((2, 1))}
    with pytest.raises(errors.InvalidDataError, match="run from 0 to 4294967296"):
        Trajectories.from_arrays(agents=np.array([0, 2**32]), actions=[0, 0], agent_labels=["a", "b"], **columns)
    with pytest.raises(errors.InvalidDataError, match="action 9223372036854775808 in row 1"):
        Trajectories.from_arrays(agents=["a", "a"], actions=np.array([0, 2**63], np.uint64), **columns)


def test_numbers_that_float32_cannot_tell_apart_are_refused():
    steps = np.arange(20, dtype=np.float64)
    for offset, fine in ((1e9, False), (1e3, True)):
        made = {"agents": ["a"] * 20, "observations": offset + 1.5 * steps[:, None], "actions": [0] * 20}
        if fine:
            assert np.ptp(Trajectories.from_arrays(**made).observations) > 0
        else:
            with pytest.raises(errors.InvalidDataError, match=r"reaches 1e\+09 and changes by 1.5.*subtract an offset"):
                Trajectories.from_arrays(**made)


def test_only_changes_within_an_episode_say_whether_float32_can_tell_them_apart():
    """Neither a system that settles, whose last changes are next to nothing, nor the way from one agent to the next."""
    heaters = np.concatenate([start + 5 * 0.9 ** np.arange(300) for start in (20.0, 900.0)])
    agents = np.repeat(["cold", "hot"], 300)
    assert Trajectories.from_arrays(agents=agents, observations=heaters[:, None], actions=[0] * 600).num_agents == 2
    clocks = np.concatenate([start + 60.0 * np.arange(300) for start in (1.6e9, 1.7e9)])
    with pytest.raises(errors.InvalidDataError, match="changes by 60, .* has steps of 128"):
        Trajectories.from_arrays(agents=agents, observations=clocks[:, None], actions=[0] * 600)
    with pytest.raises(errors.InvalidDataError, match="changes by 60, .* has steps of 128"):  # as tables have them
        Trajectories.from_arrays(agents=agents, observations=clocks[:, None].astype(object), actions=[0] * 600)


def test_the_rows_of_an_episode_stand_together():
    """Rows by time, all agents in each, are no episodes of one step unless they say so; episodes by turns are fine."""
    columns = {"observations": np.arange(6.0)[:, None], "actions": [0] * 6, "next_observations": np.ones((6, 1))}
    by_turns = np.array([0, 0, 1, 1, 0, 0])
    with pytest.raises(errors.InvalidDataError, match="row 2 goes on with an agent after rows of others"):
        Trajectories.from_arrays(agents=[0, 1, 0, 1, 0, 1], **columns)
    with pytest.raises(errors.InvalidDataError, match="row 4 goes on with an agent after rows of others"):
        Trajectories.from_arrays(agents=by_turns, truncated=[0, 0, 0, 1, 0, 1], **columns)
    ended = [0, 1, 0, 1, 0, 1]
    assert Trajectories.from_arrays(agents=by_turns, terminated=ended, **columns).num_episodes == 3
    assert Trajectories.from_arrays(agents=by_turns, episode_starts=[0, 2, 4], **columns).num_episodes == 3
    del columns["next_observations"]
    last = [1, 0, 1, 0, 1, 0]  # then the next row holds the state in which the episode ended
    assert Trajectories.from_arrays(agents=by_turns, terminated=last, **columns).num_episodes == 3
    with pytest.raises(errors.InvalidDataError, match="row 4 goes on"):
        Trajectories.from_arrays(agents=by_turns, **columns)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, document: document.pop("agent_labels"),
        lambda arrays, document: document.update(provenance=5),
        lambda arrays, document: arrays.update(rewards=arrays["rewards"].astype(np.int32)),
        lambda arrays, document: arrays.update(agents=arrays["agents"][:, None]),
        lambda arrays, document: arrays.pop("truncated"),
    ],
)
def test_damaged_files_are_refused(log, tmp_path, change):
    log.save(tmp_path / "log")
    arrays, document = storage.read(tmp_path / "log", "trajectories")
    arrays = {name: np.array(array) for name, array in arrays.items()}
    change(arrays, document)
    storage.write(tmp_path / "damaged", "trajectories", arrays, document)
    with pytest.raises(errors.FileFormatError, match="damaged"):
        Trajectories.load(tmp_path / "damaged")


def test_numpys_numbers_go_into_files(log, tmp_path):
    """What JSON cannot hold at all is refused."""
    dataclasses.replace(log, provenance={"rows": np.int64(5), "means": np.ones(2)}).save(tmp_path / "log")
    assert Trajectories.load(tmp_path / "log").provenance == {"rows": 5, "means": [1.0, 1.0]}
    with pytest.raises(errors.InvalidArgumentError, match="cannot be kept in a file"):
        dataclasses.replace(log, provenance={"who": object()}).save(tmp_path / "log")


def small(**changes):
    columns = {
        "agents": ["x"] * 4,
        "observations": np.array([[1.0, 10], [2, 20], [3, 30], [4, 40]]),
        "actions": [0, 1, 0, 1],
        "next_observations": np.array([[2.0, 20], [3, 30], [4, 40], [5, 50]]),
    }
    return Trajectories.from_arrays(**{**columns, **changes})


def test_a_data_frame_names_its_columns_itself():
    """And its columns are never taken for others."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(small().observations, columns=["a", "b"])
    assert small(observations=frame).observation_names == ("a", "b")
    assert small(observations=frame, observation_names=["one", "two"]).observation_names == ("one", "two")
    following = pandas.DataFrame(small().next_observations, columns=["a", "b"])
    for changes in (
        {"observations": frame, "next_observations": following[["b", "a"]]},
        {"observations": frame, "observation_names": ["b", "a"]},
    ):
        with pytest.raises(errors.InvalidDataError, match=r"columns \['.', '.'\] was given, but observation_names are"):
            small(**changes)


@pytest.mark.parametrize(
    ("column", "numbers"),
    [("rewards", [2e9, 2e9 + 1, 2e9, 2e9 + 3]), ("rewards", [1e-50, 3e-50, 0, 0]), ("actions", 2e9 + np.eye(4)[:, :1])],
)
def test_numbers_that_float32_cannot_tell_apart(column, numbers):
    with pytest.raises(errors.InvalidDataError, match=f"{column}.* but float32, which logs are kept in, errs by"):
        small(**{column: numbers})
    assert small(rewards=[1 / 3] * 4).rewards.tolist() == [np.float32(1 / 3)] * 4
    assert small(rewards=[1e6, 1e6 + 1, 1e6 - 1, 1e6]).rewards.std() > 0


def test_what_no_file_could_hold_is_refused_at_once():
    """Before hours of training are spent on the log."""
    with pytest.raises(errors.InvalidArgumentError, match=r"datetime.date\(2026, 1, 31\), a date, cannot be kept"):
        small(provenance={"extracted": datetime.date(2026, 1, 31)})
    with pytest.raises(errors.InvalidArgumentError, match="covariate_names='age' must be a list of names"):
        small(covariates=[[40.0]], covariate_names="age")


def test_many_agents_are_found_by_label():
    """In the order given; a long list is not printed when one is named twice."""
    labels = [f"m{place}" for place in range(3000)]
    log = small(agents=[0, 1, 2, 3], agent_labels=labels[:4])
    assert log.select(["m3", "m0"]).agent_labels == ("m3", "m0")
    assert find_listed(labels[::-1], labels).tolist() == list(range(3000))[::-1]
    with pytest.raises(
        errors.InvalidArgumentError, match="must name at least one agent, and none twice: 'm7' is"
    ) as told:
        find_listed([*labels, "m7"], labels)
    assert len(str(told.value)) < 300
    with pytest.raises(errors.UnknownNameError, match="no agent is labelled 'm3000'"):
        find_listed(["m1", "m3000"], labels)
