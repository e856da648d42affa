"""The command that reproduces the paper's tables, at a scale that shows only that it works."""

import dataclasses
import importlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pytest

import persim_gym
from persim_gym.errors import FileFormatError, UnknownNameError

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def search_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def benchmark(search_path):
    return {
        name: importlib.import_module(name)
        for name in ("cells", "measure", "methods", "models", "paper", "protocol", "readme", "results")
    }


@pytest.fixture
def folders(tmp_path):
    return ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]


def run(benchmark, folders, *arguments):
    return benchmark["paper"].main([*arguments, "--scale", "quick", "--device", "cpu", *folders])


def rows_of(benchmark, tmp_path, number):
    protocol = benchmark["protocol"]
    return benchmark["results"].read(protocol.get_table(number), protocol.get_scale("quick"), tmp_path / "results")


def test_a_table_is_measured_written_and_printed_beside_the_papers(benchmark, folders, tmp_path, capsys):
    assert run(benchmark, folders, "--table", "7", "--data", "random", "--seeds", "2") == 0
    rows = rows_of(benchmark, tmp_path, 7)
    methods = (
        "PerSim",
        "PerSim+",
        "PerSim median",
        "Vanilla CaDM",
        "PE-TS CaDM",
        "Vanilla CaDM+",
        "Joint network",
        "Joint network+",
    )
    assert len(rows) == len(methods) * 5 * 2  # methods, agents, metrics
    assert {(row.method, row.seeds) for row in rows} == {(method, 2) for method in methods}
    header = (tmp_path / "results" / "table7-quick.csv").read_text().splitlines()[0]
    assert header == "table,env,data,method,agent,metric,mean,std,seeds,scale,commit,wall_s"
    printed = capsys.readouterr().out
    assert "*paper: PerSim*" in printed and "0.0140" in printed  # Table 7, random, agent 1


def test_every_method_is_of_some_table(benchmark):
    tables = benchmark["protocol"].TABLES.values()
    assert {name for table in tables for name in (*table.learned, *table.true)} == set(benchmark["methods"].METHODS)


def test_every_method_is_kept_under_a_name_of_its_own(benchmark):
    cells, protocol = benchmark["cells"], benchmark["protocol"]
    for table in protocol.TABLES.values():
        methods = [*table.learned, *table.true]
        scale = protocol.get_scale("quick")
        names = {cells.Cell(table, "CartPole", "random", method, 0, scale).name for method in methods}
        assert len(names) == len(methods)


def test_the_mean_is_over_seeds_and_a_finished_cell_is_not_measured_again(benchmark, folders, tmp_path, monkeypatch):
    cells = benchmark["cells"]

    def pretend(cell, **_):
        calls.append(cell)
        return cells.Measured((cells.Score("0", "rmse", 1.0 + cell.seed),), "abc", 10.0)

    calls = []
    monkeypatch.setattr(benchmark["paper"], "measure", pretend)
    arguments = ("--table", "6", "--data", "random", "--method", "PerSim", "--seeds")
    run(benchmark, folders, *arguments, "3")
    run(benchmark, folders, *arguments, "2")
    assert [cell.seed for cell in calls] == [0, 1, 2]
    (row,) = rows_of(benchmark, tmp_path, 6)
    assert (row.mean, row.std, row.wall_s, row.commit) == (2.0, 1.0, 30.0, "abc")
    run(benchmark, folders, *arguments, "4")
    assert [cell.seed for cell in calls[3:]] == [3]
    (row,) = rows_of(benchmark, tmp_path, 6)
    assert (row.mean, row.seeds, row.wall_s) == (2.5, 4, 40.0)


def test_a_row_is_of_all_seeds_that_are_written_down(benchmark, folders, tmp_path, monkeypatch, capsys):
    cells = benchmark["cells"]

    def pretend(cell, **_):
        calls.append(cell.seed)
        return cells.Measured((cells.Score("0", "rmse", 1.0 + cell.seed),), "abc", 10.0)

    calls = []
    monkeypatch.setattr(benchmark["paper"], "measure", pretend)
    arguments = ("--table", "6", "--data", "random", "--method", "PerSim", "--seeds")
    run(benchmark, folders, *arguments, "1", "--first-seed", "2")
    (row,) = rows_of(benchmark, tmp_path, 6)
    assert (row.mean, row.seeds) == (3.0, 1)
    run(benchmark, folders, *arguments, "1", "--first-seed", "2")
    run(benchmark, folders, *arguments, "1", "--first-seed", "4")
    run(benchmark, folders, *arguments, "1")
    assert calls == [2, 4, 0]
    run(benchmark, folders, *arguments, "3")
    assert calls == [2, 4, 0, 1]
    (row,) = rows_of(benchmark, tmp_path, 6)
    assert (row.mean, row.seeds, row.wall_s) == (2.75, 4, 40.0)
    (tmp_path / "results" / "seeds-quick.csv").unlink()  # as of rows from before there was this file
    assert run(benchmark, folders, *arguments, "1", "--first-seed", "6") == 1
    assert rows_of(benchmark, tmp_path, 6) == [row]
    assert "the row has 4 seeds whose scores are not written down each, and would have 1" in capsys.readouterr().err


