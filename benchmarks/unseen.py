"""Simulators of agents that were never trained on, known by their covariates (appendix F.5 of the paper)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from persim_gym import Ensemble, fit_covariate_map, personalize

UNSEEN_AGENTS = {"MountainCar": ((0.00005,), (0.00008,), (0.002,), (0.0037,), (0.004,))}
"""Covariates of the agents of Tables 12 and 13; all but the third are outside the training range."""
_LEAST_KNOWN = 3


def of_unseen_agents(ensemble: Ensemble, known: float, *, kind: str, seed: int) -> Ensemble:
    """Return the simulators of the unseen agents alone, with labels "0", "1", ….

    Args:
        ensemble: trained on other agents.
        known: p; at least three agents' covariates are taken, however small it is.
        kind: of the map, "mlp" as in the paper or another (`persim_gym.fit_covariate_map`).
        seed: of the choice of agents and of the map.

    """
    part = min(1.0, max(known, _LEAST_KNOWN / ensemble.num_agents))
    names, covariates = ensemble.task.covariate_names, UNSEEN_AGENTS[ensemble.task.name]
    grown = personalize(
        ensemble,
        covariates={f"unseen {index}": dict(zip(names, row, strict=True)) for index, row in enumerate(covariates)},
        covariate_map=fit_covariate_map(ensemble, kind=kind, fraction=part, seed=seed),
    )
    unseen = grown.with_agents(np.arange(ensemble.num_agents, grown.num_agents).tolist())
    return replace(unseen, agent_labels=tuple(str(index) for index in range(len(covariates))))
