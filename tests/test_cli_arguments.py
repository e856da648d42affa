"""What is typed on the command line: agents, files that must not be lost, and options, which all reach their call."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support import interrupt_after, random_ensemble

import persim_gym
from persim_gym import Ensemble, Trajectories, errors, storage
from persim_gym.cli import app as cli
from persim_gym.cli import ensembles
from persim_gym.cli.arguments import COLLECTED, ENSEMBLE, RECORDS, SYNTHETIC, agents_of, check_output
from persim_gym.interop import from_dataframe, to_dataframe
from persim_gym.terminal import table

PATIENTS = [str(number) for number in range(1, 7)]


@pytest.mark.parametrize(
    ("text", "labels", "wanted"),
    [
        ("1-3", PATIENTS, ["1", "2", "3"]),
        ("0,3", PATIENTS, ["0", "3"]),
        ("1,9", PATIENTS, ["1", "9"]),
        ("9", PATIENTS, ["9"]),
        ("008-010", ["008", "009", "010"], ["008", "009", "010"]),
        ("0-2", ["0", "1", "2"], [0, 1, 2]),
        ("0,1", ["anna", "ben"], [0, 1]),
        ("²", ["anna", "ben"], ["²"]),
    ],
)
def test_numbers_are_never_labels_and_indices_at_once(text, labels, wanted):
    assert agents_of(text, labels) == wanted


@pytest.mark.parametrize("labels", [PATIENTS, ["0", "1"]])
def test_a_mistyped_range_is_not_made(labels):
    with pytest.raises(
        errors.InvalidArgumentError, match=f"'0-999999999' is 1000000000 agents; there are {len(labels)}"
    ):
        agents_of("0-999999999", labels)


@pytest.fixture
def files(tmp_path, cart_pole_log):
    """One of everything."""
    made = cart_pole_log.select([0])
    contents = {
        "collected": made,
        "recorded": dataclasses.replace(made, provenance={"table": "ward.csv"}),
        "synthetic": dataclasses.replace(made, provenance={"synthetic": True}),
        "partly": dataclasses.replace(made, provenance={"synthetic": "in part"}),
        "ensemble": random_ensemble("CartPole"),
    }
    for name, content in contents.items():
        content.save(tmp_path / name)
    (tmp_path / "records").write_text(json.dumps({"command": "persim-gym evaluate", "provenance": {}}))
    (tmp_path / "notebook").write_text(json.dumps({"cells": ["an analysis"], "nbformat": 4}))
    (tmp_path / "table").write_text("a,b\n1,2\n")
    (tmp_path / "empty").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "replaces"),
    [(COLLECTED, "collected"), (SYNTHETIC, "synthetic"), (ENSEMBLE, "ensemble"), (RECORDS, "records")],
)
def test_a_command_replaces_what_it_writes_itself(files, content, replaces):
    """And nothing else; an empty file and none hold nothing to lose."""
    for path in [*files.iterdir(), files / "new"]:
        if path.name in (replaces, "empty", "new"):
            check_output(path, content)
        else:
            with pytest.raises(errors.InvalidArgumentError, match=f"{path.name} holds .* overwritten by {content}"):
                check_output(path, content)


@pytest.mark.parametrize(
    ("save", "content", "replaces"),
    [
        (lambda log, path: log.save(path), "a log", {"collected", "recorded", "synthetic", "partly"}),
        (lambda _, path: random_ensemble("CartPole", seed=1).save(path), "an ensemble", {"ensemble"}),
    ],
)
def test_saving_replaces_only_its_own_kind(files, cart_pole_log, save, content, replaces):
    """In Python; and no table's name is taken, by the command line neither."""
    for path in files.iterdir():
        before = path.read_bytes()
        if path.name in replaces | {"empty"}:
            save(cart_pole_log, path)
            assert path.read_bytes() != before
        else:
            with pytest.raises(errors.InvalidArgumentError, match=f"{path.name} holds .* overwritten by {content}"):
                save(cart_pole_log, path)
            assert path.read_bytes() == before
    for name in ("new.csv", "new.CSV.gz", "new.parquet"):
        for write in (lambda path: save(cart_pole_log, path), lambda path: check_output(path, ENSEMBLE)):
            with pytest.raises(errors.InvalidArgumentError, match=f"{name} is the name of a table, .*to_dataframe"):
                write(files / name)


