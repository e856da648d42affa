"""The other systems' rows of the paper's tables, at a scale that shows only that they are measured."""

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from persim_gym import collect
from persim_gym.baselines import CaDM, CaDMAgent, MOReLPolicy, fit_cadm
from persim_gym.config import get_config
from persim_gym.tasks import get_task

FOLDER = Path(__file__).parents[1] / "benchmarks"
POLICIES = ("MOReL-P", "MOReL-A", "BCQ-P", "BCQ-A", "CQL-P", "CQL-A")


@pytest.fixture(autouse=True)
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return {
        name: importlib.import_module(name)
        for name in ("baseline_dynamics", "learned_policies", "methods", "paper", "protocol", "results")
    }


@pytest.fixture
def run(benchmark, tmp_path):
    def run(table, *methods, env=(), data="random"):
        folders = ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
        arguments = ["--table", str(table), "--data", data, "--seeds", "1", "--scale", "quick", "--device", "cpu"]
        assert benchmark["paper"].main([*arguments, "--method", *methods, *folders]) == 0
        protocol = benchmark["protocol"]
        return benchmark["results"].read(protocol.get_table(table), protocol.get_scale("quick"), tmp_path / "results")

    return run


@pytest.mark.parametrize("table", [9, 10])
def test_the_policy_methods_are_measured(run, table, capsys):
    pytest.importorskip("d3rlpy")
    pytest.importorskip("stable_baselines3")
    sampled = ("MOReL-P, sampled", "MOReL-A, sampled") if table == 10 else ()
    rows = run(table, *POLICIES, *sampled)
    assert {(row.method, row.agent) for row in rows} == {(m, str(a)) for m in (*POLICIES, *sampled) for a in range(5)}
    assert all(np.isfinite(row.mean) for row in rows)
    assert "*paper: CQL-A*" in capsys.readouterr().out


def test_a_policy_is_trained_once_for_all_rows_that_act_with_it(benchmark, run, tmp_path, monkeypatch, capsys):
    """And refused if it was trained for longer or shorter than is asked for."""
    pytest.importorskip("stable_baselines3")
    run(10, "MOReL-A")
    policies = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.policy")}
    assert len(policies) == 5
    monkeypatch.setitem(benchmark["learned_policies"].FITS, benchmark["methods"].Learner.MOREL, None)
    assert len(run(10, "MOReL-A, sampled")) == 2 * 5
    scale = benchmark["protocol"].SCALES["quick"]
    longer = {**scale.budgets, "MOReL-A": {**scale.budgets["MOReL-A"], "policy_steps": 128}}
    monkeypatch.setitem(benchmark["protocol"].SCALES, "quick", dataclasses.replace(scale, budgets=longer))
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(AssertionError):
        run(10, "MOReL-A")
    assert "-agent0.policy was trained with other settings; delete it" in capsys.readouterr().err


def test_the_thresholds_that_were_chosen_are_written_down(benchmark, run, tmp_path):
    """Beside the scores, in no table of the paper, and in one of the README's."""
    pytest.importorskip("stable_baselines3")
    rows = run(10, "MOReL-A", "MOReL-P", "MOReL-A, sampled")
    assert {row.metric for row in rows} == {"return"} and len(rows) == 3 * 5
    (text,) = importlib.import_module("readme")._thresholds(
        [benchmark["protocol"].SCALES["quick"]], tmp_path / "results"
    )
    lines = {line.split(" | ")[3].strip(): line for line in text.splitlines() if "CartPole" in line}
    for whose, method in ((range(5), "MOReL-A"), (["all"], "MOReL-P")):
        name = f"{method}-CartPole-random-quick-seed0"
        paths = [f"{name}{'' if one == 'all' else f'-agent{one}'}.policy" for one in whose]
        chosen = [MOReLPolicy.load(next((tmp_path / "cache").rglob(path))).provenance for path in paths]
        found = re.findall(r"([\d.]+) \(([\d.]+)\)", lines.pop(method))
        assert found == [(f"{one['threshold_scale']:g}", f"{one['halted']:.2f}") for one in chosen]
    assert not lines


