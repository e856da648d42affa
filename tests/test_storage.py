"""Our files: readable by safetensors, whole or absent, refused when damaged."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from support import random_ensemble

import persim_gym
from persim_gym import errors, files, storage
from persim_gym.training.checkpoint import Checkpoint

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "flags": np.array([True, False, True]),
    "counts": np.array([2**40, -1]),
    "nothing": np.zeros((0, 4)),
    "scalar": np.array(2.5),
}


@pytest.fixture
def path(tmp_path):
    """A file with `ARRAYS`."""
    storage.write(tmp_path / "file", "thing", ARRAYS, {"note": "é", "list": [1, None]})
    return tmp_path / "file"


def rewrite_header(path, **changes):
    """Write the file again with another document, by safetensors alone."""
    with safe_open(path, "numpy") as file:
        document = json.loads(file.metadata()["persim_gym"])
    save_file(load_file(path), path, metadata={"persim_gym": json.dumps({**document, **changes})})


def test_round_trip(path):
    """Arrays and document come back; `read_document` returns the same document."""
    arrays, document = storage.read(path, "thing")
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)
    assert document["note"] == "é" and document["list"] == [1, None]
    assert storage.read_document(path, "thing") == document


@pytest.mark.parametrize("name", ["matrix", "flags", "counts", "scalar"])
def test_an_array_that_is_not_what_was_written(path, name):
    """One wrong bit of any kind of file is found when it is read; a file from before there were digests is read."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    arrays[name].reshape(-1).view(np.uint8)[0] ^= 1
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(errors.FileFormatError, match=f"file is damaged: array '{name}' is not what was written"):
        storage.read(path, "thing")
    document = json.loads(metadata["persim_gym"])
    del document["digests"]
    save_file(arrays, path, metadata={"persim_gym": json.dumps(document)})
    assert set(storage.read(path, "thing")[0]) == set(ARRAYS)


def test_the_file_is_plain_safetensors(path):
    """The library itself reads it, and the document is JSON in its metadata."""
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    with safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["persim_gym"])["format_version"] == storage.FORMAT_VERSION


def test_an_interrupted_write_leaves_the_old_file(path, monkeypatch):
    """Neither half a file nor a stray one."""
    before = path.read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.write(path, "thing", {"matrix": np.zeros(1000)}, {})
    with pytest.raises(KeyboardInterrupt):
        files.write_text(path, "half")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_every_truncation_is_noticed(path):
    """Whatever is missing at the end, the file is refused and not half read."""
    whole = path.read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 17), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(errors.FileFormatError, match=path.name):
            storage.read(path, "thing")


@pytest.mark.parametrize(
    "content",
    [
        b"not ours at all",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95pickle" + bytes(50),
        b"\x02" + bytes(7) + b"[]",
        bytes(64),
    ],
)
def test_foreign_files_are_refused(path, content):
    """Text, archives, pickles and zeros."""
    path.write_bytes(content)
    with pytest.raises(errors.FileFormatError, match="not a file of persim-gym"):
        storage.read(path, "thing")


def test_safetensors_of_others_are_refused(tmp_path):
    """With and without metadata of their own."""
    for metadata in (None, {"format": "pt"}):
        save_file({"matrix": np.zeros(2)}, tmp_path / "other", metadata=metadata)
        with pytest.raises(errors.FileFormatError, match="not a file of persim-gym"):
            storage.read(tmp_path / "other", "thing")


def test_a_newer_format_says_upgrade(path):
    """The next format is not guessed at."""
    rewrite_header(path, format_version=storage.FORMAT_VERSION + 1)
    with pytest.raises(errors.FileFormatError, match="upgrade"):
        storage.read(path, "thing")


def test_another_kind_is_refused(path):
    """The message names both kinds."""
    with pytest.raises(errors.FileFormatError, match="of kind 'thing'; one of kind 'ensemble'"):
        storage.read(path, "ensemble")


@pytest.mark.parametrize("kind", storage.READERS)
def test_what_reads_a_file_of_another_kind_is_said(tmp_path, kind):
    """And is what it is said to be: it finds other faults with these arrays than their kind."""
    storage.write(tmp_path / "file.any", kind, ARRAYS, {})
    with pytest.raises(errors.FileFormatError, match=rf"needed here \({storage.READERS[kind]} reads this one\)"):
        storage.read(tmp_path / "file.any", "thing")
    reader = functools.reduce(getattr, storage.READERS[kind].split(".")[1:], persim_gym)
    with pytest.raises(errors.FileFormatError) as told:
        reader(tmp_path / "file.any")
    assert "is a file of kind" not in str(told.value)


