"""Variants of methods: "PerSim (p=0.25)" meets agents that it was never trained on, "PerSim+ (N=50)" learns from few.

Tables 12 and 13 of the paper (appendix F.5) are about five unseen agents, known by their covariates, where the
covariates of a part p of the training agents are known; Tables 14 to 16 (appendix F.6) about N training agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from persim_gym import Ensemble, fit_covariate_map, personalize

FRACTIONS = (1.0, 0.5, 0.25, 0.1)
"""p, of Tables 12 and 13."""
AGENT_COUNTS = (250, 100, 50, 25)
"""N, of Tables 14, 15 and 16."""
UNSEEN_AGENTS = {"MountainCar": ((0.00005,), (0.00008,), (0.002,), (0.0037,), (0.004,))}
"""Covariates of the agents of Tables 12 and 13; all but the third are outside the training range."""
_LEAST_KNOWN = 3


def with_fraction(methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods of Tables 12 and 13."""
    return tuple(f"{method} (p={fraction})" for method in methods for fraction in FRACTIONS)


def with_agent_count(methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods of Tables 14 to 16."""
    return tuple(f"{method} (N={count})" for method in methods for count in AGENT_COUNTS)


def base_method(method: str) -> str:
    """Return a method without its variant."""
    return method.split(" (")[0]


def papers_name(method: str, papers_base: str) -> str:
    """Return what the paper's row beside a variant is called here: "PerSim(p=0.25)"."""
    return papers_base + method.removeprefix(base_method(method)).strip()


def fraction(method: str) -> float | None:
    """Return p of a variant, None if it is not one of unseen agents."""
    return float(method.split("(p=")[1][:-1]) if "(p=" in method else None


def agent_count(method: str) -> int | None:
    """Return N of a variant, None if it learns from all agents."""
    return int(method.split("(N=")[1][:-1]) if "(N=" in method else None


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