def test_sampled_rows_draw_their_actions(run, monkeypatch):
    pytest.importorskip("stable_baselines3")
    asked = []
    predict = MOReLPolicy.predict

    def noting(self, observation, state=None, episode_start=None, deterministic=True):
        asked.append(deterministic)
        return predict(self, observation, state, episode_start, deterministic)

    monkeypatch.setattr(MOReLPolicy, "predict", noting)
    for method, expected in (("MOReL-A", {True}), ("MOReL-A, sampled", {False})):
        asked.clear()
        run(10, method)
        assert set(asked) == expected


def test_cadm_is_trained_once_for_both_its_tables(run, tmp_path):
    errors = run(7, "Vanilla CaDM", "PE-TS CaDM", "Joint network", "Joint network+")
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.cadm")}
    assert len(errors) == 4 * 5 * 2 and len(models) == 2
    variants = "Vanilla CaDM, plain objective", "Vanilla CaDM + VI", "PE-TS CaDM + VI", "PerSim, plain objective"
    returns = run(10, "Vanilla CaDM", "PE-TS CaDM", *variants)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.cadm")} == models
    assert len(returns) == 6 * 5


def test_value_iteration_in_cadm_follows_the_running_episode(benchmark, monkeypatch):
    """It is done again every ten steps, in the context of each episode's last ten transitions, while that goes on."""
    log = collect("MountainCar", num_agents=5, seed=0)
    settings = {"hidden": (8, 8), "iterations": 1, "max_gradient_steps": 2, "futures_per_context": 1}
    model = fit_cadm(log, config="PE-TS CaDM", seed=0, progress=False, **settings)
    seen, simulator_of = [], CaDM.simulator_of

    def noting(self, histories, **settings):
        seen.append(histories)
        return simulator_of(self, histories, **settings)

    monkeypatch.setattr(CaDM, "simulator_of", noting)
    policy = benchmark["baseline_dynamics"]._SolvedAlong(model, "cpu", (7, 5))
    system = get_task("MountainCar").system(np.array([[0.001], [0.002]]))
    observations, history, state = system.reset(np.random.default_rng(0)), model.new_histories(2), None
    for step in range(31):
        running = np.array([True, step < 15])
        actions, state = policy.predict(observations, state, running=running)
        solved = running if step % 10 == 0 else [False, False]
        np.testing.assert_array_equal(np.concatenate([*seen, history.values[:0]]), history.values[solved])
        seen.clear()
        following = system.step(actions)
        history = history.after(observations, actions, following)
        observations = following
    assert history.counts.tolist() == [10, 10] and policy.takes_running


def test_the_joint_networks_have_the_settings_of_the_factorized_ones(run, benchmark, monkeypatch):
    """The paper's, and ours with states and changes standardized, whatever ours say of that."""
    dynamics, configs = benchmark["baseline_dynamics"], []

    def noting(log, *, config, **settings):
        configs.append(config)
        return fit_joint(log, config=config, **settings)

    fit_joint = dynamics.fit_joint
    monkeypatch.setattr(dynamics, "fit_joint", noting)
    rows = run(7, "Joint network", "Joint network+")
    quick = benchmark["protocol"].get_scale("quick").changes
    wanted = [get_config("CartPole", "CartPole"), get_config("CartPole+", "CartPole").with_changes(normalize=True)]
    assert configs == [config.with_changes(**quick) for config in wanted]
    plain, plus = ([row.mean for row in rows if row.method == name] for name in ("Joint network", "Joint network+"))
    assert len(plain) == len(plus) == 10 and plain != plus


def test_the_plain_objective_is_the_reward_alone(benchmark):
    protocol = benchmark["protocol"]
    records, scores = (importlib.import_module(name) for name in ("cells", "scores"))
    for number, env in ((9, "MountainCar"), (10, "CartPole")):
        cells = [
            records.Cell(protocol.get_table(number), env, "random", method, 0, protocol.get_scale("quick"))
            for method in ("Vanilla CaDM", "Vanilla CaDM, plain objective", "PerSim, plain objective")
        ]
        with_all, plain, persim = (scores.objective_of(cell) for cell in cells)
        assert with_all.progress is not None or with_all.terminated is not None
        assert (plain.progress, plain.terminated) == (persim.progress, persim.terminated) == (None, None)
        assert plain.reward is with_all.reward


class Still:
    """A policy that says where it comes from, in its file, too."""

    def __init__(self, learned_from):
        self.learned_from = learned_from
        self.provenance = {"wall_seconds": 1.0}

    def save(self, path):
        path.write_text(json.dumps([self.learned_from, self.provenance]))

    @classmethod
    def load(cls, path, seed):
        learned_from, provenance = json.loads(path.read_text())
        policy = cls(learned_from)
        policy.provenance = provenance
        return policy

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.zeros(len(observation), int), None


