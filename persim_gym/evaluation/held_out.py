"""What is asked of a log that a model is to be measured along."""

from __future__ import annotations

from persim_gym.data.trajectories import Trajectories
from persim_gym.model.dynamics import LearnedDynamics, known_agents
from persim_gym.types import IntArray
from persim_gym.user_warnings import warn_user


def measured_agents(ensemble: LearnedDynamics, log: Trajectories) -> IntArray:
    """Return the index (n,) in a model of each agent of a log.

    Warns of a synthetic log, and of the one that the model was trained on.

    Raises:
        UnknownNameError: one is not in the model.
        InvalidDataError: the log does not fit the model's task, or is of other agents of the same labels.

    """
    agents = known_agents(ensemble, log)
    if log.provenance.get("synthetic"):
        warn_user(
            "the log is synthetic, at least in part: errors along it say how far simulators are from one another, and "
            "nothing of the agents themselves",
        )
    if log.digest == ensemble.provenance.get("data_digest"):
        warn_user(
            "the model was trained on this very log, along which its errors are smaller than along others: hold a part "
            "out before training, kept, held_out = log.split(0.2)"
        )
    return agents
