"""Table 3, at a scale that shows only that it is measured: what the learners get, and whose figures stand beside."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return {
        name: importlib.import_module(name) for name in ("augmented", "cells", "models", "paper", "protocol", "results")
    }


@pytest.fixture
def table(benchmark):
    return benchmark["protocol"].get_table(3)


def test_every_row_is_measured(benchmark, table, tmp_path, capsys):
    """All methods for all five agents, on random data, which is the only data of the table."""
    pytest.importorskip("d3rlpy")
    arguments = ["--table", "3", "--seeds", "1", "--scale", "quick", "--device", "cpu", "--env", "CartPole"]
    folders = ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    assert benchmark["paper"].main([*arguments, *folders]) == 0
    rows = benchmark["results"].read(table, benchmark["protocol"].get_scale("quick"), tmp_path / "results")
    assert {(row.method, row.agent) for row in rows} == {(m, str(a)) for m in table.learned for a in range(5)}
    assert {row.data for row in rows} == {"random"} and all(np.isfinite(row.mean) for row in rows)
    printed = capsys.readouterr().out
    assert "*paper: PerSim-CQL-5*" in printed and "198.3" in printed
    cells = [path.name for path in (tmp_path / "cache").rglob("*.json")]
    assert any(name.startswith("table10-CartPole-random-BCQ-A") for name in cells)


@pytest.mark.parametrize("env", ["MountainCar", "CartPole"])
@pytest.mark.parametrize("method", ["PerSim-BCQ-5", "PerSim+ + VI-CQL-5", "PerSim+ + VI-CQL-5, selected"])
def test_the_six_trajectories(benchmark, table, env, method):
    """The agent's own and five synthetic ones from its simulator, planned as the method says, and marked as such."""
    from support import random_ensemble

    cell = benchmark["cells"].Cell(table, env, "random", method, 0, benchmark["protocol"].get_scale("quick"))
    log = benchmark["models"].logged(env, "random", cell.scale)
    ensemble = random_ensemble(env, num_agents=8, step_size=1e-3)
    simulated = dataclasses.replace(
        ensemble, agent_labels=log.agent_labels, covariates=log.covariates, initial_observations=log.observations[:5]
    )
    six = benchmark["augmented"].six_trajectories(cell, simulated, log, 3)
    assert six.num_episodes == 6 and six.agent_labels == ("3",)
    own = log.select([3])
    np.testing.assert_array_equal(six.actions[: len(own)], own.actions)
    assert six.provenance["synthetic"] == "in part"
    recorded, synthetic = six.provenance["concatenated"]
    assert not recorded.get("synthetic", False) and synthetic["synthetic"]
    assert synthetic["policy"] == ("value_iteration" if "VI" in method else "plan")
    assert synthetic["starts"] == ("spread" if "selected" in method else "log")


def test_policies_are_selected_in_the_simulator(benchmark, table, monkeypatch):
    """By their return there; the score of the table is that of the selected one in the true system."""
    pytest.importorskip("d3rlpy")
    from support import random_ensemble

    augmented, seen = benchmark["augmented"], []
    method = "PerSim+ + VI-BCQ-5, selected"
    cell = benchmark["cells"].Cell(table, "CartPole", "random", method, 0, benchmark["protocol"].get_scale("quick"))
    log = benchmark["models"].logged("CartPole", "random", cell.scale)
    ensemble = dataclasses.replace(
        random_ensemble("CartPole", num_agents=8, step_size=1e-3), agent_labels=log.agent_labels,
        covariates=log.covariates, initial_observations=log.observations[:5],
    )  # fmt: skip
    simulated_return = augmented.simulated_return

    def watched(*arguments):
        seen.append(simulated_return(*arguments))
        return seen[-1]

    monkeypatch.setattr(augmented, "simulated_return", watched)
    score = augmented._score(cell, ensemble, log, 2, "cpu")
    assert seen and all(0 < value <= 200 for value in seen) and score.value > 0


def test_the_papers_figures(benchmark, table):
    """Of all three environments."""
    figures = benchmark["results"].paper(table)
    assert figures["CartPole", "random", "PerSim-CQL-5", "1", "return"] == (198.3, 1.3)
    assert figures["MountainCar", "random", "PerSim-BCQ-5", "3", "return"] == (-498.7, 1.89)
    assert {env for env, *_ in figures} == set(table.envs)


def test_other_data_is_refused(benchmark, capsys):
    """The paper's table has random data only."""
    with pytest.raises(SystemExit):
        benchmark["paper"].main(["--table", "3", "--data", "pure", "--scale", "quick"])
    assert "table 3 has no rows on pure data; give one of random" in capsys.readouterr().err
