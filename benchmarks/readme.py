"""Write the tables of benchmarks/README.md from the results files.

    python benchmarks/readme.py

What stands outside the two marker lines is left as it is.
"""

from __future__ import annotations

import csv
from pathlib import Path

import plateau
import protocol
import results
from paper import report

from persim_gym import storage
from persim_gym.errors import FileFormatError

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: written by readme.py -->", "<!-- end of tables -->"
_TEMPLATE = f"""# Benchmarks

Everything here is measured by the commands in this folder; figures of the paper stand beside ours in italics.

| command | what it does |
| --- | --- |
| `policies.py` | trains the logging and test policies that ship with the package |
| `shipped_models.py` | trains the ensembles that ship with the package |
| `paper.py --table 6 [--data random] [--seeds 3] [--scale full]` | reproduces a table of the paper, or a part of it |
| `settings.py CartPole` | compares settings by their error on parts of the log that training has not seen |
| `frames.py --env CartPole` | true against predicted states, drawn (figures 2 and 4) |
| `factors.py --env CartPole --data pure` | what the learned factors know of the covariates (figures 1 and 5) |
| `python examples/train_sb3.py --seed 0 --json result.json` | PPO of agent 4's simulator: `sb3-CartPole-agent4.json` |
| `plateau.py --env MountainCar --data pure --method BCQ-A --steps 6000 --every 1000` | learning curves of BCQ and CQL |
| `readme.py` | writes the tables below from `results/*.csv` |

How the tables are made (`protocol.py`):

* 500 agents, one trajectory each; the first five are the test agents. All models of a table learn from the same data
  sets (seed 0); seeds differ in the training, the planner and the evaluation episodes. Table 5 varies the data.
* mean ± standard deviation over seeds (unbiased) of each seed's mean over episodes: 200 for prediction errors, whose R²
  is the median, and 20 for returns (5 for HalfCheetah).
* "PerSim" has the settings of the paper's code; "PerSim+" the package's own; "median" is over the members. "VI" is
  value iteration on a grid, in the learned simulator or in the true environment, instead of MPC.
* Best of our learned methods in bold. "-P" learns one policy from everyone's data, "-A" one from the agent's own
  trajectory; policies run 100 episodes. CaDM, PerSim and the true environment have the same planner and the same
  objective; "plain objective" is that planner without MountainCar's position bonus and CartPole's done mask, "Joint
  network" PerSim without its factorization.
* `wall_s` in the results files is what a method takes for all seeds and agents from nothing, training included.
* The factors' R² is that of predictions for held-out agents in 10 folds.

{BEGIN}
{END}
"""


def tables(folder: Path = results.RESULTS) -> str:
    """Return all tables that have full-scale results, as Markdown."""
    full = protocol.get_scale("full")
    measured = [table for table in protocol.TABLES.values() if results.results_file(table, full, folder).exists()]
    sections = [_section(table, full, folder) for table in measured]
    return "\n\n".join([*sections, _published_twins(), _budgets(full), *_plateau(folder), *_factors(folder)])


def update(text: str, content: str) -> str:
    """Return a text with what is between the markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise FileFormatError(f"README.md must hold the lines {BEGIN!r} and {END!r} once each, in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the file."""
    text = README.read_text() if README.exists() else _TEMPLATE
    storage.write_text(README, update(text, tables()))


def _section(table: protocol.Table, scale: protocol.Scale, folder: Path) -> str:
    rows = results.read(table, scale, folder)
    versions = ", ".join(dict.fromkeys(row.commit for row in rows))
    hours = sum({(row.env, row.data, row.method): row.wall_s for row in rows}.values()) / 3600
    note = f"`python benchmarks/paper.py --table {table.number}`; version {versions}; {hours:.1f} hours of computing."
    return f"## {report(table, scale, folder)}\n\n{note}"


def _published_twins() -> str:
    """Return in how many cells the paper's MOReL equals its CQL, which no two such methods do by chance."""
    parts = []
    for kind, data in (("pure-eps", protocol.DATA[1:3]), ("pure and random", (protocol.DATA[0], protocol.DATA[3]))):
        pairs = [
            (mean, figures[env, one, method.replace("MOReL", "CQL"), agent, metric][0])
            for figures in (results.paper(protocol.get_table(number)) for number in (9, 10))
            for (env, one, method, agent, metric), (mean, _) in figures.items()
            if method.startswith("MOReL") and one in data
        ]
        near = sum(abs(morel - cql) <= 0.01 * abs(cql) for morel, cql in pairs)
        parts.append(f"{near} of {len(pairs)} cells of the {kind} data")
    return (
        "## The paper's MOReL rows\n\n"
        "In Tables 9 and 10 the published return of MOReL is within 1 % of that of CQL with the same suffix in "
        f"{' and in '.join(parts)}; cells in which both never reach the goal (−500) are among them."
    )


def _budgets(scale: protocol.Scale) -> str:
    """Return how much each method is trained."""
    lines = [
        [method, ", ".join(f"{name} = {value:,}" for name, value in budget.items())]
        for method, budget in scale.budgets.items()
    ]
    table = results.markdown([["method", "training"], *lines])
    return f"## Training budgets\n\nWhat is not named is the method's own default.\n\n{table}"


def _plateau(folder: Path) -> list[str]:
    """Return the learning curves of the methods that are trained for fewer steps than the paper's."""
    rows = plateau.read(folder)
    if not rows:
        return []
    lines = [[*row[:4], f"{int(row[5]):,}", f"{float(row[6]):.1f} ± {float(row[7]):.1f}"] for row in rows]
    table = results.markdown([["env", "data", "method", "agent", "gradient steps", "return"], *lines])
    return [f"## Learning curves\n\nOne seed; ± is over 100 episodes.\n\n{table}"]


def _factors(folder: Path) -> list[str]:
    path = folder / "factors.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        lines = [
            [line[name] for name in ("env", "data", "covariate", "regressor")] + [f"{float(line['r2']):.3f}"]
            for line in csv.DictReader(file)
        ]
    table = results.markdown([["env", "data", "covariate", "regression from factors", "R²"], *lines])
    return [f"## What the agent factors know of the hidden covariates\n\n{table}"]


if __name__ == "__main__":
    main()
