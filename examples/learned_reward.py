"""Train from a log alone: reward and end of an episode are learned, too, and the file is all another process needs.

python examples/learned_reward.py [--agents 60] [--epochs 100]
"""

import argparse
import subprocess
import sys

import numpy as np
from gymnasium import spaces

import persim_gym
from persim_gym import Task, Trajectories

parser = argparse.ArgumentParser()
parser.add_argument("--agents", type=int, default=60)
parser.add_argument("--epochs", type=int, default=100)
arguments = parser.parse_args()

# Batteries: charge falls with the load, by each one's own resistance; the log has what was earned and when it was flat.
rng, rows = np.random.default_rng(0), []
for battery in range(arguments.agents):
    resistance, charge, heat = rng.uniform(0.02, 0.1), rng.uniform(0.5, 1.0), 0.0
    for _step in range(40):
        load = rng.uniform(0, 1, 1)
        after = max(0.0, charge - resistance * load[0]), 0.8 * heat + load[0] ** 2 * resistance
        flat = after[0] < 0.1
        rows.append((f"battery {battery}", (charge, heat), load, after, load[0] - 5 * after[1], flat))
        charge, heat = after
        if flat:
            break
names = ("agents", "observations", "actions", "next_observations", "rewards", "terminated")
columns = {name: np.array([row[index] for row in rows]) for index, name in enumerate(names)}
log = Trajectories.from_arrays(**columns)
print(log)

# Only spaces and a time limit; what is left out is learned.
task = Task(
    name="Battery",
    observation_space=spaces.Box(np.float32([0, 0]), np.float32([1, 1])),
    action_space=spaces.Box(0.0, 1.0, (1,), np.float32),
    max_episode_steps=40,
    observation_names=("charge", "heat"),
)
ensemble = persim_gym.fit(log, task=task, epochs=arguments.epochs, seed=0)
ensemble.save("battery.persim")
for name in ("reward_rmse", "terminations_held_out", "terminations_expected", "termination_skill"):
    print(f"{name}, on transitions held out: {ensemble.provenance.get(name, float('nan')):.3g}")

# A process that has never heard of batteries.
code = """
import gymnasium, persim_gym
persim_gym.register_ensemble("battery.persim")
env = gymnasium.make("PerSim-Battery-agent3-v0")
observation, _ = env.reset(seed=0)
total, over = 0.0, False
while not over:
    observation, reward, terminated, truncated, _ = env.step([1.0])
    total, over = total + reward, terminated or truncated
print(f"battery 3 under full load: {env.get_wrapper_attr('_elapsed_steps')} steps, return {total:.1f}")
"""
subprocess.run([sys.executable, "-c", code], check=True)
