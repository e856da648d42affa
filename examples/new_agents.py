"""New patients come in: known after a day, forecast with intervals, and how often these hold what then happened.

python examples/new_agents.py [--patients 160] [--epochs 100]
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from gymnasium import spaces

import persim_gym

parser = argparse.ArgumentParser()
parser.add_argument("--patients", type=int, default=160)
parser.add_argument("--epochs", type=int, default=100)
arguments = parser.parse_args()

HOURS = 48
TASK = persim_gym.Task(
    name="Glucose",
    observation_space=spaces.Box(np.float32([20, 0]), np.float32([500, 10])),
    action_space=spaces.Discrete(3),
    max_episode_steps=HOURS,
    reward=lambda observations, actions, next_observations: -abs(next_observations[..., 0] - 120.0) / 100.0,
    terminated=lambda next_observations: next_observations[..., 0] < 30.0,
    observation_names=("glucose (mg/dl)", "insulin (units)"),
)
persim_gym.register_task(TASK)


def record(patients: int) -> persim_gym.Trajectories:
    """Make up a log: glucose falls by insulin, in each patient by another amount, and wavers by itself."""
    rng = np.random.default_rng(0)
    sensitivity, states = rng.uniform(5, 30, patients), np.zeros((HOURS + 1, patients, 2))
    states[0, :, 0] = rng.uniform(100, 250, patients)
    doses = rng.integers(3, size=(HOURS, patients))
    for hour in range(HOURS):
        glucose, insulin = states[hour].T
        change = 8 + 0.05 * (150 - glucose) - 0.15 * sensitivity * insulin + rng.normal(0, 3, patients)
        states[hour + 1] = np.stack([glucose + change, 0.6 * insulin + doses[hour]], axis=1)
    return persim_gym.Trajectories.from_arrays(
        agents=np.repeat([f"patient {number}" for number in range(patients)], HOURS),
        observations=states[:-1].swapaxes(0, 1).reshape(-1, 2),
        actions=doses.T.reshape(-1),
        next_observations=states[1:].swapaxes(0, 1).reshape(-1, 2),
        task=TASK,
    )


known, others = record(arguments.patients).split(0.4, by="agent")
to_calibrate, newcomers = others.split(0.5, by="agent")
ensemble = persim_gym.calibrate(persim_gym.fit(known, epochs=arguments.epochs, seed=0), to_calibrate)

first_day, second_day = newcomers.split(0.5)
larger = persim_gym.personalize(ensemble, first_day)
larger.save("larger.persim")

figure, panels = plt.subplots(2, 4, figsize=(14, 7), sharex=True, layout="constrained")
for label, panel in zip(newcomers.agent_labels, panels.flat, strict=False):
    print(f"{label} is most like {', '.join(other for other, _ in persim_gym.nearest_agents(larger, label, 3))}")
    own = second_day.select([label])
    future = persim_gym.forecast(larger, label, own.observations[:1], own.actions[None], levels=(0.8,), seed=0)
    hours, low, high = np.arange(1, own.num_transitions + 1), future.lower[0, 0, :, 0], future.upper[0, 0, :, 0]
    panel.fill_between(hours, low, high, alpha=0.3, label="80 % interval")
    panel.plot(hours, future.means[0, :, 0], label="forecast")
    panel.plot(hours, own.next_observations[:, 0], "k.", label="what happened")
    panel.set(title=label, xlabel="hours of the second day", ylabel=TASK.observation_names[0])
figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig("forecast.png")

for row in persim_gym.interval_coverage(larger, second_day, horizons=(1, 6, 12), levels=(0.8,)):
    print(f"{row.horizon} hours ahead 80 % intervals, {row.width[0]:.0f} mg/dl wide, hold {row.by_coordinate[0]:.0%}")
