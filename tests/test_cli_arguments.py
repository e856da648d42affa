"""What is typed on the command line: agents, and files that must not be lost."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console
from support import random_ensemble

from persim_gym import errors, storage
from persim_gym.cli import app as cli
from persim_gym.cli.arguments import COLLECTED, ENSEMBLE, RECORDS, SYNTHETIC, agents_of, check_output
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
    (tmp_path / "records").write_text(json.dumps({}))
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


def test_a_trained_ensemble_is_not_lost_where_it_cannot_be_written(tmp_path, monkeypatch):
    """It is kept in the folder of temporary files, and the message says where."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.FileWriteError, match=r"not a folder; the ensemble is in .*model-.*\.persim") as caught:
        cli._save(random_ensemble("CartPole"), tmp_path / "file" / "model.persim")
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
