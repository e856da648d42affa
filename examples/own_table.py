"""Bring your own table: a CSV file of patients, hour by hour, becomes one simulator for each patient.

python examples/own_table.py [--patients 60] [--epochs 100]
"""

import argparse

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium import spaces

import persim_gym
from persim_gym.interop import from_dataframe

parser = argparse.ArgumentParser()
parser.add_argument("--patients", type=int, default=60)
parser.add_argument("--epochs", type=int, default=100)
arguments = parser.parse_args()


def write_table(path: str) -> None:
    """Make up the hospital's table: glucose falls by a dose of insulin, in each patient by another amount."""
    rng, rows = np.random.default_rng(0), []
    for patient in range(arguments.patients):
        sensitivity, glucose, insulin = rng.uniform(5, 30), rng.uniform(100, 250), 0.0
        for hour in range(48):
            dose = int(rng.integers(3))
            rows.append((f"patient-{patient}", hour, glucose, insulin, dose))
            insulin = 0.6 * insulin + dose
            glucose = float(np.clip(glucose + 8 - 0.3 * sensitivity * insulin, 20, 500))
    pd.DataFrame(rows, columns=["patient", "hour", "glucose", "insulin", "dose"]).to_csv(path, index=False)


# Known without learning: spaces, reward, when an episode ends. The functions take NumPy arrays and torch tensors.
def hypoglycemic(next_observations):
    """Below 40 mg/dl the episode is over."""
    return next_observations[..., 0] < 40.0


def reward(observations, actions, next_observations):
    """Minus the distance from 120 mg/dl, in hundreds, and much less where the episode ends: that must not pay."""
    return -abs(next_observations[..., 0] - 120.0) / 100.0 - 100.0 * hypoglycemic(next_observations)


task = persim_gym.Task(
    name="Glucose",
    observation_space=spaces.Box(np.float32([20, 0]), np.float32([500, 10])),
    action_space=spaces.Discrete(3),
    reward=reward,
    terminated=hypoglycemic,
    max_episode_steps=48,
    observation_names=("glucose (mg/dl)", "insulin (units)"),
)
persim_gym.register_task(task)

write_table("patients.csv")
log = from_dataframe(
    "patients.csv", agent="patient", time="hour", observations=["glucose", "insulin"], action="dose", task="Glucose"
)
print(log)
ensemble = persim_gym.fit(log, epochs=arguments.epochs, seed=0)
ensemble.save("glucose.persim")
ids = persim_gym.register_ensemble("glucose.persim")

last = log.agent_labels[-1]
env = gym.make("PerSim-Glucose-v0", agent=last)
start = np.array([180.0, 0.0])
for dose in range(3):
    env.reset(seed=0, options={"state": start})
    for _hour in range(6):
        observation, *_ = env.step(dose)
    print(f"{last}, a dose of {dose} every hour: {observation[0]:.0f} mg/dl after 6 hours")
print(f"also {ids[1]} … {ids[-1]}")
