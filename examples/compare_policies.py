"""Which of two policies suits which agent? Ask the simulators, then the true systems.

python examples/compare_policies.py [--agents 12] [--episodes 20]
"""

import argparse

import numpy as np

import persim_gym

parser = argparse.ArgumentParser()
parser.add_argument("--agents", type=int, default=12)
parser.add_argument("--episodes", type=int, default=20)
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

print("agent    gain of looking ahead, in the simulator (least … most of its members) and in the true system")
for now, ahead, now_true, ahead_true in zip(*simulated, *true, strict=True):
    gains = np.subtract(ahead.members, now.members)
    in_simulator = f"{ahead.mean - now.mean:7.1f}  ({gains.min():.1f} … {gains.max():.1f})"
    print(f"{now.agent:8s} {in_simulator:30s} {ahead_true.mean - now_true.mean:7.1f}")
