"""Which agents are alike."""

from __future__ import annotations

import numpy as np

from persim_gym.arguments import whole_number
from persim_gym.errors import MissingStatisticsError
from persim_gym.factors.covariates import known_by_transitions_only
from persim_gym.model.dynamics import check_is_ensemble
from persim_gym.model.ensemble import Ensemble


def nearest_agents(ensemble: Ensemble, agent: int | str, count: int = 5) -> list[tuple[str, float]]:
    """Return the labels of the agents that respond most like one agent, nearest first, and their distances.

    The distance is the root mean squared difference of two agents' predicted changes over the transitions of the
    ensemble's log, each coordinate in units of the noise, averaged over the members.

    Args:
        ensemble: with the posterior of its agents' factors.
        agent: index or label.
        count: how many; fewer if there are not so many.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: a count below 1.
        MissingStatisticsError: the ensemble has no posterior, or no agent that is known by transitions alone.

    """
    check_is_ensemble(ensemble)
    count = whole_number("count", count)
    index, posterior = ensemble.agent_index(agent), ensemble.known_posterior()
    means, _ = posterior.moments(np.arange(ensemble.num_agents))
    seen = known_by_transitions_only(ensemble)  # what covariates say of an agent is no transition
    if not seen.any():
        raise MissingStatisticsError(
            f"none of the ensemble's {ensemble.num_agents} agents is known by transitions alone, over which distances "
            "are measured: keep some that are (with_agents), or ask the ensemble that had them"
        )
    weight = posterior.information[:, seen].sum(1) / max(int(posterior.num_transitions[seen].sum()), 1)
    difference = means - means[:, [index]]
    squared = (
        np.einsum("mni,mij,mnj->mn", difference, weight, difference, optimize=True) / ensemble.task.observation_size
    )
    distance = np.sqrt(np.maximum(squared, 0).mean(0))
    order = [int(other) for other in np.argsort(distance, kind="stable") if other != index]
    return [(ensemble.agent_labels[other], float(distance[other])) for other in order[:count]]
