"""The command line as a user types it, in processes of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from persim_gym import Trajectories, calibrate, errors, load, personalize, update
from persim_gym.cli import app as cli
from persim_gym.cli.arguments import agents_of


def run(*arguments, cwd, home):
    """Run ``persim-gym …`` in a folder with its own model home."""
    return subprocess.run(
        [sys.executable, "-m", "persim_gym.cli", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PERSIM_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a small log and a model trained and installed from it by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    collected = run(
        "collect", "CartPole", "--agents", 12, "--seed", 3, "--out", "log.safetensors", cwd=folder, home=folder / "home"
    )
    assert collected.returncode == 0, collected.stderr
    trained = run(
        "train", "log.safetensors", "--out", "small.persim", "--epochs", 3, "--install", "--quiet",
        cwd=folder, home=folder / "home",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "PerSim-CartPole-agent11-v0" in trained.stdout
    assert "takes the place of the shipped model" in trained.stdout
    named = run(
        "train", "log.safetensors", "--out", "small.persim", "--epochs", 1, "--install", "--name", "Mine", "--quiet",
        cwd=folder, home=folder / "other home",
    )  # fmt: skip
    assert "PerSim-Mine-agent11-v0; to undo it, delete" in named.stdout and "shipped" not in named.stdout
    return folder


def test_collect_is_reproducible(workshop):
    """The same seed writes the same file."""
    run("collect", "CartPole", "--agents", 12, "--seed", 3, "--out", "again.safetensors", cwd=workshop, home=workshop)
    assert (workshop / "again.safetensors").read_bytes() == (workshop / "log.safetensors").read_bytes()


def test_evaluate_writes_records(workshop):
    """The JSON has one record an agent with what the table shows."""
    done = run(
        "evaluate", "small.persim", "--agents", "0,3-4", "--policy", "random", "--episodes", 5, "--mpc-episodes", 0,
        "--value-iteration-episodes", 2, "--json", "out.json", "--quiet", cwd=workshop, home=workshop / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads((workshop / "out.json").read_text())
    records = document["prediction_error"]
    assert [record["agent"] for record in records] == ["0", "3", "4"]
    assert all(record["episodes"] == 5 and record["rmse"] > 0 for record in records)
    planned = document["value_iteration_returns"]
    assert [record["episodes"] for record in planned] == [2, 2, 2] and all(0 < row["mean"] <= 200 for row in planned)
    assert "mpc_returns" not in document


def test_generate_writes_a_log_that_says_it_is_synthetic(workshop):
    """Three episodes of two agents, which train again."""
    done = run(
        "generate", "small.persim", "--agents", "1,4", "--episodes", 3, "--policy", "random", "--out",
        "synthetic.safetensors", "--quiet", cwd=workshop, home=workshop / "home",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 agents, 6 episodes" in done.stdout and "synthetic)" in done.stdout


def test_ensembles_grow_and_are_calibrated(workshop):
    """Trained on some agents of a log; the others are appended by half of their transitions, then told of the rest."""

    def done(*arguments):
        ended = run(*arguments, cwd=workshop, home=workshop / "growing")
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    done("collect", "CartPole", "--agents", 60, "--out", "sixty.safetensors")
    half = ["--fraction", 0.5]
    parts = ["--kept", "some.safetensors", "--held-out", "others.safetensors"]
    done("split", "sixty.safetensors", *parts, *half, "--by", "agent")
    done("split", "others.safetensors", "--kept", "early.safetensors", "--held-out", "late.safetensors", *half)
    done("train", "some.safetensors", "--out", "thirty.persim", "--epochs", 3, "--quiet")
    assert "60 agents" in done("personalize", "thirty.persim", "early.safetensors", "--out", "grown.persim")
    assert "60 agents" in done("update", "grown.persim", "late.safetensors", "--out", "told.persim")
    done("calibrate", "thirty.persim", "others.safetensors", "--out", "calibrated.persim", "--seed", 1)
    assert "PerSim-Grown-agent59-v0; to undo it" in done("install", "told.persim", "--name", "Grown")
    assert "Grown (CartPole)" in done("models")

    trained = load(workshop / "thirty.persim")
    others, early, late = (Trajectories.load(workshop / f"{name}.safetensors") for name in ("others", "early", "late"))
    in_library = update(personalize(trained, early), late)
    told, calibrated = load(workshop / "told.persim"), load(workshop / "calibrated.persim")
    assert told.agent_labels == trained.agent_labels + others.agent_labels
    assert np.array_equal(told.agent_factors([59]), in_library.agent_factors([59]))
    assert np.array_equal(calibrated.calibration, calibrate(trained, others, seed=1).calibration)
    assert calibrated.calibration is not None and trained.calibration is None


def test_models_lists_the_installed_one(workshop):
    """The installed model hides the shipped one of the same name."""
    done = run("models", cwd=workshop, home=workshop / "home")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "CartPole" in line)
    assert "installed" in row and "12" in row
    assert str(workshop / "home") in done.stdout.replace("\n", "")
    fresh = "import gymnasium, persim_gym; print(gymnasium.make('PerSim-CartPole-v0').unwrapped.ensemble.num_agents)"
    made = subprocess.run(
        [sys.executable, "-c", fresh], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PERSIM_HOME": str(workshop / "home")},
    )  # fmt: skip
    assert made.stdout.strip() == "12", made.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["collect", "Pendulum", "--out", "x"], "unknown task 'Pendulum'"),
        (["train", "missing.safetensors", "--out", "x.persim"], "missing.safetensors"),
        (
            ["train", "small.persim", "--out", "x.persim"],
            "one of kind 'trajectories' is needed",
        ),
        (["train", "log.safetensors", "--out", "x.persim", "--rank", "many"], "--rank 'many'"),
        (["evaluate", "log.safetensors"], "is a file of kind 'trajectories'; one of kind 'ensemble' is needed"),
        (["evaluate", "NoSuchModel"], "persim-gym models"),
        (["train", "[/b]", "--out", "x.persim"], "[/b]"),  # no markup
        (["train", "log.safetensors", "--out", "log.safetensors"], "log.safetensors is read, and would be overwritten"),
        (["generate", "small.persim", "--out", "small.persim"], "small.persim is read, and would be overwritten"),
        (
            ["train", "log.safetensors", "--out", "x.persim", "--install", "--name", "My model", "--epochs", "99999"],
            "name='My model' makes no id",
        ),
        (["train", "log.safetensors", "--out", "x.persim", "--task", "nowhere:TASK"], "can be imported from 'nowhere"),
        (["evaluate", "small.persim", "--agents", "three", "--policy", "random"], "labels are '0', '1', '2', '3', '4'"),
        (["evaluate", "small.persim", "--agents", "0,,3"], "--agents '0,,3' must look like"),
        (["evaluate", "small.persim", "--agents", "99", "--policy", "random"], "0 … 11"),
        (["evaluate", "small.persim", "--policy", "foo"], "--policy 'foo' is no policy, and there is no file"),
        (["evaluate", "small.persim", "--log", "log.safetensors", "--json", "home"], "home is a folder: give the name"),
        (
            ["evaluate", "small.persim", "--log", "log.safetensors", "--policy", "random"],
            "--policy is for true systems",
        ),
        (["evaluate", "small.persim", "--log", "log.safetensors", "--mpc-episodes", "1"], "--mpc-episodes is for true"),
        (["evaluate", "small.persim", "--horizon", "9"], "--horizon is for --log, which is not given: leave it out"),
        (["train", "log.safetensors", "--out", "home"], "home is a folder: give the name of a file"),
        (["collect", "CartPole", "--out", "log.safetensors/x"], "log.safetensors is not a folder"),
        (["personalize", "small.persim", "log.safetensors", "--out", "x.persim"], "is in the ensemble already"),
        (["update", "small.persim", "log.safetensors", "--out", "small.persim"], "is read, and would be overwritten"),
        (["calibrate", "small.persim", "missing.safetensors", "--out", "x.persim"], "missing.safetensors"),
        (["install", "small.persim", "--name", "My model"], "name='My model' makes no id"),
    ],
)
def test_errors_are_said_and_exit_1(workshop, arguments, wanted, monkeypatch, capsys):
    """What is wrong and what to do; in this process, for another one takes seconds to begin."""
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("PERSIM_HOME", str(workshop / "home"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["persim-gym", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert wanted in capsys.readouterr().err


def test_an_error_is_one_line(workshop):
    """As a user sees it: no traceback, nothing on the standard output."""
    done = run("train", "missing.safetensors", "--out", "x.persim", cwd=workshop, home=workshop / "home")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: there is no file") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, None),
        ("0-2,7", [0, 1, 2, 7]),
        ("anna, patient-17,3", ["anna", "patient-17", 3]),
        ("3-b", ["3-b"]),
        ("17-", ["17-"]),
        ("101", ["101"]),
        ("2021-07,1", ["2021-07", 1]),
        ("a, b", ["a, b"]),
    ],
)
def test_agents_are_labels_or_indices(text, wanted):
    """What is somebody's label is that, even if it looks like a number, a range or a list."""
    assert agents_of(text, ["anna", "101", "2021-07", "a, b"]) == wanted