def test_seeds_are_written_down_one_by_one_for_all_tables_that_have_them(benchmark, folders, tmp_path, monkeypatch):
    cells = benchmark["cells"]

    def pretend(cell, **_):
        calls.append((cell.table.number, cell.seed))
        if cell.seed == 2:
            raise KeyboardInterrupt
        return cells.Measured((cells.Score("0", "return", -1 / 3),), "abc", 10.0)

    calls = []
    monkeypatch.setattr(benchmark["paper"], "measure", pretend)
    arguments = ("--env", "CartPole", "--data", "random", "--method", "BCQ-A", "--seeds")
    with pytest.raises(SystemExit, match="130"):
        run(benchmark, folders, "--table", "3", *arguments, "3")
    assert rows_of(benchmark, tmp_path, 3) == []
    run(benchmark, folders, "--table", "10", *arguments, "2")
    assert calls == [(3, 0), (3, 1), (3, 2)]
    (row,) = rows_of(benchmark, tmp_path, 10)
    assert (row.seeds, row.mean, row.commit) == (2, -0.333333, "abc")
    lines = (tmp_path / "results" / "seeds-quick.csv").read_text().splitlines()
    trained = '"steps = 2, batch_size = 4"'
    assert lines[1:] == [f"10,CartPole,random,BCQ-A,{seed},0,return,-0.333333,2,abc,10,{trained}," for seed in (0, 1)]
    damaged = tmp_path / "results" / "seeds-quick.csv"
    damaged.write_text(lines[0] + "\n10,CartPole,random,BCQ-A,0,0,return,,2,abc,10,,\n")
    with pytest.raises(FileFormatError, match=r"seeds-quick\.csv is damaged"):
        importlib.import_module("seeds").seeds_file(
            benchmark["protocol"].get_scale("quick"), tmp_path / "results"
        ).read()


@pytest.mark.parametrize(
    "change", [lambda quick: {"budgets": {**quick.budgets, "BCQ-A": {"steps": 7}}}, lambda _: {"policy_episodes": 3}]
)
def test_what_is_of_an_earlier_budget_is_measured_again_when_asked_for(
    benchmark, folders, tmp_path, monkeypatch, change
):
    """And what was trained and tried as it is today is not; a row never mixes the two."""
    cells, scales = benchmark["cells"], benchmark["protocol"].SCALES

    def pretend(cell, **_):
        calls.append(cell.seed)
        return cells.Measured((cells.Score("0", "return", float(len(calls))),), "abc", 10.0)

    calls = []
    monkeypatch.setattr(benchmark["paper"], "measure", pretend)
    arguments = ("--table", "10", "--data", "random", "--method", "BCQ-A", "--seeds")
    run(benchmark, folders, *arguments, "2")
    monkeypatch.setitem(scales, "quick", dataclasses.replace(scales["quick"], **change(scales["quick"])))
    assert run(benchmark, folders, *arguments, "1", "--again") == 1, "one seed of the two would be of another budget"
    run(benchmark, folders, *arguments, "2")
    assert calls == [0, 1, 0], "without being asked nothing is measured again"
    run(benchmark, folders, *arguments, "2", "--again")
    run(benchmark, folders, *arguments, "2", "--again")
    assert calls == [0, 1, 0, 1]
    (row,) = rows_of(benchmark, tmp_path, 10)
    assert (row.mean, row.seeds) == (3.5, 2)


def test_a_row_names_the_versions_of_all_its_seeds(benchmark, folders, tmp_path, monkeypatch):
    cells = benchmark["cells"]
    commits = iter(["old", "old new", "new-dirty"])
    monkeypatch.setattr(
        benchmark["paper"],
        "measure",
        lambda cell, **_: cells.Measured((cells.Score("0", "rmse", 1.0),), next(commits), 10.0),
    )
    run(benchmark, folders, "--table", "6", "--data", "random", "--method", "PerSim", "--seeds", "3")
    (row,) = rows_of(benchmark, tmp_path, 6)
    assert row.commit == "old new new-dirty"