def test_entries_that_lie_are_refused(path):
    """A shape that does not fit its bytes."""
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"shape":[2,3]', b'"shape":[9,3]'))
    with pytest.raises(errors.FileFormatError, match="matrix"):
        storage.read(path, "thing")


def test_devices_are_written_into(tmp_path, run_python):
    """Standard output, a pipe here, is not replaced; neither is what swallows everything."""
    assert run_python("from persim_gym import files; files.write_text('/dev/stdout', 'one')") == "one"
    storage.write("/dev/null", "thing", ARRAYS, {})
    assert Path("/dev/null").is_char_device() and Path("/dev/stdout").is_symlink()


def test_read_only_files_are_refused(path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda target, mode: Path(target) != path)
    with pytest.raises(errors.FileWriteError, match="file cannot be written: it is read-only"):
        storage.write(path, "thing", ARRAYS, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_an_error_of_ours(path, monkeypatch):
    for write in (lambda to: files.write_text(to, "text"), lambda to: storage.write(to, "thing", ARRAYS, {})):
        with pytest.raises(errors.FileWriteError, match="/dev/full cannot be written .*No space left.*; make room"):
            write("/dev/full")
    before = path.read_bytes()

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(errors.FileWriteError, match="No space left"):
        storage.write(path, "thing", ARRAYS, {})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("part", "advice"),
    [("agent_labels", "give the agents shorter labels"), ("provenance", "keep less in the provenance"), ("note", "")],
)
def test_a_header_that_is_too_large_says_of_what(tmp_path, monkeypatch, part, advice):
    """No space would help; the bytes are those that safetensors counts, or a few more."""
    document = {"agent_labels": ["0"], "provenance": {}, part: ["é" * 50] * 10}
    storage.write(tmp_path / "whole", "thing", ARRAYS, document)
    size = int.from_bytes((tmp_path / "whole").read_bytes()[:8], "little")
    monkeypatch.setattr(storage, "_MAX_HEADER_BYTES", size - 8)
    message = rf"its header would have .* bytes, 3,[0-9]{{3}} of them for {part}, .* allows {size - 8:,}: {advice}"
    with pytest.raises(errors.FileWriteError, match=message):
        storage.write(tmp_path / "other", "thing", ARRAYS, document)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    monkeypatch.setattr(storage, "_MAX_HEADER_BYTES", size + 100)
    storage.write(tmp_path / "other", "thing", ARRAYS, document)


def test_training_goes_on_where_no_checkpoint_can_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise errors.FileWriteError("no room")

    checkpoint, resumed = Checkpoint(tmp_path / "model.part", {"seed": 0}), []

    def run(epoch):
        return SimpleNamespace(
            state=lambda: {"x": np.zeros(1)},
            progress=lambda: {"epoch": epoch},
            resume=lambda tensors, progress: resumed.append(progress["epoch"]),
        )

    checkpoint.write(run(1))
    monkeypatch.setattr(storage, "write", full)
    with pytest.warns(RuntimeWarning, match="training goes on without a checkpoint: no room"):
        checkpoint.write(run(2))
    checkpoint.resume(run(0))
    assert resumed == [1]


def test_kinds_of_files(path):
    assert storage.kind_of(path) == "thing" and storage.kind_of(path.with_name("none")) is None
    path.write_text("{}")
    assert storage.kind_of(path) is None


def with_header(path, change):
    """Write a file again with its entries changed."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    change(entries)
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries["agent.weight"].update(dtype="I32"),
        lambda entries: entries["agent.weight"].update(shape=[2**32, 2**32], data_offsets=[0, 0]),
        lambda entries: entries["agent.weight"].update(shape=[-2, -30, 2]),
    ],
)
def test_entries_that_say_something_else(tmp_path, change):
    """The bytes are as they were written; what they are taken for is not."""
    random_ensemble("CartPole").save(tmp_path / "model.persim")
    with_header(tmp_path / "model.persim", change)
    with pytest.raises(errors.FileFormatError, match=r"model\.persim.*agent.weight.*"):
        persim_gym.load(tmp_path / "model.persim")
