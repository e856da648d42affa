"""Compare two action plans for one agent, with the prediction of every member drawn.

python examples/what_if.py [--agent 4] [--out what-if.png]
"""

import argparse

import gymnasium as gym
import matplotlib
import numpy as np

import persim_gym  # noqa: F401  (registers the ids)

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--agent", type=int, default=4)
parser.add_argument("--out", default="what-if.png")
arguments = parser.parse_args()

env = gym.make("PerSim-CartPole-v0", agent=arguments.agent).unwrapped
start = np.array([0.0, 0.0, 0.03, 0.0])
plans = {"right, left, right, …": np.arange(25) % 2 == 0, "right, right, left, left, …": np.arange(25) // 2 % 2 == 0}

figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for axis, (name, plan) in zip(axes, plans.items(), strict=True):
    members = env.simulator.rollout(start[None], plan[None].astype(int))[:, 0]  # (M, H, D)
    axis.plot(members[:, :, 2].T, color="tab:orange", alpha=0.4)
    axis.plot(members[:, :, 2].mean(axis=0), color="tab:orange", linewidth=2)
    axis.axhline(env.observation_space.high[2] / 2, color="gray", linestyle=":")
    axis.axhline(-env.observation_space.high[2] / 2, color="gray", linestyle=":")
    axis.set(title=name, xlabel="step", ylabel="pole angle (rad)")
figure.suptitle(f"agent {arguments.agent}: two plans from the same state")
figure.savefig(arguments.out, dpi=120)
print("picture:", arguments.out)