def test_what_is_read_is_not_overwritten(files):
    with pytest.raises(errors.InvalidArgumentError, match="is read, and would be overwritten"):
        check_output(files / "records", RECORDS, None, "random", files / "records")


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Call the command line in a folder of its own, with the status that it exits with."""
    monkeypatch.chdir(tmp_path)

    def typed(status, *arguments):
        monkeypatch.setattr("sys.argv", ["persim-gym", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert exit.value.code == status

    return typed


def test_collect_and_train_do_what_their_options_say(typed, monkeypatch):
    """As the same calls in Python do; training that is interrupted goes on."""
    typed(0, "collect", "CartPole", "--policy", "pure-eps-20", "--agents", 8, "--seed", 4, "--out", "log.st")
    log = persim_gym.collect("CartPole", policy="pure-eps-20", num_agents=8, seed=4)
    assert Trajectories.load("log.st").digest == log.digest
    options = {"config": "CartPole", "rank": 4, "epochs": 3, "seed": 3, "device": "cpu"}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    expected = persim_gym.fit(log, **options, validation_fraction=0.3, refit=False, progress=False)
    written = interrupt_after(1, monkeypatch)
    for status in (130, 0):
        typed(status, "train", "log.st", "--out", "a.persim", *given, "--validation", 0.3, "--no-refit", "--quiet")
    found = Ensemble.load("a.persim")
    assert len(written) == 3 and found.config == expected.config
    for name in ("seed", "device", "validation_loss"):
        assert found.provenance[name] == expected.provenance[name]
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


def test_evaluate_does_what_its_options_say(typed, cart_pole, cart_pole_log):
    """As the same calls in Python do, in true systems and along a log."""
    cart_pole.save("model.persim")
    log = cart_pole_log.split(0.5)[1].select(["4", "7"])
    log.save("log.st")
    given = ["evaluate", "model.persim", "--aggregate", "median", "--quiet", "--json", "out.json"]
    true_systems = ["--agents", "1,4", "--seed", 3, "--policy", "random", "--episodes", 2, "--mpc-episodes", 1]
    typed(0, *given, *true_systems)
    found = json.loads(Path("out.json").read_text())
    rows = persim_gym.prediction_error(
        cart_pole, policy="random", agents=[1, 4], episodes=2, seed=3, aggregate="median"
    )
    assert [row["rmse"] for row in found["prediction_error"]] == [row.rmse for row in rows]
    rows = persim_gym.mpc_returns(cart_pole, agents=[1, 4], episodes=1, seed=3, aggregate="median")
    assert [row["mean"] for row in found["mpc_returns"]] == [row.mean for row in rows]
    typed(0, *given, "--log", "log.st", "--horizon", 7)
    found = json.loads(Path("out.json").read_text())["log_error"]
    rows = persim_gym.log_error(cart_pole, log, horizon=7, aggregate="median")
    assert [row["ratio"] for row in found] == [row.ratio for row in rows]


def test_evaluate_keeps_what_it_has_measured_when_it_is_interrupted(typed, cart_pole, monkeypatch):
    """The errors are in the file before MPC begins, which takes the longest."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    cart_pole.save("model.persim")
    monkeypatch.setattr(persim_gym, "mpc_returns", interrupted)
    typed(130, "evaluate", "model.persim", "--agents", "1", "--episodes", 2, "--quiet", "--json", "out.json")
    found = json.loads(Path("out.json").read_text())
    assert len(found["prediction_error"]) == 1 and "mpc_returns" not in found


def test_evaluate_says_before_it_measures_what_it_cannot(typed, half_cheetah, capsys):
    """Nothing is printed, and no hour spent, before the option that cannot be met is refused."""
    half_cheetah.save("cheetah.persim")
    typed(1, "evaluate", "cheetah.persim", "--policy", "random", "--value-iteration-episodes", 2)
    told = capsys.readouterr()
    assert "--value-iteration-episodes needs discrete actions, not HalfCheetah's: leave it out" in told.err
    assert told.out == ""