def test_ranges_go_up():
    with pytest.raises(errors.InvalidArgumentError, match="--agents '0,4-1': '4-1' goes down; write 1-4"):
        agents_of("0,4-1", ["0"])


def test_unknown_option_exits_2(workshop):
    """As usual on a command line."""
    assert run("collect", "CartPole", "--nonsense", cwd=workshop, home=workshop).returncode == 2


def test_train_takes_a_task_of_ones_own(workshop):
    """From a module in the current folder; what the model says of it is enough to evaluate it along a log."""
    (workshop / "own.py").write_text(
        "from gymnasium import spaces\nimport persim_gym\n"
        "TASK = persim_gym.Task('Poles', spaces.Box(-100, 100, (4,)), spaces.Discrete(2), 200)\n"
    )
    settings = {"cwd": workshop, "home": workshop / "home"}
    done = run(
        "train", "log.safetensors", "--out", "own.persim", "--task", "own:TASK", "--epochs", 1, "--quiet", **settings
    )
    assert done.returncode == 0, done.stderr
    done = run("evaluate", "own.persim", **settings)
    assert done.returncode == 1 and "task Poles has no true system to measure in; give --log" in done.stderr
    done = run("evaluate", "own.persim", "--log", "log.safetensors", "--agents", "0", **settings)
    assert done.returncode == 0 and "ratio" in done.stdout, done.stderr


def test_a_trained_model_finds_the_functions_of_its_task(workshop):
    """By the words that `train` was given, in every later command; the task need not know them."""
    (workshop / "ruled.py").write_text(
        "from gymnasium import spaces\nimport persim_gym\n"
        "TASK = persim_gym.Task('Ruled', spaces.Box(-100, 100, (4,)), spaces.Discrete(2), 200,\n"
        "    reward=lambda before, actions, after: 1.0 + 0 * after[..., 0],\n"
        "    terminated=lambda after: after[..., 2] > 1)\n"
    )
    settings = {"cwd": workshop, "home": workshop / "home"}
    train = ["train", "log.safetensors", "--out", "ruled.persim", "--task", "ruled:TASK", "--epochs", 1, "--quiet"]
    done = run(*train, **settings)
    assert done.returncode == 0, done.stderr
    done = run("evaluate", "ruled.persim", "--log", "log.safetensors", "--agents", "0", **settings)
    assert done.returncode == 0 and "ratio" in done.stdout, done.stderr
    made = ["ruled.persim", "--agents", "0", "--episodes", 1, "--policy", "random", "--out", "made.safetensors"]
    done = run("generate", *made, **settings)
    assert done.returncode == 0, done.stderr
