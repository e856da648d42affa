"""How far our test policies' trajectories spread, beside the authors': the scale of the errors in Tables 7 and 8.

    python benchmarks/policy_scale.py

A prediction error can be compared with the published one only where the trajectories to be predicted vary as much. Ours
is the error of predicting each episode's own mean; the paper's follows from its own tables, RMSE / √(1 − R²), a mean
over episodes divided by a median, for PerSim on random data. (Table 6 prints an R² of 1 there, which leaves the scale
open.) Writes results/policy-scale.csv.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import protocol
import results
from measurement_file import RESULTS, MeasurementFile
from script import check_at_least, script

from persim_gym import get_task
from persim_gym.collection.logging_policies import test_policy
from persim_gym.evaluation.prediction import mean_predictor_errors

_SHARPEST_R2 = 0.99  # beyond it the digits printed leave the scale open


@dataclass(frozen=True)
class Spread:
    """How far one agent's trajectories spread: a line of the results file."""

    table: int
    env: str
    agent: int
    ours: float
    paper: float
    """Not a number where it is open."""
    ratio: float
    """Ours in units of the paper's."""
    episodes: int
    seed: int


def results_file(folder: Path = RESULTS) -> MeasurementFile[Spread]:
    """Return the results file."""
    return MeasurementFile(folder / "policy-scale.csv", Spread, float_format=".4g", formats={"ratio": ".3f"})


def measure(number: int, episodes: int, seed: int) -> list[Spread]:
    """Return a row for each test agent of one of the tables of prediction errors."""
    table = protocol.get_table(number)
    (env,) = table.envs
    figures = results.paper(table)
    ours = mean_predictor_errors(get_task(env), policy=test_policy(env, seed=seed).act, episodes=episodes, seed=seed)
    rows = []
    for agent, error in enumerate(ours):
        rmse, r2 = (figures[env, "random", "PerSim", str(agent), metric][0] for metric in ("rmse", "r2"))
        paper = math.nan if r2 > _SHARPEST_R2 else rmse / math.sqrt(1 - r2)
        rows.append(Spread(number, env, agent, float(error), paper, error / paper, episodes, seed))
    return rows


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    check_at_least(1, episodes=given.episodes)
    check_at_least(0, seed=given.seed)
    rows = [row for number in (7, 8) for row in measure(number, given.episodes, given.seed)]
    file = results_file(given.results)
    print(results.markdown([file.columns, *map(file.texts, rows)]))
    file.replace(rows)


if __name__ == "__main__":
    raise SystemExit(main())
