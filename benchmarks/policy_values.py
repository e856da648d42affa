"""What policies earn in the shipped simulators, beside what they earn in the true systems.

    python benchmarks/policy_values.py

Episodes of an agent begin in the same states in both, so where a policy draws nothing the difference is the
simulator's alone. Writes results/policy-values.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results
from cells import commit
from measurement_file import RESULTS, MeasurementFile
from scipy.stats import spearmanr
from script import check_at_least, script

from persim_gym import Ensemble, load, policy_returns, simulated_policy_returns
from persim_gym.collection.logging_policies import test_policy
from persim_gym.types import FloatArray, Policy


def lean(observations: FloatArray) -> FloatArray:
    """Push CartPole's cart to where the pole leans."""
    return (observations[:, 2] > 0).astype(int)


def swing(observations: FloatArray) -> FloatArray:
    """Push MountainCar's car to where it moves."""
    return np.where(observations[:, 1] >= 0, 2, 0)


RULES = {"CartPole": lean, "MountainCar": swing}


@dataclass(frozen=True)
class PolicyValue:
    """One policy's returns over the agents of an environment: a line of the results file."""

    env: str
    policy: str
    true: float
    """Mean over the agents, in the true systems."""
    simulated: float
    difference: float
    """Mean over the agents of the absolute difference of the two."""
    correlation: float
    """Spearman's, over the agents; not a number where all returns are the same."""
    spread: float
    """Mean over the agents of the standard deviation over the ensemble's members."""
    agents: int
    episodes: int
    seed: int
    commit: str


def results_file(folder: Path = RESULTS) -> MeasurementFile[PolicyValue]:
    """Return the results file."""
    return MeasurementFile(folder / "policy-values.csv", PolicyValue, key=("env", "policy"), float_format=".4g")


def policies(env: str, seed: int) -> dict[str, str | Policy | Callable[[FloatArray], Any]]:
    """Return those that are tried in an environment, by name."""
    return {"random": "random", RULES[env].__name__: RULES[env], "test policy": test_policy(env, seed=seed).act}


def measure(env: str, agents: int, episodes: int, seed: int) -> list[PolicyValue]:
    """Return a row for each policy, of an environment's first agents, the test agents among them."""
    ensemble = load(env)
    chosen = list(range(agents))
    starts = _starts(ensemble, chosen, episodes, seed)
    rows = []
    for name, policy in policies(env, seed).items():
        how: dict[str, Any] = {"agents": chosen, "episodes": episodes, "seed": seed}
        true = np.array([row.mean for row in policy_returns(ensemble, policy, **how)])
        found = simulated_policy_returns(ensemble, policy, starts=starts, **how)
        simulated = np.array([row.mean for row in found])
        varied = np.ptp(true) > 0 and np.ptp(simulated) > 0
        rows.append(
            PolicyValue(
                env=env,
                policy=name,
                true=float(true.mean()),
                simulated=float(simulated.mean()),
                difference=float(np.abs(simulated - true).mean()),
                correlation=float(spearmanr(true, simulated).statistic) if varied else float("nan"),
                spread=float(np.mean([np.std(row.members) for row in found])),
                agents=agents,
                episodes=episodes,
                seed=seed,
                commit=commit(),
            )
        )
    return rows


def _starts(ensemble: Ensemble, agents: Sequence[int], episodes: int, seed: int) -> FloatArray:
    """Return (agents, episodes, D), where `policy_returns` begins."""
    systems = (ensemble.task.system(np.tile(ensemble.agent_covariates(agent), (episodes, 1))) for agent in agents)
    return np.array(
        [system.reset(np.random.default_rng([seed, agent])) for agent, system in zip(agents, systems, strict=True)]
    )


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(RULES), choices=RULES, help="only these environments")
    parser.add_argument("--agents", type=int, default=40, help="the first so many; the test agents are the first five")
    parser.add_argument("--episodes", type=int, default=50, help="of each agent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    check_at_least(1, agents=given.agents, episodes=given.episodes)
    check_at_least(0, seed=given.seed)
    file = results_file(given.results)
    for env in given.env:
        rows = measure(env, given.agents, given.episodes, given.seed)
        file.replace(rows)
        print(results.markdown([file.columns, *map(file.texts, rows)]))


if __name__ == "__main__":
    raise SystemExit(main())