def test_the_version_is_that_of_the_start(benchmark, tmp_path, monkeypatch):
    """Of the process that runs the code, and of all agents of a seed, though a later process measured some."""
    cells = benchmark["cells"]
    version = ["first"]
    monkeypatch.setattr(cells.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": version[0]}))
    cells.commit.cache_clear()

    def compute(agent=0):
        version[0] = "second"
        return cells.Score(str(agent), "rmse", 1.0)

    protocol = benchmark["protocol"]
    cell = cells.Cell(protocol.get_table(7), "CartPole", "random", "PerSim", 0, protocol.get_scale("quick"))
    assert cells.once(cell, tmp_path / "cell", lambda: [compute()]).commit == "first"
    assert cells.once(cell, tmp_path / "later", lambda: [compute()]).commit == "first"
    (tmp_path / f"{cell.name}-agent0.json").write_text('{"scores": [], "commit": "earlier", "wall_s": 1.0}')
    assert cells.by_agent(cell, tmp_path, compute).commit == "earlier first"
    cells.commit.cache_clear()


def test_a_score_of_another_budget_is_not_found_again(benchmark, tmp_path):
    """What the method's training or its evaluation gets counts, and nothing of other methods."""
    cells, protocol = benchmark["cells"], benchmark["protocol"]
    quick = protocol.get_scale("quick")

    def value(number, **changes):
        scale = dataclasses.replace(quick, **changes)
        cell = cells.Cell(protocol.get_table(10), "CartPole", "random", "BCQ-A", 0, scale)
        return cells.by_agent(cell, tmp_path, lambda agent: cells.Score(str(agent), "return", number)).scores[0].value

    assert value(1.0) == value(2.0) == value(3.0, budgets={**quick.budgets, "BCQ-P": {"steps": 9}}) == 1.0
    budgets = {**quick.budgets, "BCQ-A": {"steps": 9}}
    assert value(4.0, budgets=budgets) == value(5.0, budgets=budgets) == 4.0
    assert value(6.0, budgets=budgets, policy_episodes=3) == 6.0
    (kept, *_) = tmp_path.glob("*agent0.json")
    document = json.loads(kept.read_text())
    del document["budget"]
    kept.write_text(json.dumps(document))
    assert value(7.0) == 6.0, "a file from before budgets were kept is found"


def test_planning_in_the_true_system_is_measured_as_the_package_does(benchmark, folders, tmp_path, cart_pole):
    """The same planner in the very system that it acts in, as `persim_gym.true_mpc_returns` has it."""
    assert run(benchmark, folders, "--table", "10", "--data", "-", "--method", "True env + MPC", "--seeds", "1") == 0
    rows = rows_of(benchmark, tmp_path, 10)
    planner = benchmark["protocol"].get_scale("quick").planner
    expected = persim_gym.true_mpc_returns(cart_pole, episodes=1, seed=0, **planner)
    assert [(row.agent, row.mean) for row in rows] == [(found.agent, found.mean) for found in expected]


def test_an_interrupted_run_goes_on_where_it_stopped(benchmark, folders, tmp_path, monkeypatch):
    paper, measure = benchmark["paper"], benchmark["measure"]

    def interrupted(cell, **settings):
        if cell.seed == 1:
            raise KeyboardInterrupt
        return measure.measure(cell, **settings)

    arguments = ("--table", "10", "--data", "-", "--method", "True env + VI", "--seeds", "2")
    with monkeypatch.context() as patch:
        patch.setattr(paper, "measure", interrupted)
        with pytest.raises(SystemExit, match="130"):
            run(benchmark, folders, *arguments)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.json")}
    assert len(kept) == 5  # the agents of the first seed
    assert run(benchmark, folders, *arguments) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert [row.seeds for row in rows_of(benchmark, tmp_path, 10)] == [2] * 5


def test_the_return_of_each_episode_is_written_down(benchmark, folders, tmp_path):
    """In the order of first states, which more episodes do not change; also where an earlier run has measured it."""
    seeds, protocol = importlib.import_module("seeds"), benchmark["protocol"]

    def measured(episodes, name):
        quick = dataclasses.replace(protocol.get_scale("quick"), return_episodes=episodes)
        cell = benchmark["cells"].Cell(protocol.get_table(10), "CartPole", "-", "True env + VI", 0, quick)
        for folder in (f"{name} first", f"{name} again"):
            found = benchmark["measure"].measure(cell, device="cpu", cache=tmp_path / name)
            seeds.Seeds(quick, tmp_path / folder).put(cell, found)
        assert seeds.Seeds(quick, tmp_path / folder).get(cell).scores == found.scores
        values = seeds.values_of(protocol.get_table(10), quick, tmp_path / folder)
        return values["CartPole", "-", "True env + VI", "0"][0]

    few, many = measured(3, "few"), measured(7, "many")
    assert (len(few.of_each), len(many.of_each)) == (few.episodes, many.episodes) == (3, 7)
    assert len(set(many.of_each)) > 1 and many.of_each[:3] == few.of_each
    assert many.mean == pytest.approx(np.mean(many.of_each), rel=1e-5)
    assert many.of_first(3) == pytest.approx(few.mean, rel=1e-5) != pytest.approx(many.mean, rel=1e-5)


@pytest.mark.parametrize("scale", ["full", "small"])
def test_the_returns_of_episodes_that_are_written_down_have_the_mean_beside_them(benchmark, scale):
    seeds = importlib.import_module("seeds")
    lines = seeds.seeds_file(benchmark["protocol"].get_scale(scale)).read()
    for line in (one for one in lines if one.of_each):
        returns = [float(text) for text in line.of_each.split()]
        assert len(returns) == line.episodes and np.mean(returns) == pytest.approx(line.value, rel=1e-5), line


def test_tables_share_trained_ensembles(benchmark, folders, tmp_path):
    assert run(benchmark, folders, "--table", "7", "--data", "random", "--seeds", "1", "--method", "PerSim") == 0
    (model,) = (tmp_path / "cache").rglob("*.persim")
    written = model.stat().st_mtime_ns
    arguments = ("--table", "10", "--data", "random", "--seeds", "1", "--method", "PerSim", "PerSim + VI")
    assert run(benchmark, folders, *arguments) == 0
    assert model.stat().st_mtime_ns == written
    assert {row.method for row in rows_of(benchmark, tmp_path, 10)} == {"PerSim", "PerSim + VI"}


def test_results_of_another_protocol_are_refused(benchmark, folders, tmp_path, capsys):
    arguments = ("--table", "5", "--env", "CartPole", "--data", "random", "--seeds", "1")
    assert run(benchmark, folders, *arguments) == 0
    meta = tmp_path / "results" / "table5-quick.meta.json"
    versions = benchmark["protocol"].PROTOCOL
    meta.write_text(json.dumps({"protocol": versions | {"CartPole": 0}}))
    with pytest.raises(SystemExit):
        run(benchmark, folders, *arguments)
    assert "CartPole was measured under protocol 0" in capsys.readouterr().err
    meta.write_text(json.dumps({"protocol": versions | {"HalfCheetah": 0}}))
    assert len(rows_of(benchmark, tmp_path, 5)) == 7  # all CartPole's
    meta.unlink()
    with pytest.raises(FileFormatError, match="under protocol unknown"):
        rows_of(benchmark, tmp_path, 5)


def test_table_5_holds_the_logged_returns(benchmark, folders, tmp_path):
    from persim_gym import collect

    assert run(benchmark, folders, "--table", "5", "--env", "CartPole", "--data", "pure", "--seeds", "1") == 0
    log = collect("CartPole", policy="pure", num_agents=8, seed=0)
    found = {(row.agent, row.metric): row.mean for row in rows_of(benchmark, tmp_path, 5)}
    assert found["3", "return"] == log.episode_returns[3]
    assert found["mean", "length"] == pytest.approx(log.episode_lengths.mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--table", "4"), "table 4 is not reproduced here; there are 3, 5, 6"),
        (("--table", "6", "--data", "randon"), "no data set 'randon'; there are pure, pure-eps-20"),
        (("--table", "6", "--data", "-"), "table 6 has no rows without data"),
        (("--table", "6", "--method", "CaDM"), "no method 'CaDM' in this table; there are PerSim"),
        (("--table", "6", "--seeds", "0"), "seeds=0 must be at least 1"),
        (("--table", "6", "--first-seed", "-1"), "first_seed=-1 must be at least 0"),
    ],
)
def test_what_does_not_exist(benchmark, folders, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(benchmark, folders, *arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_scale_that_is_not_meant_for_an_environment_is_refused(benchmark, folders, capsys):
    with pytest.raises(SystemExit):
        benchmark["paper"].main(["--table", "7", "--data", "random", "--scale", "small", *folders])
    assert "scale 'small' is for HalfCheetah, table 7 is of CartPole" in capsys.readouterr().err


def test_a_smaller_scale_says_beside_its_table_what_it_changes(benchmark):
    readme, protocol = benchmark["readme"], benchmark["protocol"]
    returns, errors, few = (protocol.get_table(number) for number in (11, 8, 16))
    assert readme._departures(returns, protocol.get_scale("full")) == ""
    small = protocol.get_scale("small")
    assert "agents = 100, episodes = 1, episodes of policies = 10, planner = cem" in readme._departures(returns, small)
    assert "agents = 100, state_hidden" in readme._departures(errors, small)
    assert "agents" not in readme._departures(few, small)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "plateau",
            "--env CartPole --data random --method BCQ-A --agents 5 --steps 0 --every 1",
            "steps=0 must be at least 1",
        ),
        (
            "plateau",
            "--env CartPole --data random --method BCQ-P --agents 5 --steps 1 --every 0",
            "every=0 must be at least 1",
        ),
        (
            "plateau",
            "--env CartPole --data random --method BCQ-P --steps 1 --every 1 --agents 5 900",
            "agent=900 must be less than 500, the agents of the log",
        ),
        ("settings", "CartPole --agents 0", "agents=0 must be at least 1"),
        ("policy_scale", "--episodes 0", "episodes=0 must be at least 1"),
        ("policy_values", "--agents 0", "agents=0 must be at least 1"),
        ("calibration", "--agents -1", "agents=-1 must be at least 1"),
        ("few_shot", "--agents 0", "agents=0 must be at least 1"),
        ("startup", "--runs 0", "runs=0 must be at least 1"),
        ("paper", "--table 4", "table 4 is not reproduced here"),
    ],
)
def test_a_wrong_argument_is_one_line_and_a_status(script, arguments, message, capsys):
    if script == "plateau":
        pytest.importorskip("stable_baselines3")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(arguments.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    line = error.splitlines()[-1]
    assert "Traceback" not in error and "usage" not in error
    assert line.startswith(f"{script}.py: {message}")


def test_every_script_ends_alike():
    """All that have a main function report errors and end by it in the one way."""
    scripts = [path for path in FOLDER.glob("*.py") if "__main__" in path.read_text()]
    assert len(scripts) > 10
    for path in scripts:
        assert "@script\ndef main(" in path.read_text() and "raise SystemExit(main())" in path.read_text(), path.name


def test_a_model_that_another_process_trains_is_waited_for(benchmark, tmp_path, monkeypatch):
    models, scale = benchmark["models"], benchmark["protocol"].get_scale("quick")
    path = models.models_folder(tmp_path, "CartPole") / "CartPole-random-quick-seed0.persim"
    trained = []
    fit = models.fit

    def spy(*arguments, **settings):
        trained.append(models.locked_file(path).acquire)
        with pytest.raises(filelock.Timeout):
            trained[-1](timeout=0)
        return fit(*arguments, **settings)

    monkeypatch.setattr(models, "fit", spy)
    with ThreadPoolExecutor(2) as pool:
        settings = {"device": "cpu", "cache": tmp_path}
        found = [pool.submit(models.trained, "CartPole", "random", scale, 0, **settings) for _ in "ab"]
        assert found[0].result().config == found[1].result().config
    assert len(trained) == 1


def test_processes_divide_the_agents_of_a_cell(benchmark, tmp_path):
    """Two that measure the same cell are at work on different agents at once, and both come by all scores."""
    cells, protocol = benchmark["cells"], benchmark["protocol"]
    scale = protocol.get_scale("quick")
    cell = cells.Cell(protocol.get_table(10), "CartPole", "random", "PerSim", 0, scale)
    together, begun = threading.Barrier(2), []

    def compute(agent):
        begun.append(agent)
        if agent < 2:
            together.wait(timeout=30)
        return cells.Score(str(agent), "return", float(agent))

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cells.by_agent, cell, tmp_path, compute) for _ in "ab"]
        first, second = (one.result() for one in both)
    assert first == second and [score.value for score in first.scores] == [0, 1, 2, 3, 4]
    assert sorted(begun) == [0, 1, 2, 3, 4]


