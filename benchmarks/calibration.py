"""How often predictive intervals cover the truth, for agents the ensemble was never trained on.

    python benchmarks/calibration.py --env MountainCar CartPole
    python benchmarks/calibration.py --env HalfCheetah --scale small --agents 40

The ensembles are those of benchmarks/paper.py on random data, "PerSim+". Their intervals are calibrated on new agents,
200 unless told, and measured on as many others, each known by the first half of one trajectory, along new trajectories
of the same logging policy, from anywhere within them. Writes benchmarks/results/calibration.csv.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import protocol
from cells import commit
from measurement_file import RESULTS, MeasurementFile
from newcomers import first_transitions, persim_plus, population
from script import check_at_least, ensemble_parser, script

from persim_gym import Ensemble, Trajectories, calibrate, collect, forecast, personalize

HORIZONS = (1, 10, 50)
LEVELS = (0.5, 0.8, 0.95)
_SEGMENTS = 2000
_EPISODES = {"CartPole": 40}
"""New trajectories of each agent; random ones of CartPole seldom last 50 steps."""


@dataclass(frozen=True)
class Coverage:
    """How often intervals of one probability covered one coordinate at one horizon: a line of the results file."""

    env: str
    data: str
    horizon: int
    coordinate: str
    """Or "all"."""
    level: float
    covered: float
    segments: int
    agents: int
    seed: int
    scale: str
    commit: str
    wall_s: float


def coverage(ensemble: Ensemble, *, data: str, agents: int, seed: int, scale: str) -> list[Coverage]:
    """Calibrate on new agents and measure on others."""
    start, task = time.perf_counter(), ensemble.task
    calibrated = calibrate(ensemble, population(task.name, data, agents, seed + 1), seed=seed)
    log = population(task.name, data, agents, seed + 2)
    known = personalize(calibrated, first_transitions(log))
    episodes = _EPISODES.get(task.name, 4)
    fresh = collect(task, policy=data, covariates=np.repeat(log.covariates, episodes, axis=0), seed=seed + 3)
    rng = np.random.default_rng(seed)
    found = []
    for horizon in HORIZONS:
        starts = _starts(fresh, horizon, rng)
        rows = starts[:, None] + np.arange(horizon)
        newcomers = fresh.agents[starts] // episodes
        predicted = forecast(
            known, [ensemble.num_agents + int(agent) for agent in newcomers], fresh.observations[starts],
            fresh.actions[rows], levels=LEVELS, seed=seed,
        )  # fmt: skip
        true = fresh.next_observations[rows]
        inside = ((true >= predicted.lower) & (true <= predicted.upper))[:, :, -1].mean(axis=1)  # (levels, D)
        for name, shares in zip((*task.observation_names, "all"), (*inside.T, inside.mean(1)), strict=True):
            for level, share in zip(LEVELS, shares, strict=True):
                found.append((horizon, name, level, float(share), len(starts), len(np.unique(newcomers))))
    wall = round(time.perf_counter() - start, 1)
    return [Coverage(task.name, data, *line, seed, scale, commit(), wall) for line in found]


def _starts(log: Trajectories, horizon: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows from which the episode goes on for the horizon."""
    rows = np.flatnonzero(log.steps_left >= horizon)
    return np.sort(rng.choice(rows, min(_SEGMENTS, len(rows)), replace=False))


def results_file(scale: protocol.Scale, folder: Path = RESULTS) -> MeasurementFile[Coverage]:
    """Return a scale's results file."""
    path = folder / f"calibration{scale.file_suffix}.csv"
    return MeasurementFile(path, Coverage, key=("env", "data"), float_format=".4g")


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write, print."""
    parser = ensemble_parser(__doc__)
    parser.add_argument("--agents", type=int, default=200, help="to calibrate on, and to measure on")
    given = parser.parse_args(arguments)
    check_at_least(1, agents=given.agents)
    check_at_least(0, seed=given.seed)
    scale = protocol.get_scale(given.scale)
    for env in given.env:
        ensemble = persim_plus(env, given.data, scale, given.seed, device=given.device, cache=given.cache)
        rows = coverage(ensemble, data=given.data, agents=given.agents, seed=given.seed, scale=scale.name)
        results_file(scale, given.results).replace(rows)
        for row in rows:
            print(f"{env} {row.coordinate}: {row.level:.0%} covers {row.covered:.1%} {row.horizon} steps ahead")


if __name__ == "__main__":
    raise SystemExit(main())
