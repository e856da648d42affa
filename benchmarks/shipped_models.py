"""Train the ensembles that ship with the package, one of each task, on its random data set.

    python benchmarks/shipped_models.py MountainCar CartPole HalfCheetah

MountainCar and CartPole have the paper's 500 agents and the package's own settings. HalfCheetah has the paper's 500
agents, layers of 256 and rank, but fewer epochs with a faster schedule, as its provenance says. An interrupted run goes
on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from script import script

from persim_gym import collect, fit, refit_factors
from persim_gym.config import CONFIGS

MODELS = Path(__file__).parents[1] / "persim_gym" / "assets" / "models"
HALF_CHEETAH = CONFIGS["HalfCheetah-text"].with_changes(epochs=40, halve_learning_rate_every=10)


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save the ensembles of the named tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["MountainCar", "CartPole", "HalfCheetah"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    for task in given.tasks:
        path = MODELS / f"{task}.persim"
        heavy = task == "HalfCheetah"
        log = collect(task, policy="random", num_agents=500, seed=given.seed)
        ensemble = fit(
            log,
            config=HALF_CHEETAH if heavy else None,
            validation_fraction=0.02 if heavy else 0.2,
            refit=not heavy,
            seed=given.seed,
            device=given.device,
            checkpoint=path,
        )
        if ensemble.posterior is None:  # for newcomers and intervals; the agents' factors stay as they were trained
            ensemble = refit_factors(ensemble, log, replace_factors=False)
        ensemble.save(path)
        print(path.name, ensemble, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