def test_a_scale_that_does_not_exist(benchmark):
    with pytest.raises(UnknownNameError, match="no scale 'big'; there are full, small, quick"):
        benchmark["protocol"].get_scale("big")


def test_a_missing_policy_is_reported_and_the_rest_is_measured(benchmark, folders, tmp_path, monkeypatch, capsys):
    from persim_gym.collection import logging_policies

    def missing(name, task, *arguments, **settings):
        if name == "pure":
            raise logging_policies.PerSimError("the policy is not among the shipped ones")
        return original(name, task, *arguments, **settings)

    collect = importlib.import_module("persim_gym.collection.collect")
    original = logging_policies.logging_policy
    monkeypatch.setattr(collect, "logging_policy", missing)
    arguments = ("--table", "5", "--env", "CartPole", "--data", "pure", "random", "--seeds", "1")
    assert run(benchmark, folders, *arguments) == 1
    assert "not measured: CartPole · pure · log: the policy is not" in capsys.readouterr().err
    assert {row.data for row in rows_of(benchmark, tmp_path, 5)} == {"random"}


def test_the_papers_figures_are_complete(benchmark):
    protocol, results = benchmark["protocol"], benchmark["results"]
    assert len(results.paper(protocol.get_table(5))) == 3 * 4 * 7
    for number in (6, 7, 8):
        assert len(results.paper(protocol.get_table(number))) == 3 * 4 * 5 * 2
    figures = results.paper(protocol.get_table(9))
    assert figures["MountainCar", "-", "True env+MPC", "0", "return"] == (-53.95, 4.10)


