"""How much disagreement MOReL's pessimistic MDP puts up with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from persim_gym.baselines.morel_run import PolicyRun
from persim_gym.baselines.plain_dynamics import PlainDynamics
from persim_gym.data.trajectories import Trajectories

THRESHOLD_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""c, of which the first is taken that suits: the lower, the more counts as unknown."""


def largest_discrepancy(dynamics: PlainDynamics, log: Trajectories) -> float:
    """Return the largest discrepancy of the log's own pairs of state and action."""
    return float(dynamics.predict(np.asarray(log.observations), np.asarray(log.actions))[1].max())


def first_that_seldom_halts(
    make_run: Callable[[float], PolicyRun],
    *,
    trial_steps: int,
    policy_steps: int,
    max_halted: float,
    progress: bool,
) -> tuple[float, PolicyRun]:
    """Return the lowest c whose policy seldom halts, and its run, which has learned for ``policy_steps``.

    Nothing but the learned dynamics is asked, as when the method's own threshold was chosen by how long episodes last.
    Where all of `THRESHOLD_SCALES` halt more often, it is the one that halted least when it was given up.

    Args:
        make_run: returns a run in the pessimistic MDP of a threshold scale c, not trained yet or resumed.
        trial_steps: that PPO learns from before its episodes are looked at, so that most c are given up early.
        policy_steps: after which they are looked at again: a policy goes on to learn that halting ends what costs more.
        max_halted: the part of them that may end by halting, each time.
        progress: whether to show bars.

    """
    given_up = []
    for scale in THRESHOLD_SCALES:
        run = make_run(scale)
        halted = run.halted_after(min(trial_steps, policy_steps), progress=progress)
        if halted <= max_halted:
            halted = run.halted_after(policy_steps, progress=progress)
        if halted <= max_halted:
            return scale, run
        given_up.append((halted, scale, run))
    _, scale, run = min(given_up, key=lambda one: one[:2])
    run.learn(policy_steps, progress=progress)
    return scale, run
