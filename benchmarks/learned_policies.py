"""Measuring policies learned from logs: MOReL, BCQ, CQL, with the training that the scale's budgets say.

A trained policy is kept beside the trained models, and scored as it is read from its file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import seeds
from cells import Cell, Measured, Score, by_agent, episodes_of, locked_file, with_training
from methods import METHODS, Learner
from models import logged, models_folder, other_settings
from scores import score_episodes

from persim_gym import Trajectories, get_task
from persim_gym.baselines import MOReLPolicy, OfflinePolicy
from persim_gym.baselines.bcq import fit_bcq
from persim_gym.baselines.cql import fit_cql
from persim_gym.baselines.learned_policy import LearnedPolicy
from persim_gym.baselines.morel import fit_morel
from persim_gym.types import Policy

FITS: dict[Learner, Callable[..., LearnedPolicy]] = {
    Learner.BCQ: fit_bcq,
    Learner.CQL: fit_cql,
    Learner.MOREL: fit_morel,
}


def measure_policy(cell: Cell, folder: Path, *, device: str, cache: Path) -> Measured:
    """Return the scores of one policy learned from all agents' data (-P) or of one of each agent's (-A)."""
    agents = range(len(get_task(cell.env).test_agents))
    method = METHODS[cell.method]
    own = method.own_data
    policies = {agent: _trained(cell, agent, device, cache) for agent in (agents if own else [None])}

    def returns(agent: int) -> Score:
        policy = policies[agent if own else None]
        return _score(cell, _Sampling(policy) if method.sampled else policy, agent)

    measured = by_agent(cell, folder, returns)
    for policy in policies.values():
        measured = with_training(measured, policy)
    choices = [] if method.variant_of else _choices(policies)  # of a variant they stand beside the other method
    return replace(measured, scores=(*measured.scores, *choices))


def _choices(policies: Mapping[int | None, LearnedPolicy]) -> list[Score]:
    """Return, by the index of whose data each is learned from or None for everyone's, what trainings have chosen."""
    return [
        Score(protocol.EVERYONE if agent is None else str(agent), metric, float(policy.provenance[metric]))
        for agent, policy in policies.items()
        for metric in protocol.CHOICES
        if metric in policy.provenance
    ]


def score_policy(cell: Cell, log: Trajectories, agent: int, device: str, **settings: Any) -> Score:
    """Train BCQ or CQL, whichever the cell's method names, on all of a log, and score it for an agent."""
    return _score(cell, learner(cell.method)(log, **_settings(cell, device), **settings), agent)


def learner(method: str) -> Callable[..., LearnedPolicy]:
    """Return what trains the policy of a method."""
    wanted = METHODS[method].learner
    assert wanted is not None, f"{method} learns no policy"
    return FITS[wanted]


def _trained(cell: Cell, agent: int | None, device: str, cache: Path) -> LearnedPolicy:
    """Return the policy learned from one agent's data, or from everyone's, trained now or earlier."""
    method, training = METHODS[cell.method], seeds.in_words(cell.scale.training(cell.method, cell.env))
    kind = MOReLPolicy if method.learner is Learner.MOREL else OfflinePolicy
    whose = "" if agent is None else f"-agent{agent}"
    name = f"{method.base}-{cell.env}-{cell.data}-{cell.scale.name}-seed{cell.seed}{whose}.policy"
    path = models_folder(cache, cell.env) / name
    with locked_file(path):
        if not path.exists():
            log = logged(cell.env, cell.data, cell.scale)
            policy = learner(cell.method)(log, agent=agent, checkpoint=path, **_settings(cell, device))
            policy.provenance["training"] = training
            policy.save(path)
    policy = kind.load(path, seed=cell.seed)
    if policy.provenance["training"] != training:
        raise other_settings(path)
    return policy


def _settings(cell: Cell, device: str) -> dict[str, Any]:
    """Return how a cell's policy is trained."""
    training = cell.scale.training(cell.method, cell.env)
    return {"seed": cell.seed, "device": device, "progress": sys.stderr.isatty(), **training}


def _score(cell: Cell, policy: Policy, agent: int) -> Score:
    task = get_task(cell.env)
    system = task.system(np.tile(task.test_agents[agent], (episodes_of(cell), 1)))
    return score_episodes(cell, agent, system, policy)


class _Sampling:
    """A policy whose actions are drawn, whatever is asked for."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """Return drawn actions."""
        return self._policy.predict(observation, state, episode_start, deterministic=False)