def test_figures_are_printed_as_long_as_they_mean_something(benchmark):
    printed = benchmark["results"]._format
    assert printed(0.01234, float("nan"), "rmse") == "0.0123"
    assert printed(-500.0, 0.0, "return") == "-500.0 ± 0.0"
    assert printed(7.94e13, 1.12e14, "rmse") == "7.94e+13 ± 1.12e+14"
    assert printed(61559.4, 106000.0, "rmse") == "6.16e+04 ± 1.06e+05"


def test_committed_results_are_readable_and_the_readme_is_up_to_date(benchmark):
    readme, protocol, results = benchmark["readme"], benchmark["protocol"], benchmark["results"]
    for table in protocol.TABLES.values():
        for row in results.read(table, protocol.get_scale("full")):
            assert np.isfinite(row.mean) and row.scale == "full"
    if readme.README.exists():
        text = readme.README.read_text()
        assert readme.update(text, readme.tables()) == text, "run python benchmarks/readme.py"
        assert readme.written(text) == text, "run python benchmarks/readme.py"


def test_the_readme_keeps_what_stands_around_the_tables(benchmark):
    readme = benchmark["readme"]
    text = f"intro\n{readme.BEGIN}\nold\n{readme.END}\noutro\n"
    once = readme.update(text, "new")
    assert once == readme.update(once, "new")
    assert once.startswith("intro\n") and once.endswith("outro\n") and "old" not in once
    with pytest.raises(FileFormatError, match="once each"):
        readme.update("no markers", "new")


