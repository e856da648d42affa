"""What environments are made of: a loaded model, the agents it is bound to, and start states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np

from persim_gym.arguments import one_of
from persim_gym.data.labels import AgentIndex
from persim_gym.errors import InvalidArgumentError, MissingFileError
from persim_gym.factors.covariates import CovariateMap, fit_covariate_map
from persim_gym.factors.newcomers import personalize
from persim_gym.model.dynamics import LearnedDynamics, check_is_ensemble
from persim_gym.model.ensemble import Ensemble
from persim_gym.registration import model_file
from persim_gym.simulators.aggregation import AGGREGATES
from persim_gym.tasks import Task, known_tasks
from persim_gym.tasks.covariates import covariate_array
from persim_gym.types import FloatArray

ENSEMBLE_MODES = ("aggregate", "member", "posterior")


def draw_initial_observations(ensemble: LearnedDynamics, rng: np.random.Generator, count: int) -> FloatArray:
    """Draw (B, D) start states: the task's own, or first states of the log.

    Raises:
        InvalidStateError: the task's own function returns no such states.

    """
    if ensemble.task.initial_observations is not None:
        return ensemble.task.draw_initial_observations(rng, count)
    known = ensemble.initial_observations
    return known[rng.integers(len(known), size=count)].astype(np.float64)


def check_mode(ensemble: str, aggregate: str) -> None:
    """Raise InvalidArgumentError if there is no such mode or aggregate, or the mode would ignore the aggregate."""
    one_of("aggregate", aggregate, AGGREGATES)
    one_of("ensemble", ensemble, ENSEMBLE_MODES)
    if ensemble != "aggregate" and aggregate != "mean":
        raise InvalidArgumentError(
            f"ensemble={ensemble!r} follows one member, and aggregate={aggregate!r} combines all: give only one of them"
        )


def bind(
    model: LearnedDynamics,
    agent: int | str | Sequence[int | str] | None,
    covariates: Mapping[str, float] | Sequence[Mapping[str, float]] | None,
) -> tuple[LearnedDynamics, Sequence[int | str]]:
    """Return the model, grown where agents are known by covariates only, and one agent or one of each environment."""
    if covariates is not None:
        if agent is not None:
            raise InvalidArgumentError(f"give either agent={agent!r} or covariates={covariates!r}, not both")
        return _with_unseen_agents(model, covariates if isinstance(covariates, Sequence) else [covariates])
    if agent is None:
        return model, [AgentIndex(0)]
    if isinstance(agent, str) or not isinstance(agent, (Sequence, np.ndarray)) or np.shape(agent) == ():
        return model, [cast(int | str, agent)]
    return model, agent


def _with_unseen_agents(
    ensemble: LearnedDynamics, covariates: Sequence[Mapping[str, float]]
) -> tuple[Ensemble, list[int]]:
    """Return the ensemble with agents more, known by their covariates, and the index of each."""
    if not isinstance(ensemble, Ensemble):
        raise InvalidArgumentError(
            f"covariates={covariates!r}: only PerSim's ensembles know agents by covariates; give agent= instead"
        )
    if len(covariates) == 0:
        raise InvalidArgumentError("covariates= is empty: give those of at least one agent")
    labels = []
    for values in covariate_array(ensemble.task, covariates).tolist():
        named = zip(ensemble.task.covariate_names, values, strict=True)
        labels.append("unseen agent, " + ", ".join(f"{name}={value!r}" for name, value in named))
    # The same agent may have several environments, and an ensemble that has grown so before, and was saved, has it.
    known = set(ensemble.agent_labels)
    newcomers = {label: own for label, own in zip(labels, covariates, strict=True) if label not in known}
    if newcomers:
        ensemble = personalize(ensemble, covariates=newcomers, covariate_map=_covariate_map(ensemble))
    return ensemble, [ensemble.agent_index(label) for label in labels]


@lru_cache(maxsize=8)
def _covariate_map(ensemble: Ensemble) -> CovariateMap:
    """Learn the map once for all environments of a process; ensembles are compared by identity."""
    return fit_covariate_map(ensemble)


def load(model: str | Path | LearnedDynamics) -> LearnedDynamics:
    """Return the model, or that of a file or a name.

    Raises:
        InvalidArgumentError: it is none of these.
        MissingFileError: there is no such file.

    """
    if not isinstance(model, (str, Path)):
        check_is_ensemble(model, "model")
        return model
    path = model_file(model)
    if not path.exists():
        raise MissingFileError(f"there is no file {path}: give an ensemble, a model's name or its file")
    return _load_once(str(path), path.stat().st_mtime_ns, known_tasks())


@lru_cache(maxsize=8)
def _load_once(path: str, modified: int, tasks: tuple[Task, ...]) -> Ensemble:
    """Load a file once for all environments of a process, and again when it or a task has been replaced."""
    return Ensemble.load(path)