def test_generate_does_what_its_options_say(typed):
    """As the same call in Python does."""
    ensemble = random_ensemble("CartPole", step_size=0.01)
    ensemble.save("model.persim")
    typed(
        0, "generate", "model.persim", "--agents", "0,2", "--policy", "random", "--episodes", 4, "--seed", 3,
        "--starts", "task", "--aggregate", "median", "--max-disagreement", 0.01, "--quiet", "--out", "made.st",
    )  # fmt: skip
    settings = {"starts": "task", "aggregate": "median", "max_disagreement": 0.01, "seed": 3}
    made = persim_gym.generate(ensemble, [0, 2], 4, "random", **settings, progress=False)
    found = Trajectories.load("made.st")
    assert found.digest == made.digest and found.provenance == made.provenance
    assert made.provenance["episodes_cut"] > 0 and made.provenance["seed"] == 3


def test_import_does_what_its_options_say(typed):
    """As the same call in Python does, whatever is given; a comma is part of a column's name."""
    rows = ["who,visit,when,a,b,dose,flow,pay,c,d,over,cut,age"]
    rows += [
        f"{w},1,2026-01-31 0{h}:00,{h},{(h + 1) % 2},{h % 2},.{h},1.5,{h + 1},{h % 2},0,0,{w}"
        for w in (7, 8)
        for h in range(4)
    ]
    Path("ward.csv").write_text("\n".join(rows) + "\n")
    columns = {
        "agent": "who", "episode": "visit", "time": "when", "time_step": "1h", "gaps": "split", "reward": "pay",
        "terminated": "over", "truncated": "cut",
    }  # fmt: skip
    options = [part for name, value in columns.items() for part in (f"--{name.replace('_', '-')}", value)]
    states = ["--observation", "a", "--observation", "b"]
    after = ["--next-observation", "c", "--next-observation", "d", "--covariate", "age"]
    typed(0, "import", "ward.csv", "--out", "full.st", *states, "--action", "dose", *options, *after, "--task", "Ward")
    named = {"observations": ["a", "b"], "task": "Ward", **columns}
    full = from_dataframe(
        "ward.csv", action="dose", next_observations=["c", "d"], covariates=["age"], **named
    )  # fmt: skip
    found = Trajectories.load("full.st")
    assert found.digest == full.digest and found.provenance == full.provenance == {"table": "ward.csv"}
    assert found.agent_labels == ("7", "8") and found.num_transitions == 8 and found.discrete
    assert found.covariate_names == ("age",) and found.task == "Ward"
    for out, actions in (("one.st", ["flow"]), ("two.st", ["flow", "dose"])):
        given = [part for column in actions for part in ("--action", column)]
        typed(
            0, "import", "ward.csv", "--out", out, *states, *given, *options, "--task", "Ward",
            *(["--continuous"] if len(actions) == 1 else []),
        )  # fmt: skip
        assert Trajectories.load(out).digest == from_dataframe("ward.csv", action=actions, **named).digest
    Path("ward_task.py").write_text(
        "from gymnasium import spaces\nimport persim_gym\n"
        "TASK = persim_gym.Task(\n"
        "    'Ward', spaces.Box(-9, 9, (2,)), spaces.Box(0, 1, (1,)), 9, observation_names=('a', 'b')\n)\n"
    )
    typed(0, "import", "ward.csv", "--out", "own.st", *states, "--action", "flow", *options, "--task", "ward_task:TASK")
    assert Trajectories.load("own.st").digest == Trajectories.load("one.st").digest
    typed(0, "export", "own.st", "--out", "back.csv.gz", "--task", "ward_task:TASK")
    typed(
        0, "import", "back.csv.gz", "--out", "again.st", *states, "--action", "flow", "--continuous", "--episode",
        "episode", "--reward", "reward", "--next-observation", "next a", "--next-observation", "next b",
        "--terminated", "terminated", "--truncated", "truncated", "--task", "Ward",
    )  # fmt: skip
    assert Trajectories.load("again.st").digest == Trajectories.load("own.st").digest
    typed(0, "import", "ward.csv", "--out", "solo.st", *states, "--action", "dose", "--single-agent", "anna",
          "--episode", "who")  # fmt: skip
    assert Trajectories.load("solo.st").agent_labels == ("anna",)