def test_factors_know_the_covariate(benchmark, tmp_path, folders, capsys):
    factors = importlib.import_module("factors")
    factors.main(["--env", "CartPole", "--data", "random", "--scale", "quick", "--device", "cpu", *folders])
    assert "R² of length" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == [".lock", "factors-CartPole-random-pca-quick.png", "factors-quick.csv"]


def test_regression_from_factors_recovers_a_known_function(benchmark):
    factors = importlib.import_module("factors")

    class Stub:
        """Factors that are a known, nonlinear function of the covariate."""

        num_agents = 100
        covariates = np.linspace(0.1, 1.0, 100)[:, None]
        task = type("Task", (), {"covariate_names": ("gravity",)})

        def agent_factors(self):
            c = self.covariates[:, 0]
            return np.stack([np.stack([c**2, c], 1), np.stack([1 / c, 3 * c], 1)])

    rows = factors.knowledge(Stub(), env="", data="", seed=0, scale="quick")
    assert min(row.r2 for row in rows) > 0.99
    assert factors.factor_matrix(Stub()).shape == (100, 4)


@pytest.mark.filterwarnings("ignore:.*times the known agents' range")  # of eight agents
@pytest.mark.parametrize("number", [12, 13])
def test_agents_never_seen_are_measured_in_their_own_systems(benchmark, folders, tmp_path, monkeypatch, number):
    """Five agents by covariates, PerSim and PerSim+, with all covariates and with a tenth of them."""
    unseen = importlib.import_module("unseen")
    seen = []

    def spy(ensemble, known, **settings):
        seen.append((known, settings["kind"]))
        made = unseen_agents(ensemble, known, **settings)
        assert made.agent_labels == ("0", "1", "2", "3", "4")
        assert made.covariates[:, 0].tolist() == [0.00005, 0.00008, 0.002, 0.0037, 0.004]
        return made

    unseen_agents = unseen.of_unseen_agents
    monkeypatch.setattr(unseen, "of_unseen_agents", spy)
    arguments = ("--table", str(number), "--data", "random", "--seeds", "1")
    methods = ("PerSim (p=1.0)", "PerSim (p=0.1)", "PerSim+ (p=0.25)")
    assert run(benchmark, folders, *arguments, "--method", *methods) == 0
    assert seen == [(1.0, "mlp"), (0.1, "mlp"), (0.25, "gp")]
    assert {row.method for row in rows_of(benchmark, tmp_path, number)} == set(methods)
    assert len(rows_of(benchmark, tmp_path, number)) == 3 * 5 * (2 if number == 12 else 1)


