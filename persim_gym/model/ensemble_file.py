"""An ensemble's file: its arrays as safetensors, and everything else as JSON in the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persim_gym import storage
from persim_gym.config import PerSimConfig
from persim_gym.data.labels import NumberedLabels
from persim_gym.errors import FileFormatError
from persim_gym.model.normalizer import Normalizer
from persim_gym.model.outcomes import Outcome, OutcomeScaling, outcome_shapes
from persim_gym.model.parameters import parameter_shapes
from persim_gym.model.posterior import FactorPosterior
from persim_gym.storage import with_prefix, without_prefix
from persim_gym.tasks import Task, task_fields, task_of_file

if TYPE_CHECKING:
    from persim_gym.model.ensemble import Ensemble

_KIND = "ensemble"
_NORMALIZER = tuple(field.name for field in fields(Normalizer))
_SCALING = tuple(field.name for field in fields(OutcomeScaling))
_POSTERIOR = "posterior"
_WHOLE = ("num_transitions", "prior_agents")
"""Last part of the names of arrays of whole numbers; all others are of floats."""
_MAY_BE_INFINITE = (f"{_POSTERIOR}.noise", "calibration")
"""Of a coordinate that tells nothing of the agents; where simulators diverge."""


def write(path: str | Path, ensemble: Ensemble) -> None:
    """Write an ensemble, as a whole or not at all."""
    # A log of half a million agents without names needs no list of names.
    numbered = ensemble.agent_labels == NumberedLabels(ensemble.num_agents)
    document = {
        **task_fields(ensemble.task),
        "outcomes": list(ensemble.outcomes),
        "num_agents": ensemble.num_agents,
        "agent_labels": None if numbered else list(ensemble.agent_labels),
        "config": ensemble.config.to_json(),
        "provenance": dict(ensemble.provenance),
    }
    storage.write(path, _KIND, _arrays(ensemble), document)


def read(path: str | Path, *, task: str | Task | None = None) -> dict[str, Any]:
    """Return the fields of the ensemble that `write` wrote, by name.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: cut short, damaged, of a newer format, of another task, or not an ensemble.
        UnknownNameError: its task is not registered.

    """
    arrays, document = storage.read(path, _KIND)
    config, labels, provenance = _header(path, document)
    known = task_of_file(path, document, task)
    _check_shapes(path, arrays, _shapes(known, config, len(labels)))
    storage.check_numbers(path, arrays, whole=_WHOLE, infinite=_MAY_BE_INFINITE, unknown=("covariates",))
    posterior = _take_posterior(path, arrays, _POSTERIOR, config, len(labels), known.observation_size)
    names = document.get("outcomes", [])
    if not isinstance(names, list):
        raise FileFormatError(f"{path}: the header is damaged (outcomes is {names!r})")
    outcomes = _take_outcomes(path, arrays, names, known, config, len(labels))
    if "covariates" in arrays:
        _check_shapes(path, arrays, {"covariates": (len(labels), len(known.covariates))})
    return {
        "task": known,
        "config": config,
        "agent_labels": labels,
        "provenance": provenance,
        "outcomes": outcomes,
        "normalizer": Normalizer(**{name: np.array(arrays.pop(f"normalizer.{name}")) for name in _NORMALIZER}),
        "initial_observations": np.array(arrays.pop("initial_observations")),
        "covariates": arrays.pop("covariates", None),
        "posterior": posterior,
        "calibration": arrays.pop("calibration", None),
        "parameters": arrays,  # what is left of them
    }


def _arrays(ensemble: Ensemble) -> dict[str, np.ndarray]:
    arrays = dict(ensemble.parameters)
    arrays["initial_observations"] = ensemble.initial_observations
    arrays |= with_prefix("normalizer", {name: getattr(ensemble.normalizer, name) for name in _NORMALIZER})
    if ensemble.covariates is not None:
        arrays["covariates"] = ensemble.covariates
    for name, outcome in ensemble.outcomes.items():
        arrays |= with_prefix(name, outcome.parameters) | with_prefix(name, vars(outcome.scaling))
        if outcome.posterior is not None:
            arrays |= with_prefix(f"{name}.{_POSTERIOR}", outcome.posterior.to_arrays())
    if ensemble.posterior is not None:
        arrays |= with_prefix(_POSTERIOR, ensemble.posterior.to_arrays())
    if ensemble.calibration is not None:
        arrays["calibration"] = ensemble.calibration
    return arrays


def _header(path: str | Path, document: Mapping[str, Any]) -> tuple[PerSimConfig, Sequence[str], Mapping[str, Any]]:
    """Return configuration, labels of the agents, and provenance."""
    try:
        count = int(document["num_agents"])
        labels = tuple(map(str, document["agent_labels"])) if document["agent_labels"] else NumberedLabels(count)
        config = PerSimConfig.from_json(document["config"])
        provenance = dict(document["provenance"])
        different = count if isinstance(labels, NumberedLabels) else len(set(labels))
        if len(labels) != count or different < count:
            raise ValueError(f"{len(labels)} labels, {different} of them different, for {count} agents")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: the header is damaged ({error})") from error
    return config, labels, provenance


def _shapes(task: Task, config: PerSimConfig, num_agents: int) -> dict[str, tuple[int, ...]]:
    """Return the leading axes of every array but those of outcomes and posteriors."""
    size = task.observation_size
    dynamics = parameter_shapes(
        config,
        num_agents=num_agents,
        observation_size=size,
        action_size=task.action_size,
        discrete=task.discrete,
    )
    shapes = {name: shape for name, (shape, _) in dynamics.items()}
    shapes |= with_prefix("normalizer", dict.fromkeys(_NORMALIZER, (size,)))
    shapes["initial_observations"] = ()
    return shapes


def _check_shapes(path: str | Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape[: len(shape)] != shape:
            raise FileFormatError(f"{path}: array {name!r} is missing or has the wrong shape, expected {shape}")


def _take_posterior(
    path: str | Path, arrays: dict[str, np.ndarray], prefix: str, config: PerSimConfig, num_agents: int, size: int
) -> FactorPosterior | None:
    """Take the posterior out of a file's arrays, if it has one; ``size`` is D."""
    if not without_prefix(prefix, arrays):
        return None
    shapes = FactorPosterior.array_shapes(config.num_members, num_agents, config.rank, size)
    _check_shapes(path, arrays, with_prefix(prefix, shapes))
    return FactorPosterior.from_arrays({name: arrays.pop(f"{prefix}.{name}") for name in shapes})


def _take_outcomes(
    path: str | Path,
    arrays: dict[str, np.ndarray],
    names: Sequence[str],
    task: Task,
    config: PerSimConfig,
    num_agents: int,
) -> dict[str, Outcome]:
    """Take the outcomes out of a file's arrays."""
    outcomes = {}
    for name in names:
        shapes = {key: shape for key, (shape, _) in outcome_shapes(task, config, num_agents, name).items()}
        inputs = (shapes["state.0.weight"][2],)
        scaling = {key: inputs if key.startswith("input") else (1,) for key in _SCALING}
        _check_shapes(path, arrays, with_prefix(name, {**shapes, **scaling}))
        outcomes[name] = Outcome(
            {key: arrays.pop(f"{name}.{key}") for key in shapes},
            OutcomeScaling(**{key: np.array(arrays.pop(f"{name}.{key}")) for key in scaling}),
            posterior=_take_posterior(path, arrays, f"{name}.{_POSTERIOR}", config, num_agents, size=1),
        )
    if "reward" in task.learned and "reward" not in outcomes:
        raise FileFormatError(f"{path} has no learned reward, and task {task.name} has no reward function: give one")
    return outcomes
