"""How soon an agent that was never trained on is known: prediction error after its first transitions.

    python benchmarks/few_shot.py --env MountainCar CartPole
    python benchmarks/few_shot.py --env HalfCheetah --scale small

"PerSim+" learns from the first four fifths of the agents of a log. Of the others, each is known by its first
transitions in that log, by its covariates, by both, or, in another ensemble, by having been trained in with its whole
trajectory. The error is that of Tables 6 to 8, along trajectories of the test policy. Writes
benchmarks/results/few-shot.csv and a picture for each environment.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import protocol
from cells import commit
from measurement_file import RESULTS, MeasurementFile
from models import logged
from newcomers import first_transitions, persim_plus
from script import check_at_least, ensemble_parser, script

from persim_gym import Ensemble, personalize, prediction_error
from persim_gym.collection.logging_policies import test_policy
from persim_gym.extras import optional

COUNTS = (0, 1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Error:
    """Error of one way of knowing an agent: a line of the results file."""

    env: str
    data: str
    way: str
    """"transitions", "covariates", "both" or "trained in"."""
    transitions: int
    """At most; -1 for the whole trajectory."""
    rmse: float
    """Mean over the agents of the mean over their episodes."""
    rmse_median: float
    """Median over the agents."""
    rmse_quarter: float
    rmse_three_quarters: float
    r2: float
    """Median over the agents of the median over their episodes."""
    agents: int
    episodes: int
    seed: int
    scale: str
    commit: str
    wall_s: float


def few_shot(
    seen: Ensemble, everyone: Ensemble, *, data: str, agents: int, episodes: int, seed: int, scale: protocol.Scale
) -> list[Error]:
    """Measure all ways of knowing the first of the agents that ``seen`` has not seen, but ``everyone`` has."""
    env, first = seen.task.name, seen.num_agents
    log = logged(env, data, scale).select(range(first, min(first + agents, everyone.num_agents)))
    names = [f"newcomer {agent}" for agent in range(log.num_agents)]
    covariates = {
        name: dict(zip(log.covariate_names, row, strict=True)) for name, row in zip(names, log.covariates, strict=True)
    }
    ways: list[tuple[str, int, Ensemble, list[str]]] = [("trained in", -1, everyone, list(log.agent_labels))]
    for count in COUNTS:
        own = first_transitions(log, count) if count else None
        both = personalize(seen, own, covariates=covariates)
        ways.append(("both" if count else "covariates", count, both, names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no transition: that is the question
            alone = personalize(seen, own, agents=names)
        ways.append(("transitions", count, alone, names))
    found = []
    for way, count, ensemble, labels in ways:
        start = time.perf_counter()
        rows = prediction_error(
            ensemble, policy=test_policy(env, seed=seed).act, agents=labels, episodes=episodes, seed=seed,
            covariates=dict(zip(labels, log.covariates, strict=True)),
        )  # fmt: skip
        rmse = np.array([row.rmse for row in rows])
        quarters = (float(np.quantile(rmse, part)) for part in (0.5, 0.25, 0.75))
        r2, wall = float(np.median([row.r2 for row in rows])), round(time.perf_counter() - start, 1)
        found.append(
            Error(
                env,
                data,
                way,
                count,
                float(rmse.mean()),
                *quarters,
                r2,
                len(rows),
                episodes,
                seed,
                scale.name,
                commit(),
                wall,
            )  # fmt: skip
        )
        print(f"{env}: {way}, {count} transitions: RMSE {found[-1].rmse:.4g}, median {found[-1].rmse_median:.4g}")
    return found


def draw(rows: Sequence[Error], path: Path) -> None:
    """Draw the median error, and the middle half of the agents, over the number of transitions."""
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(5.2, 3.8), layout="constrained")
    axis = figure.subplots()
    for way, color in (("transitions", "tab:blue"), ("both", "tab:green")):
        line = [row for row in rows if row.way == way and row.transitions > 0]
        counts = [row.transitions for row in line]
        axis.plot(counts, [row.rmse_median for row in line], "o-", color=color, label=f"by {way}")
        low, high = [row.rmse_quarter for row in line], [row.rmse_three_quarters for row in line]
        axis.fill_between(counts, low, high, color=color, alpha=0.15)
    for way, style in (("covariates", "--"), ("trained in", ":")):
        (row,) = (row for row in rows if row.way == way)
        axis.axhline(row.rmse_median, color="black", linestyle=style, label=f"by {way}" if way != "trained in" else way)
    axis.set(xscale="log", yscale="log", xlabel="transitions of the agent", ylabel="RMSE of 51 steps, median agent")
    axis.set_title(f"{rows[0].env}, {rows[0].data} data: an agent never trained on", fontsize=10)
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def results_file(scale: protocol.Scale, folder: Path = RESULTS) -> MeasurementFile[Error]:
    """Return a scale's results file."""
    path = folder / f"few-shot{scale.file_suffix}.csv"
    return MeasurementFile(path, Error, key=("env", "data"), float_format=".4g")


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write, draw."""
    parser = ensemble_parser(__doc__)
    parser.add_argument("--agents", type=int, default=40, help="to measure on")
    parser.add_argument("--episodes", type=int, default=20, help="an agent")
    given = parser.parse_args(arguments)
    check_at_least(1, agents=given.agents, episodes=given.episodes)
    check_at_least(0, seed=given.seed)
    scale = protocol.get_scale(given.scale)
    for env in given.env:
        settings = {"device": given.device, "cache": given.cache}
        everyone = persim_plus(env, given.data, scale, given.seed, **settings)
        first = scale.num_agents * 4 // 5
        seen = persim_plus(env, given.data, scale, given.seed, first=first, **settings)
        rows = few_shot(
            seen, everyone, data=given.data, agents=given.agents, episodes=given.episodes, seed=given.seed,
            scale=scale,
        )  # fmt: skip
        results_file(scale, given.results).replace(rows)
        draw(rows, given.results / f"few-shot-{env}-{given.data}{scale.file_suffix}.png")


if __name__ == "__main__":
    raise SystemExit(main())