@pytest.mark.parametrize(("number", "data"), [(14, "random"), (15, "pure")])
def test_few_agents_train_ensembles_of_their_own(benchmark, folders, tmp_path, capsys, monkeypatch, number, data):
    protocol = benchmark["protocol"]
    scale = protocol.scale_of(protocol.get_scale("full"), "PerSim+ (N=25)")
    assert (scale.num_agents, scale.name) == (25, "full-N25")
    assert [
        protocol.scale_of(protocol.get_scale(name), "PerSim (N=250)").num_agents for name in ("small", "quick")
    ] == [
        250,
        8,
    ]
    methods = ("PerSim (N=250)", "PerSim+ (N=25)")
    assert run(benchmark, folders, "--table", str(number), "--seeds", "1", "--method", *methods) == 0
    assert {(row.method, row.data) for row in rows_of(benchmark, tmp_path, number)} == {(m, data) for m in methods}
    assert len(list((tmp_path / "cache").rglob("*.persim"))) == 2
    assert "*paper: PerSim(N=250)*" in capsys.readouterr().out


def test_as_many_agents_as_there_are_is_no_other_measurement(benchmark, tmp_path, monkeypatch):
    """Where a scale has 100 agents anyway, N = 100 is the row of the returns' table."""
    measure, cells, protocol = (benchmark[name] for name in ("measure", "cells", "protocol"))
    seen = []

    def trained(env, data, scale, seed, **settings):
        seen.append(scale.name)
        return type("Trained", (), {"provenance": {"wall_seconds": 1.0}})()

    def returns(cell, *_):
        seen.append((cell.table.number, cell.method))
        return cells.Measured((), "", 0.0)

    monkeypatch.setattr(measure, "trained", trained)
    monkeypatch.setattr(measure, "by_agent", returns)
    small, table = protocol.get_scale("small"), protocol.get_table(16)
    for method in ("PerSim (N=100)", "PerSim (N=50)"):
        measure.measure(cells.Cell(table, "HalfCheetah", "random", method, 0, small), cache=tmp_path)
    assert seen == ["small", (11, "PerSim"), "small-N50", (16, "PerSim (N=50)")]


def test_the_papers_figures_of_unseen_and_few_agents_are_complete(benchmark):
    protocol, results = benchmark["protocol"], benchmark["results"]
    for number, rows, key, figure in (
        (12, 2 * 6 * 5 + 2 * 6 * 5, ("MountainCar", "random", "PerSim(p=1.0)", "0", "rmse"), 0.004),
        (13, 2 * 7 * 5, None, None),
        (14, 4 * 4 * 5, ("MountainCar", "random", "PerSim(N=250)", "0", "return"), -53.7),
    ):
        table = protocol.get_table(number)
        figures = results.paper(table)
        assert len(figures) == rows
        assert key is None or figures[key][0] == figure
        for method in table.learned:
            for agent in range(5):
                assert (
                    table.envs[0],
                    table.data[0],
                    benchmark["methods"].METHODS[method].paper,
                    str(agent),
                    table.metrics[0],
                ) in figures


def test_a_table_without_such_data(benchmark, folders, capsys):
    with pytest.raises(SystemExit):
        run(benchmark, folders, "--table", "15", "--data", "random")
    assert "table 15 has no rows on random data; give one of pure" in " ".join(capsys.readouterr().err.split())


