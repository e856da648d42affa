"""Compare settings of PerSim by their error on parts of the log that training has not seen.

    python benchmarks/settings.py CartPole --seeds 2
    python benchmarks/settings.py CartPole --data pure --variant ours "batches of 64"
    python benchmarks/settings.py HalfCheetah --agents 50 --variant ours "no linear path" "float32 products"

Every trajectory of a data set, the random one if not said otherwise, is cut: settings are trained on its first 70 % and
scored by each member's free-running error (`persim_gym.training.selection`) along the rest. The five test agents' true
systems and the test policies play no part. HalfCheetah's networks and epochs are those of scale "small". Writes
benchmarks/results/settings.csv, a line for each variant and seed; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import commit
from measurement_file import RESULTS, MeasurementFile
from protocol import SCALES
from script import check_at_least, script

from persim_gym import Trajectories, collect, fit
from persim_gym.collection.logging_policies import LOGGING_POLICIES
from persim_gym.config import CONFIGS, PerSimConfig
from persim_gym.training.selection import free_running_errors

SEEN = 0.7


@dataclass(frozen=True)
class Line:
    """The score of one variant under one seed."""

    env: str
    data: str
    variant: str
    seed: int
    num_agents: int
    members: str
    """Free-running error of each member on the unseen parts, best first."""
    median: float
    training_loss: float
    commit: str
    wall_s: float


def variants(env: str) -> dict[str, PerSimConfig]:
    """Return the settings to compare, by name: the paper's, ours, and ours with one thing changed.

    These others are not refitted in turns: that makes good what some of them spoil.
    """
    scale = SCALES["small"].changes if env == "HalfCheetah" else {}
    ours = CONFIGS[f"{env}+"].with_changes(num_candidates=0, **scale)  # all members are scored
    trained = ours.with_changes(refit_rounds=0)
    changes: Mapping[str, Mapping[str, Any]] = {
        "MountainCar": {
            "factors as trained": {"refit_factors": False},
            "not normalized": {"normalize": False},
            "squared error": {"huber_threshold": None},
            "squared error up to 1": {"huber_threshold": 1.0},
            "rank 5": {"rank": 5},
            "half the epochs": {"epochs": 60, "halve_learning_rate_every": 8},
            "twice the epochs": {"epochs": 240, "halve_learning_rate_every": 32},
            "constant learning rate 1e-3": {"learning_rate": 1e-3, "halve_learning_rate_every": 0},
            "weight decay 0.01": {"weight_decay": 0.01},
            "weight decay 0.1": {"weight_decay": 0.1},
        },
        "CartPole": {
            "not refitted in turns": {},
            "factors as trained": {"refit_factors": False},
            "constant learning rate 1e-3": {"learning_rate": 1e-3, "halve_learning_rate_every": 0},
            "normalized": {"normalize": True},
            "no linear path": {"linear_skip": False},
            "rank 5": {"rank": 5},
            "rank 8": {"rank": 8},
            "half the epochs": {"epochs": 300, "halve_learning_rate_every": 40},
            "twice the epochs": {"epochs": 1200, "halve_learning_rate_every": 160},
            "batches of 64": {"batch_size": 64, "max_steps_per_epoch": 0},
            **{f"weight decay {decay}": {"weight_decay": decay} for decay in (0.0, 0.01, 0.05, 0.2, 0.3)},
        },
        "HalfCheetah": {
            "float32 products": {"matmul_precision": "highest"},
            "no linear path": {"linear_skip": False},
            "learning rate 1e-3": {"learning_rate": 1e-3},
            "squared error up to 1": {"huber_threshold": 1.0},
            "rank 8": {"rank": 8},
            "rank 30": {"rank": 30},
            "batches of 256": {"batch_size": 256},
            "weight decay 0.01": {"weight_decay": 0.01},
        },
    }[env]
    changed = {name: trained.with_changes(**change) for name, change in changes.items()}
    return {"paper": CONFIGS[env].with_changes(**scale), "ours": ours, **changed}


def cut(log: Trajectories) -> tuple[Trajectories, Trajectories]:
    """Return the first part of every episode, and the rest of those that have one, with the same agents.

    `Trajectories.split` rounds what it holds out, not what it keeps: an episode of 15 steps would be cut after 11, not
    10. It was written after most lines of the results file, and they must stay comparable.
    """
    position = np.arange(log.num_transitions) - np.repeat(log.episode_starts, log.episode_lengths)
    seen = position < np.maximum(1, np.round(SEEN * np.repeat(log.episode_lengths, log.episode_lengths)))
    return _rows(log, seen, all_agents=True), _rows(log, ~seen, all_agents=False)


def _rows(log: Trajectories, kept: np.ndarray, *, all_agents: bool) -> Trajectories:
    labels = np.array(log.agent_labels)
    names = {"agent_labels": log.agent_labels} if all_agents else {}
    return Trajectories.from_arrays(
        agents=log.agents[kept] if all_agents else labels[log.agents[kept]],
        observations=log.observations[kept],
        actions=log.actions[kept],
        next_observations=log.next_observations[kept],
        terminated=log.terminated[kept],
        task=log.task,
        **names,
    )


def score(env: str, data: str, variant: str, seed: int, num_agents: int) -> Line:
    """Train one variant and score it."""
    start = time.perf_counter()
    seen, unseen = cut(collect(env, policy=data, num_agents=num_agents, seed=0))
    ensemble = fit(seen, config=variants(env)[variant], seed=seed, validation_fraction=0.0, progress=False)
    errors = np.sort(free_running_errors(ensemble, unseen))
    return Line(
        env,
        data,
        variant,
        seed,
        num_agents,
        " ".join(f"{error:.4g}" for error in errors),
        float(np.median(errors)),
        float(ensemble.provenance["training_loss"]),
        commit(),
        round(time.perf_counter() - start, 1),
    )


def results_file(folder: Path = RESULTS) -> MeasurementFile[Line]:
    """Return the file of all lines."""
    key = ("env", "data", "variant", "seed", "num_agents")
    return MeasurementFile(folder / "settings.csv", Line, key=key, float_format="")  # all digits


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Score every variant that is not scored yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["MountainCar", "CartPole", "HalfCheetah"])
    parser.add_argument("--data", default="random", choices=LOGGING_POLICIES)
    parser.add_argument("--variant", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--agents", type=int, default=500)
    given = parser.parse_args(arguments)
    check_at_least(1, agents=given.agents, seeds=given.seeds)
    for env in given.tasks:
        unknown = [variant for variant in given.variant or () if variant not in variants(env)]
        if unknown:
            parser.error(f"no variant {unknown[0]!r} of {env}; there are {', '.join(variants(env))}")
    torch.set_num_threads(1)
    file = results_file()
    for env in given.tasks:
        for seed in range(given.seeds):
            for variant in given.variant or variants(env):
                key = (env, given.data, variant, seed, given.agents)
                if key in {file.key_of(line) for line in file.read()}:
                    continue
                line = score(*key)
                file.replace([line])
                print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
