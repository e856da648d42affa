"""Draw true against predicted states at several horizons (figures 2 and 4 of the paper).

    python benchmarks/frames.py --env CartPole MountainCar --data random
    python benchmarks/frames.py --env HalfCheetah --scale small

Two very different test agents, the unseen test policy's actions, PerSim as it is trained for benchmarks/paper.py.
Writes one picture for each environment and data set to benchmarks/results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import protocol
from measurement_file import RESULTS
from methods import METHODS
from models import trained
from script import script

from persim_gym.collection.logging_policies import test_policy
from persim_gym.plotting import plot_frames

HORIZONS = (10, 30, 50, 70, 90)
AGENTS = {"MountainCar": (0, 4), "CartPole": (0, 4), "HalfCheetah": (0, 3)}


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", choices=list(AGENTS), default=["MountainCar", "CartPole"])
    parser.add_argument("--data", nargs="+", choices=protocol.LOGGING_POLICIES, default=["random"])
    parser.add_argument("--method", choices=["PerSim", "PerSim+"], default="PerSim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", default="full", choices=protocol.SCALES)
    given = parser.parse_args(arguments)
    scale = protocol.get_scale(given.scale)
    for env in given.env:
        for data in given.data:
            config = METHODS[given.method].config_name(env)
            ensemble = trained(env, data, scale, given.seed, config=config)
            policy = test_policy(env, seed=given.seed).act
            path = RESULTS / f"frames-{config.replace('+', 'plus')}-{data}{scale.file_suffix}.png"
            print(plot_frames(ensemble, path, agents=AGENTS[env], horizons=HORIZONS, policy=policy, seed=given.seed))


if __name__ == "__main__":
    raise SystemExit(main())