def test_split_and_export_do_what_their_options_say(typed):
    """As the same calls in Python do."""
    log = persim_gym.collect("CartPole", num_agents=8, seed=4)
    log.save("log.st")
    for fraction, by, seed in ((0.2, "time", 0), (0.5, "agent", 3)):
        out = [f"{by}-kept.st", f"{by}-held.st"]
        options = [] if by == "time" else ["--fraction", fraction, "--by", by, "--seed", seed]
        typed(0, "split", "log.st", "--kept", out[0], "--held-out", out[1], *options)
        for path, part in zip(out, log.split(fraction, by=by, seed=seed), strict=True):
            assert Trajectories.load(path).digest == part.digest
    typed(0, "export", "log.st", "--out", "log.parquet")
    assert from_dataframe("log.parquet").digest == log.digest
    typed(0, "export", "log.st", "--out", "log.csv")
    again = from_dataframe("log.csv", **to_dataframe(log).attrs["persim_gym"]["columns"], task="CartPole")
    assert again.digest == log.digest
    assert [path.name for path in Path().glob(".*")] == []


def test_what_is_there_is_not_lost(typed, files, capsys):
    """By any command, before it has worked; an option that would do nothing is said, too."""
    (files / "ward.csv").write_text("a,b\n1,2\n")
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    for message, *arguments in (
        ("recorded holds a recorded log", "collect", "CartPole", "--agents", 1, "--out", "recorded"),
        ("recorded holds a recorded log", "train", "collected", "--out", "recorded", "--epochs", 1),
        ("recorded holds a recorded log", "generate", "ensemble", "--policy", "random", "--out", "recorded"),
        (
            "synthetic holds a synthetic log",
            "import",
            "table",
            "--observation",
            "a",
            "--action",
            "b",
            "--out",
            "synthetic",
        ),
        ("ensemble holds an ensemble", "split", "collected", "--kept", "new", "--held-out", "ensemble"),
        ("recorded holds a recorded log", "split", "collected", "--kept", "recorded", "--held-out", "new"),
        ("--kept and --held-out are both new", "split", "collected", "--kept", "new", "--held-out", "./new"),
        ("ward.csv holds a table", "export", "collected", "--out", "ward.csv"),
        ("new.txt must end with .csv", "export", "collected", "--out", "new.txt"),
        ("is read, and would be", "export", "ward.csv", "--out", "ward.csv"),
        ("table holds something else", "evaluate", "ensemble", "--policy", "random", "--json", "table"),
        ("ensemble is read, and would be", "evaluate", "ensemble", "--policy", "random", "--json", "ensemble"),
        ("--name is for --install", "train", "collected", "--out", "new", "--name", "Mine", "--epochs", 1),
    ):
        typed(1, *arguments)
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_a_trained_ensemble_is_not_lost_where_it_cannot_be_written(tmp_path, monkeypatch):
    """It is kept in the folder of temporary files, and the message says where."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.FileWriteError, match=r"not a folder; the ensemble is in .*model-.*\.persim") as caught:
        ensembles._save(random_ensemble("CartPole"), tmp_path / "file" / "model.persim")
    kept = str(caught.value).rsplit(" ", 1)[1]
    assert storage.kind_of(kept) == "ensemble"


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (["train", "collected", "--out", "new"], "interrupted; the same command goes on"),
        (["collect", "CartPole", "--out", "new"], "interrupted\n"),
    ],
)
def test_an_interrupted_command_says_whether_it_can_go_on(files, monkeypatch, capsys, command, wanted):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(files)
    monkeypatch.setattr("sys.argv", ["persim-gym", *command])
    monkeypatch.setattr("persim_gym.fit", interrupt, raising=False)
    monkeypatch.setattr("persim_gym.collect", interrupt, raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130 and wanted in capsys.readouterr().err


def test_long_labels_leave_room_for_the_numbers():
    """In 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    label = "hall 7/line 12/robot 123e4567-e89b-12d3-a456-426614174000"
    numbers = ", ".join(f"{value:.4g}" for value in np.linspace(0.1234, 0.9876, 18))
    console.print(table("errors", ["agent", "ratio", "rmse"], [[label, "0.8123", numbers]]))
    text = console.export_text()
    assert "0.8123" in text and "0.1234" in text and label[:36] in text