def noting_scores(methods, monkeypatch):
    """Return a list that every scored policy is appended to, with the agent and the system it acts in."""
    scored, records = [], importlib.import_module("cells")

    def score(cell, agent, system, policy):
        scored.append((agent, system, policy))
        return records.Score(str(agent), "return", 0.0)

    monkeypatch.setattr(methods, "score_episodes", score)
    return scored


@pytest.mark.parametrize("method", ["BCQ-A", "CQL-A", "MOReL-A", "BCQ-P"])
def test_whose_data_a_policy_learns_from_and_whose_system_it_acts_in(benchmark, run, method, monkeypatch):
    """-A rows: the agent's own; -P rows: everyone's, once. Each agent is scored in its own system."""
    methods = benchmark["learned_policies"]
    scored, fits = noting_scores(methods, monkeypatch), []

    def fit(log, agent=None, **settings):
        fits.append(agent)
        return Still(agent)

    monkeypatch.setattr(methods, "FITS", dict.fromkeys(methods.FITS, fit))
    for kind in ("MOReLPolicy", "OfflinePolicy"):
        monkeypatch.setattr(methods, kind, Still)
    rows = run(10, method)
    assert {row.wall_s // len(fits) for row in rows} == {1.0}
    assert fits == ([None] if method.endswith("-P") else list(range(5)))
    assert [policy.learned_from for _, _, policy in scored] == (fits if len(fits) == 5 else fits * 5)
    for agent, (index, system, _) in enumerate(scored):
        covariates = get_task("CartPole").test_agents[agent]
        assert index == agent and (system._covariates == np.array(covariates)).all()


def test_all_planners_get_the_same_objective(benchmark, run, monkeypatch):
    """The task's own, as PerSim's planner does; CaDM's has an agent of its own, whose context follows the episode."""
    methods = benchmark["baseline_dynamics"]
    scored, objectives = noting_scores(methods, monkeypatch), []
    for name in ("CaDMAgent", "MPCAgent"):
        made = getattr(methods, name)

        def noting(model, made=made, **settings):
            objectives.append(settings["objective"])
            return made(model, **settings)

        monkeypatch.setattr(methods, name, noting)
    run(10, "Vanilla CaDM")
    assert [type(policy) for *_, policy in scored] == [CaDMAgent] * 5
    assert objectives == [get_task("CartPole").objective] * 5 and objectives[0].terminated is not None


def test_every_row_of_the_paper_has_a_method(benchmark):
    """Tables 6 to 11: each method the paper has is one that can be measured, under the paper's name."""
    protocol, results, methods = benchmark["protocol"], benchmark["results"], benchmark["methods"].METHODS
    for number in range(6, 12):
        table = protocol.get_table(number)
        ours = {methods[name].paper for name in (*table.learned, *table.true)}
        assert {method for _, _, method, _, _ in results.paper(table)} <= ours


def row(benchmark, method, mean, std=1.0, agent="0", metric="return", data="pure"):
    return benchmark["results"].Row(9, "MountainCar", data, method, agent, metric, mean, std, 3, "full", "abc", 1.0)


def test_the_best_is_bold_and_leaders_are_counted(benchmark):
    results, protocol = benchmark["results"], benchmark["protocol"]
    table = protocol.get_table(9)
    rows = [
        row(benchmark, "PerSim", -50.0), row(benchmark, "CQL-A", -49.5), row(benchmark, "BCQ-P", -90.0),
        row(benchmark, "PerSim", -40.0, agent="1"), row(benchmark, "CQL-A", -80.0, agent="1"),
        row(benchmark, "PerSim", -99.0, agent="2", std=30.0), row(benchmark, "CQL-A", -80.0, agent="2"),
        row(benchmark, "PerSim", -99.0, agent="3"), row(benchmark, "PerSim+", -80.0, agent="3"),
    ]  # fmt: skip
    text = results.comparison(table, rows)
    assert text.count("**") == 2 * 4 and "**-49.5 ± 1.0**" in text and "**-40.0 ± 1.0**" in text
    assert [str(lead) for lead in results.leads(table, rows, ["PerSim"])] == [
        "All rows, PerSim: alone best in 1, tied at the best in 0, best or within the best's standard deviation of it "
        "in 2 of 3 cells.",
        "All rows, CQL-A: alone best in 2, tied at the best in 0, best or within the best's standard deviation of it "
        "in 2 of 3 cells.",
    ]
    assert results.leads(table, rows[-2:], ["PerSim"]) == []
    lacking = results.not_measured(table, protocol.get_scale("full"), rows)
    assert "PerSim (pure-eps-20, pure-eps-40, random);" in lacking and "BCQ-P (pure-eps-20" in lacking
    assert "; BCQ-A;" in lacking and lacking.endswith("; True env + VI.")
    everything = results.not_measured(protocol.get_table(3), protocol.get_scale("full"), [])
    assert everything.startswith("Not measured yet: BCQ-P (MountainCar; CartPole; HalfCheetah); ")
    published = results.comparison(table, rows)
    assert "*paper: PE-TS CaDM*" in published, "the paper's rows stand there whether ours are measured or not"
    assert "2.48 standard deviations for 3 seeds" in results.intervals(rows)
    errors = [row(benchmark, method, mean, metric="rmse") for method, mean in (("PerSim", 0.1), ("Vanilla CaDM", 0.2))]
    assert [best.mean for best in results.best_of(errors).values()] == [0.1]


def counts(benchmark, rows, *methods):
    """Return (compared, methods, cells, alone, tied, near) of each line."""
    found = benchmark["results"].leads(benchmark["protocol"].get_table(9), rows, methods)
    return [(lead.compared, lead.who, lead.cells, lead.alone, lead.tied, lead.near) for lead in found]


def test_leads_are_counted_by_planner(benchmark):
    """What plans by MPC is compared with the like, too; value iteration's lead is not MPC's."""
    mpc = [row(benchmark, "PerSim", -54.0), row(benchmark, "Vanilla CaDM", -52.0), row(benchmark, "PE-TS CaDM", -60.0)]
    rows = [*mpc, row(benchmark, "PerSim + VI", -40.0), row(benchmark, "BCQ-P", -41.5)]
    assert counts(benchmark, rows, "PerSim", "PerSim + VI") == [
        ("Rows that plan by MPC", "PerSim", 1, 0, 0, 0),
        ("Rows that plan by MPC", "Vanilla CaDM", 1, 1, 0, 1),
        ("All rows", "PerSim", 1, 0, 0, 0),
        ("All rows", "PerSim + VI", 1, 1, 0, 1),
        ("All rows", "Vanilla CaDM", 1, 0, 0, 0),
    ]
    solved = counts(benchmark, [*rows, row(benchmark, "Vanilla CaDM + VI", -39.0)], "PerSim", "PerSim + VI")
    assert solved[2:4] == [
        ("Rows of value iteration", "PerSim + VI", 1, 0, 0, 1),
        ("Rows of value iteration", "Vanilla CaDM + VI", 1, 1, 0, 1),
    ]


def test_ties_are_counted_as_ties_and_all_bold(benchmark):
    """What prints the same; no variant's."""
    results, table = benchmark["results"], benchmark["protocol"].get_table(9)
    policies = [row(benchmark, "MOReL-P", -44.59, std=0.1), row(benchmark, "MOReL-P, sampled", -44.62, std=0.1)]
    rows = [row(benchmark, "PerSim + VI", -44.61, std=0.0), *policies, row(benchmark, "BCQ-P", -44.75)]
    assert counts(benchmark, rows, "PerSim + VI")[-2:] == [
        ("All rows", "PerSim + VI", 1, 0, 1, 1),
        ("All rows", "MOReL-P", 1, 0, 1, 1),
    ]
    alone = counts(benchmark, [rows[1], rows[2], row(benchmark, "PerSim + VI", -44.75)], "PerSim + VI")[-1]
    assert alone[1:] == ("MOReL-P", 1, 1, 0, 1)
    text = results.comparison(table, rows)
    assert "**-44.6 ± 0.0**" in text and "**-44.6 ± 0.1**" in text and "| -44.8 ± 1.0" in text
    assert "†" not in text + results.intervals(rows)
    single = [*rows, dataclasses.replace(rows[1], method="PE-TS CaDM", std=float("nan"), seeds=1)]
    assert "**-44.6** †" in results.comparison(table, single)
    assert results.intervals(single).endswith("†: of one seed, so without an interval.")


@pytest.fixture
def compared(benchmark):
    """Return (alone, tied, near) of PerSim + VI, -50 on average of three seeds, beside PE-TS CaDM + VI, -49 of one."""
    results, table = benchmark["results"], benchmark["protocol"].get_table(9)
    value = importlib.import_module("seeds").SeedValue
    ours = row(benchmark, "PerSim + VI", -50.0)
    rows = [ours, dataclasses.replace(row(benchmark, "PE-TS CaDM + VI", -49.0), std=float("nan"), seeds=1)]

    def counted(own, rivals):
        known = {
            (ours.env, ours.data, method, ours.agent): {seed: value(*one) for seed, one in by_seed.items()}
            for method, by_seed in (("PerSim + VI", own), ("PE-TS CaDM + VI", rivals))
        }
        found = results.leads(table, rows, ["PerSim + VI"], known)[0]
        return found.alone, found.tied, found.near

    return counted


def test_rows_are_compared_by_the_seeds_that_both_have(compared):
    """Each seed has first states of its own: a seed with easy ones is no lead over rows that have hard ones, too."""
    own = {0: (-51.0, 2), 1: (-50.0, 2), 2: (-49.0, 2)}
    assert compared({}, {}) == (0, 0, 0)
    assert compared(own, {2: (-49.0, 2)}) == (0, 1, 1)
    assert compared(own, {2: (-49.5, 2)}) == (1, 0, 1)
    assert compared(own, {7: (-51.5, 2)}) == (0, 0, 0), "no seed in common: the means are compared"
    assert compared({1: own[1], 2: own[2]}, {7: (-51.5, 2)}) == (0, 0, 0), "not all of the row's seeds are known"


def test_rows_are_compared_by_the_episodes_that_both_have(compared):
    """A method that ran the first episodes only, which are easier, does not lead by that."""
    own = {0: (-51.0, 2), 1: (-50.0, 2), 2: (-49.0, 2, (-48.0, -50.0))}
    assert compared(own, {2: (-48.0, 1)}) == (0, 1, 1)
    assert compared(own, {2: (-48.5, 1, (-48.5,))}) == (1, 0, 1)
    assert compared(own, {2: (-49.5, 4)}) == (1, 0, 1), (
        "its episodes are not known one by one: its mean is what there is"
    )
    assert compared(own, {2: (-48.5, 4, (-48.0, -50.0, -47.0, -49.0))}) == (0, 1, 1)
    del own[2]
    assert compared(own | {2: (-49.0, 2)}, {2: (-48.0, 1)}) == (0, 0, 0)


def test_values_of_seeds_are_those_of_the_table_that_a_row_was_measured_for(benchmark, tmp_path):
    """Table 3's rows of CQL are those of Tables 9 and 10."""
    seeds, protocol = importlib.import_module("seeds"), benchmark["protocol"]
    scale = protocol.get_scale("full")
    line = seeds.SeedScore(9, "MountainCar", "random", "CQL-A", 4, "2", "return", -70.0, 2, "abc", 1.0, "", "-69 -71")
    seeds.seeds_file(scale, tmp_path).replace([line, dataclasses.replace(line, table=10, env="CartPole", value=90.0)])
    for table in (3, 9):
        values = seeds.values_of(protocol.get_table(table), scale, tmp_path)
        assert values["MountainCar", "random", "CQL-A", "2"] == {4: seeds.SeedValue(-70.0, 2, (-69.0, -71.0))}
    assert list(seeds.values_of(protocol.get_table(9), scale, tmp_path)) == [("MountainCar", "random", "CQL-A", "2")]


def test_the_readme_sums_the_leads_up(benchmark, tmp_path):
    """The issue's figure, what it rests on, and what of it is MPC's."""
    results, protocol = benchmark["results"], benchmark["protocol"]
    file = results.results_file(protocol.get_table(9), protocol.get_scale("full"), tmp_path)
    better = [row(benchmark, "PerSim + VI", -40.0), row(benchmark, "PerSim", -60.0), row(benchmark, "BCQ-P", -50.0)]
    worse = [row(benchmark, "PerSim", -45.0, data="random"), row(benchmark, "BCQ-P", -46.0, data="random")]
    file.replace([*better, *worse])
    text = " ".join(importlib.import_module("readme").leads(tmp_path).split())
    assert "in 2 of the 2 cells; of the two the better on these very returns counts, where every other" in text
    assert "By MPC alone, the paper's planner, it is 1: the others rest on value iteration," in text
    assert "value iteration, which the other systems were not given." in text
    file.replace([row(benchmark, "Vanilla CaDM + VI", -41.0)])
    text = " ".join(importlib.import_module("readme").leads(tmp_path).split())
    assert "which of the other systems only these were given: Vanilla CaDM + VI (MountainCar)." in text
    assert "| All rows | PerSim + VI or PerSim+ + VI | 1 | 1 | 0 | 1 |" in text


def test_what_needs_no_data_is_no_rival(benchmark):
    rows = [row(benchmark, "PerSim", -50.0), row(benchmark, "True env + MPC", -40.0, data="-")]
    assert benchmark["results"].best_of(rows) == {}


def test_a_learning_curve_is_measured_and_replaced(benchmark, tmp_path):
    pytest.importorskip("d3rlpy")
    pytest.importorskip("stable_baselines3")
    plateau, readme = importlib.import_module("plateau"), importlib.import_module("readme")
    arguments = ["--env", "CartPole", "--data", "random", "--agents", "1", "--scale", "quick"]
    for steps in ("3", "4"):
        steps = ["--steps", steps, "--every", "2", "--results", str(tmp_path)]
        plateau.main([*arguments, "--method", "BCQ-A", "PerSim-CQL-5", *steps, "--cache", str(tmp_path)])
    arguments[arguments.index("1") :] = ["1", "2", "--scale", "quick"]
    plateau.main([*arguments, "--method", "BCQ-P", "--steps", "1", "--every", "1", "--results", str(tmp_path)])
    measured = [(point.method, point.agent, point.steps) for point in plateau.results_file(tmp_path).read()]
    alone = [(name, 1, steps) for name in ("BCQ-A", "PerSim-CQL-5") for steps in (2, 4)]
    assert measured == [*alone, ("BCQ-P", 1, 1), ("BCQ-P", 2, 1)]
    text = readme.tables(tmp_path)
    assert "## Learning curves" in text and "| BCQ-P" in text
    assert "max_gradient_steps = 60,000" in text


def test_the_papers_morel_is_compared_with_its_cql(benchmark, tmp_path):
    """Counted by hand in the reference figures: 28 of 40 cells with exploration."""
    text = importlib.import_module("readme").tables(tmp_path)
    assert "in 28 of 40 cells of the pure-eps data and in 8 of 40 cells of the pure and random data" in text


def test_the_budgets_name_the_rows_that_were_trained_otherwise(benchmark, tmp_path):
    """A seed's line says how it was trained; what today's budgets say is not repeated."""
    seeds, protocol, cells = importlib.import_module("seeds"), benchmark["protocol"], importlib.import_module("cells")
    scale = protocol.get_scale("full")
    earlier = dataclasses.replace(scale, budgets={**scale.budgets, "Vanilla CaDM": {"max_gradient_steps": 9000}})
    measured = cells.Measured((cells.Score("0", "rmse", 0.1),), "0000000", 1.0)
    for seed, trained in enumerate((earlier, scale, earlier)):
        for data in ("pure", "random"):
            cell = cells.Cell(protocol.get_table(6), "MountainCar", data, "Vanilla CaDM", seed, trained)
            seeds.Seeds(trained, tmp_path).put(cell, measured)
    text = importlib.import_module("readme").tables(tmp_path)
    row = "| full | 6 | MountainCar | Vanilla CaDM | max_gradient_steps = 9,000 | 200 | pure, random | 0, 2 |"
    assert row in " ".join(text.split())
    assert "| Vanilla CaDM | futures_per_context" not in " ".join(text.split("earlier budget")[1].split())


def test_the_bars_set_before_measuring(benchmark):
    """The planner in the true systems, and the paper's settings where they should do well: which cells miss them."""
    protocol, results = benchmark["protocol"], benchmark["results"]
    text = " ".join((FOLDER / "README.md").read_text().split())

    def means(number, method, data, metric):
        rows = results.read(protocol.get_table(number), protocol.get_scale("full"))
        return {one.agent: one.mean for one in rows if (one.method, one.data, one.metric) == (method, data, metric)}

    def published(number, method, data):
        figures = results.paper(protocol.get_table(number)).items()
        return {key[3]: mean for key, (mean, _) in figures if key[1:3] == (data, method) and key[4] == "return"}

    def off(number, method, data, their_method):
        theirs = published(number, their_method, data)
        return max(abs(mean / theirs[agent] - 1) for agent, mean in means(number, method, data, "return").items())

    assert all(off(number, "True env + MPC", "-", "True env+MPC") < 0.06 for number in (9, 10))
    assert off(9, "PerSim", "random", "PerSim") < 0.08 and off(9, "PerSim+", "random", "PerSim") < 0.1
    missed = {
        ("at most .01 but for", ".4f"): [one for one in means(6, "PerSim", "random", "rmse").items() if one[1] > 0.01],
        ("at most .05 but for", ".2f"): [one for one in means(7, "PerSim", "pure", "rmse").items() if one[1] > 0.05],
        ("at least 185 but for", ".1f"): [one for one in means(10, "PerSim", "pure", "return").items() if one[1] < 185],
    }
    for (bar, form), ((agent, value),) in missed.items():
        assert f"{bar} agent {agent}, {format(value, form).lstrip('0')}" in text
    assert max(means(6, "PerSim+", "random", "rmse").values()) <= 0.01
    assert max(means(7, "PerSim+", "pure", "rmse").values()) <= 0.05
    assert min(means(10, "PerSim+", "pure", "return").values()) >= 185


def test_the_readmes_prose_counts_as_the_files_do(benchmark):
    """In how many cells methods reach the published figures, or do not."""
    protocol, results = benchmark["protocol"], benchmark["results"]
    text = " ".join((FOLDER / "README.md").read_text().split())

    def reached(method, *numbers):
        tables = [protocol.get_table(number) for number in numbers]
        tallies = [results.tally(table, results.read(table, protocol.get_scale("full")), method) for table in tables]
        return sum(int(re.search(r"in (\d+) of \d+ cells", tally).group(1)) for tally in tallies)

    def short(method, number):
        return 20 - reached(method, number)

    assert f"errors than the published ones in {40 - reached('PerSim', 6, 7)} of 40 cells" in text
    assert f"in {reached('PerSim+', 6, 7)} of 40 cells (PerSim with the paper's settings in" in text
    assert f"in {reached('Vanilla CaDM', 6, 7)} of 40 cells (Vanilla) and {reached('PE-TS CaDM', 6, 7)} of 40" in text
    assert f"deviation in {reached('PerSim+', 9, 10)} of 40 cells with PerSim+" in text
    table, full, scales = protocol.get_table(7), protocol.get_scale("full"), importlib.import_module("policy_scale")
    ratios = {str(one.agent): one.ratio for one in scales.results_file().read() if one.table == 7 and one.ratio > 0}
    rows = [
        dataclasses.replace(one, mean=one.mean / ratios.get(one.agent, 1.0)) for one in results.read(table, full)
    ]  # fmt: skip

    def scaled(method):
        return int(re.search(r"in (\d+) of 20 cells", results.tally(table, rows, method)).group(1))

    own = "Divided by that, Vanilla CaDM's errors are at or below the published ones in"
    assert f"{own} {scaled('Vanilla CaDM')} of 20 cells, not in {reached('Vanilla CaDM', 7)}" in text
    assert all(scaled(method) == reached(method, 7) for method in ("PE-TS CaDM", "PerSim", "PerSim+"))
    assert (
        f"CQL-P in {short('CQL-P', 9)} of 20 cells of Table 9 and {short('CQL-P', 10)} of 20 of Table 10, "
        f"CQL-A in {short('CQL-A', 10)} of 20 of Table 10 (and in {short('CQL-A', 9)} of Table 9"
    ) in text
    assert (
        f"BCQ-P in {short('BCQ-P', 9)} and {short('BCQ-P', 10)}, BCQ-A in {short('BCQ-A', 9)} and {short('BCQ-A', 10)}."
    ) in text
    assert f"CartPole: Vanilla's are below the published ones in {short('Vanilla CaDM', 10)} of 20 cells," in text
    assert f"in {short('MOReL-A', 9)} of 20 cells of Table 9 and {short('MOReL-A', 10)} of 20 of Table 10" in text
    assert f"by more than a deviation ({short('MOReL-P', 9)} of Table 9's 20 cells)" in text
