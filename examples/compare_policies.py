"""Which of two policies suits which agent? Ask the simulators, then the true systems.

python examples/compare_policies.py [--agents 12] [--episodes 20] [--out gains.csv]
"""

import argparse
import csv

import numpy as np

import persim_gym

parser = argparse.ArgumentParser()
parser.add_argument("--agents", type=int, default=12)
parser.add_argument("--episodes", type=int, default=20)
parser.add_argument("--out", default="gains.csv")
arguments = parser.parse_args()


def where_it_leans(observations):
    """Push the cart to where the pole leans."""
    return (observations[:, 2] > 0).astype(int)


def where_it_will_lean(observations):
    """Push the cart to where the pole will lean in a moment."""
    return (observations[:, 2] + 0.2 * observations[:, 3] > 0).astype(int)


ensemble = persim_gym.load("CartPole")
how = {"agents": list(range(arguments.agents)), "episodes": arguments.episodes, "seed": 0}
policies = (where_it_leans, where_it_will_lean)
simulated = [persim_gym.simulated_policy_returns(ensemble, policy, starts="task", **how) for policy in policies]
true = [persim_gym.policy_returns(ensemble, policy, **how) for policy in policies]  # nobody has these of real agents

rows = [("agent", "gain in the simulator", "least member", "most", "gain in the true system")]
for now, ahead, now_true, ahead_true in zip(*simulated, *true, strict=True):
    gains = np.subtract(ahead.members, now.members)
    gain, true_gain = ahead.mean - now.mean, ahead_true.mean - now_true.mean
    rows.append((now.agent, *(f"{number:.1f}" for number in (gain, gains.min(), gains.max(), true_gain))))
for row in rows:
    print("".join(f"{text:26s}" for text in row))
with open(arguments.out, "w", newline="") as file:
    csv.writer(file).writerows(rows)
