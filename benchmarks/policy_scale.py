"""How far our test policies' trajectories spread, beside the authors': the scale of the errors in Tables 7 and 8.

    python benchmarks/policy_scale.py

A prediction error can be compared with the published one only where the trajectories to be predicted vary as much. Ours
is the error of predicting each episode's own mean; the paper's follows from its own tables, RMSE / √(1 − R²), a mean
over episodes divided by a median, for PerSim on random data. (Table 6 prints an R² of 1 there, which leaves the scale
open.) Writes results/policy-scale.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from pathlib import Path

import protocol
import results

from persim_gym import get_task, storage
from persim_gym.evaluation import mean_predictor_errors
from persim_gym.logging_policies import test_policy

FILE = "policy-scale.csv"
COLUMNS = ("table", "env", "agent", "ours", "paper", "ratio", "episodes", "seed")
_SHARPEST_R2 = 0.99  # beyond it the digits printed leave the scale open


def measure(number: int, episodes: int, seed: int) -> list[tuple[str, ...]]:
    """Return a row for each test agent of one of the tables of prediction errors."""
    table = protocol.get_table(number)
    (env,) = table.envs
    figures = results.paper(table)
    ours = mean_predictor_errors(get_task(env), policy=test_policy(env, seed=seed), episodes=episodes, seed=seed)
    rows = []
    for agent, error in enumerate(ours):
        rmse, r2 = (figures[env, "random", "PerSim", str(agent), metric][0] for metric in ("rmse", "r2"))
        paper = math.nan if r2 > _SHARPEST_R2 else rmse / math.sqrt(1 - r2)
        figures_of_agent = (f"{error:.4g}", f"{paper:.4g}", f"{error / paper:.3f}")
        rows.append((str(number), env, str(agent), *figures_of_agent, str(episodes), str(seed)))
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    given = parser.parse_args()
    rows = [row for number in (7, 8) for row in measure(number, given.episodes, given.seed)]
    print(results.markdown([COLUMNS, *rows]))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    storage.write_text(given.results / FILE, text.getvalue())


if __name__ == "__main__":
    main()
