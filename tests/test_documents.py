"""README, examples and demo do what they say."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest
from rich.console import Console

from persim_gym.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL_EXAMPLES = {
    "quickstart.py": ["--agents", "8", "--epochs", "2"],
    "what_if.py": ["--out", "picture.png"],
    "compare_policies.py": ["--agents", "2", "--episodes", "2"],
    "own_table.py": ["--patients", "4", "--epochs", "2"],
    "new_agents.py": ["--patients", "110", "--epochs", "2"],
    "learned_reward.py": ["--agents", "6", "--epochs", "2"],
    "train_sb3.py": ["--steps", "128", "--episodes", "2", "--json", "result.json"],
    "feed_d3rlpy.py": ["--steps", "3", "--candidates", "5", "--episodes", "2"],
    "mpc_many_agents.py": ["--agents", "0", "4", "--steps", "4", "--candidates", "5"],
}
NEEDED = {"own_table.py": "pandas", "train_sb3.py": "stable_baselines3", "feed_d3rlpy.py": "d3rlpy"}


def readme_blocks(language):
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:agent 'p-17' takes .* of its simulated steps where")  # as the README says
def test_readme_python_runs_in_order(tmp_path, monkeypatch):
    """Every Python block runs, each after those before it; Stable-Baselines3's where that is installed."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    before = dict(gym.registry)
    try:
        namespace = {}
        sb3 = find_spec("stable_baselines3") is not None
        blocks = [block for block in readme_blocks("python") if sb3 or "to_sb3_vec_env" not in block]
        for block in blocks:
            exec(compile(block, "README.md", "exec"), namespace)
    finally:
        gym.registry.clear()
        gym.registry.update(before)
    assert len(blocks) >= 3
    assert namespace["action"] in (0, 1)


def test_readme_names_the_test_command():
    """The two commands of the README are targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_example_is_run_here():
    """No example goes untested."""
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(SMALL_EXAMPLES)


@pytest.mark.parametrize("name", SMALL_EXAMPLES)
def test_example_runs(name, tmp_path):
    """At a small scale, from another folder, and under 80 lines."""
    pytest.importorskip(NEEDED.get(name, "matplotlib"))
    script = ROOT / "examples" / name
    assert len(script.read_text().splitlines()) < 80
    done = subprocess.run(
        [sys.executable, str(script), *SMALL_EXAMPLES[name]],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(tmp_path.iterdir())


def test_demo_says_at_once_that_it_cannot_draw(tmp_path, monkeypatch):
    """Before it collects, trains and evaluates."""
    from persim_gym.cli.demo import run_demo

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    settings = {"num_agents": 8, "epochs": 2, "episodes": 1, "num_candidates": 20, "seed": 0, "progress": False}
    with pytest.raises(MissingExtraError, match=r'matplotlib is needed for this: pip install "persim-gym\[plots\]"'):
        run_demo(tmp_path, console=None, **settings)
    assert not list(tmp_path.iterdir())


def test_demo_goes_the_whole_road(tmp_path):
    """Data, model, records and picture are there, and the printed lines name the model."""
    pytest.importorskip("matplotlib")
    from persim_gym.cli.demo import run_demo

    console = Console(record=True, width=10_000, file=open(os.devnull, "w"))  # noqa: SIM115
    run_demo(tmp_path, num_agents=8, epochs=2, episodes=1, num_candidates=20, seed=0, console=console, progress=False)
    console.file.close()
    records = json.loads((tmp_path / "demo.json").read_text())
    assert [row["agent"] for row in records["prediction_error"]] == ["0", "1", "2", "3", "4"]
    assert len(records["returns"]) == 15
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed = console.export_text()
    assert f'register_ensemble("{tmp_path / "cartpole.persim"}")' in printed.replace("\n", "")
    headings = [line for line in printed.splitlines() if line.startswith("─") and line.endswith("─")]
    assert len(headings) == 4 and max(map(len, headings)) <= 80
