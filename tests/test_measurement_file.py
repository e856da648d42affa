"""Files of measurements: what is written is read again, lines are replaced, and two processes lose none."""

import dataclasses
import importlib
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from persim_gym.errors import FileFormatError

FOLDER = Path(__file__).parents[1] / "benchmarks"


@dataclasses.dataclass(frozen=True)
class Record:
    env: str
    seed: int
    value: float
    seconds: float = 1.0


def file_of(folder, **settings):
    if str(FOLDER) not in sys.path:  # of a process of its own
        sys.path.insert(0, str(FOLDER))
    module = importlib.import_module("measurement_file")
    return module.MeasurementFile(folder / "records.csv", Record, **settings)


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_lines_of_the_same_key_are_replaced(tmp_path):
    file = file_of(tmp_path, key=("env", "seed"))
    assert file.read() == []
    file.replace([Record("a", 0, 1.0), Record("a", 0, 2.0), Record("b", 0, 3.0)])
    file.replace([Record("a", 0, 4.0), Record("a", 1, 5.0)])
    assert file.read() == [Record("b", 0, 3.0), Record("a", 0, 4.0), Record("a", 1, 5.0)]
    everything = file_of(tmp_path)
    everything.replace([Record("c", 0, 6.0)])
    assert everything.read() == [Record("c", 0, 6.0)]


def test_lines_stand_in_their_order_and_floats_in_their_format(tmp_path):
    file = file_of(
        tmp_path, key=("env",), order=lambda record: record.seed, float_format=".2g", formats={"seconds": ".3f"}
    )
    file.replace([Record("a, b", 2, 1 / 3), Record("a, b", 1, float("nan"))])
    file.replace([Record("c", 0, 2)])
    assert file.path.read_text() == 'env,seed,value,seconds\nc,0,2,1.000\n"a, b",1,nan,1.000\n"a, b",2,0.33,1.000\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns env,seed,value,seconds"),
        ("env,value,seed,seconds\na,1,0,1\n", "must have the columns env,seed,value,seconds"),
        ("env,seed,value,seconds\na,0,,1\n", "is damaged"),
        ("env,seed,value,seconds\na,0,1\n", "is damaged"),
        ("env,seed,value,seconds\na,0,1,1,1\n", "is damaged"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, text, message):
    file = file_of(tmp_path, key=("env",))
    file.path.write_text(text)
    for attempt in (file.read, lambda: file.replace([Record("a", 0, 1.0)])):
        with pytest.raises(FileFormatError, match=message):
            attempt()
    assert file.path.read_text() == text


def test_lines_of_another_protocol_are_refused(tmp_path):
    file = file_of(tmp_path, key=("env",), versioned=True)
    file.replace([Record("CartPole", 0, 1.0)])
    versions = tmp_path / "records.meta.json"
    versions.write_text(re.sub(r'"CartPole": \d+', '"CartPole": 0', versions.read_text()))
    with pytest.raises(FileFormatError, match="CartPole was measured under protocol 0"):
        file.replace([Record("MountainCar", 0, 1.0)])


def slowly(record):
    """Sort by the seed, and give another process time to write between this one's reading and writing."""
    time.sleep(0.002)
    return record.seed


def write_five(folder, env):
    file = file_of(folder, key=("env", "seed"), order=slowly)
    (folder / env).touch()
    latest = time.monotonic() + 60
    while len(list(folder.glob("process-*"))) < 2:  # both begin at once
        assert time.monotonic() < latest, "the other process has not begun"
        time.sleep(0.001)
    for seed in range(5):
        file.replace([Record(env, seed, 0.0)])


def test_two_processes_lose_none_of_each_others_lines(tmp_path):
    envs = ["process-a", "process-b"]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(write_five, [tmp_path] * 2, envs))
    found = {(record.env, record.seed) for record in file_of(tmp_path).read()}
    assert found == {(env, seed) for env in envs for seed in range(5)}


def test_who_holds_the_lock_of_a_folder_may_write_into_it(tmp_path):
    file = file_of(tmp_path / "new", key=("env",))
    with importlib.import_module("measurement_file").locked(tmp_path / "new"):
        file.replace([Record("a", 0, 1.0)])
    assert file.read() == [Record("a", 0, 1.0)]


def committed():
    """Every file of measurements that the benchmarks write, at the scales that are kept."""
    module = {
        name: importlib.import_module(name)
        for name in (
            "calibration", "factors", "few_shot", "plateau", "policy_scale", "policy_values", "protocol", "results",
            "seeds", "settings", "speed", "startup",
        )
    }  # fmt: skip
    scales = [module["protocol"].get_scale(name) for name in ("full", "small")]
    files = [
        module[name].results_file()
        for name in ("plateau", "policy_scale", "policy_values", "settings", "speed", "startup")
    ]
    for scale in scales:
        files += [module[name].results_file(scale) for name in ("calibration", "factors", "few_shot")]
        files += [module["results"].results_file(table, scale) for table in module["protocol"].TABLES.values()]
        files.append(module["seeds"].seeds_file(scale))
    return files


def test_committed_files_are_written_as_they_were_read(tmp_path):
    """Formats and orders of lines are still those of the files that are there, every one of them."""
    files = {file.path.name: file for file in committed() if file.path.exists()}
    assert sorted(files) == sorted(
        path.name for path in (FOLDER / "results").glob("*.csv") if "-quick" not in path.name
    )
    for name, file in files.items():
        again = dataclasses.replace(file, path=tmp_path / name)
        again.replace(file.read())
        assert again.path.read_text() == file.path.read_text(), name
        if file.versioned:
            assert again.path.with_suffix(".meta.json").read_text() == file.path.with_suffix(".meta.json").read_text()