@pytest.mark.filterwarnings("ignore:the ensemble was trained on . agents for rank")  # of the few
def test_newcomers_are_measured(benchmark, folders, tmp_path, monkeypatch, capsys):
    """Coverage and the few-shot curve at a small scale: every line of their files, and a picture."""
    calibration, few_shot = (importlib.import_module(name) for name in ("calibration", "few_shot"))
    monkeypatch.setattr(calibration, "_EPISODES", {"CartPole": 10})
    monkeypatch.setattr(calibration, "_SEGMENTS", 50)
    small = ["--env", "CartPole", "--scale", "quick", "--device", "cpu", *folders]
    calibration.main([*small, "--agents", "30", "--data", "pure-eps-40"])
    lines = (tmp_path / "results" / "calibration-quick.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 5 * 3  # horizons, coordinates with "all", levels
    monkeypatch.setattr(few_shot, "COUNTS", (0, 2, 5))
    few_shot.main([*small, "--agents", "2", "--episodes", "2"])
    few_shot.main([*small, "--agents", "2", "--episodes", "2"])  # replaces its own lines
    lines = (tmp_path / "results" / "few-shot-quick.csv").read_text().splitlines()
    assert [line.split(",")[2:4] for line in lines[1:]] == [
        ["trained in", "-1"], ["covariates", "0"], ["transitions", "0"],
        ["both", "2"], ["transitions", "2"], ["both", "5"], ["transitions", "5"],
    ]  # fmt: skip
    assert (tmp_path / "results" / "few-shot-CartPole-random-quick.png").exists()


def test_processes_measure_what_one_measures(benchmark, folders, tmp_path):
    arguments = ["--table", "10", "--data", "random", "--seeds", "2"]
    methods = ["PerSim", "PerSim + VI", "PerSim, plain objective", "Vanilla CaDM", "Joint network"]
    assert run(benchmark, folders, *arguments, "--method", *methods, "--jobs", "3") == 0
    together = rows_of(benchmark, tmp_path, 10)
    for name in ("results", "cache"):
        (tmp_path / name).rename(tmp_path / f"first-{name}")
    assert run(benchmark, folders, *arguments, "--method", *methods) == 0
    figures = [
        {(row.method, row.agent): (row.mean, row.std, row.seeds) for row in rows}
        for rows in (together, rows_of(benchmark, tmp_path, 10))
    ]
    assert len(figures[0]) == 25 and figures[0] == figures[1]


def test_what_a_process_cannot_measure_is_reported_and_the_rest_is_measured(benchmark, folders, tmp_path, capsys):
    damaged = benchmark["models"].models_folder(tmp_path / "cache", "CartPole") / "CartPole-random-quick-seed0.persim"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no ensemble")
    arguments = ["--table", "7", "--data", "random", "--seeds", "1", "--method", "PerSim", "PerSim+", "--jobs", "2"]
    assert run(benchmark, folders, *arguments) == 1
    assert "not measured: CartPole · random · PerSim: " in capsys.readouterr().err
    assert {row.method for row in rows_of(benchmark, tmp_path, 7)} == {"PerSim+"}


def test_cells_of_one_model_are_measured_in_one_process(benchmark):
    cells, protocol = benchmark["cells"], benchmark["protocol"]
    model_of = importlib.import_module("parallel")._model_of

    def cell(table, method, data="random", scale="full", env="MountainCar", seed=0):
        return cells.Cell(protocol.get_table(table), env, data, method, seed, protocol.get_scale(scale))

    persim = model_of(cell(6, "PerSim"))
    for table, method in (
        (6, "PerSim median"),
        (9, "PerSim + VI"),
        (9, "PerSim, plain objective"),
        (3, "PerSim-BCQ-5"),
    ):
        assert model_of(cell(table, method)) == persim
    assert model_of(cell(13, "PerSim + VI (p=0.5)")) == persim
    assert model_of(cell(3, "PerSim+-BCQ-5")) == model_of(cell(3, "PerSim+ + VI-CQL-5")) == model_of(cell(9, "PerSim+"))
    others = [
        cell(6, "PerSim", seed=1), cell(6, "PerSim", data="pure"), cell(9, "PerSim+"), cell(14, "PerSim (N=50)"),
        cell(6, "Joint network"), cell(9, "Vanilla CaDM"), cell(9, "BCQ-A"), cell(9, "BCQ-P"),
        cell(9, "True env + MPC", "-"),
    ]  # fmt: skip
    assert len({persim, *map(model_of, others)}) == len(others) + 1
    assert model_of(cell(9, "Vanilla CaDM, plain objective")) == model_of(cell(6, "Vanilla CaDM"))


def test_a_shared_measurement_has_the_episodes_of_the_row_it_is_kept_under(benchmark):
    """With as many training agents as there are, Table 14's value iteration is Table 9's; with fewer it is not."""
    cells, protocol = benchmark["cells"], benchmark["protocol"]
    scale = dataclasses.replace(protocol.get_scale("full"), num_agents=250)

    def episodes(number, method):
        cell = cells.Cell(protocol.get_table(number), "MountainCar", "random", method, 0, scale)
        return cells.episodes_of(cell)

    assert episodes(9, "PerSim + VI") == episodes(14, "PerSim + VI (N=250)") == scale.policy_episodes
    assert episodes(14, "PerSim + VI (N=100)") == episodes(9, "PerSim") == scale.return_episodes
