"""Personalized simulators from one logged trajectory of each of many agents, as Gymnasium environments.

Importing the package registers the environments' ids and loads no learning library; everything else comes on first use.
Public are the names in ``__all__`` and the modules `baselines`, `config`, `errors`, `interop`, `planning`, `tasks` and
`types`; other modules may move.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from persim_gym import errors, registration
from persim_gym.registration import register_ensemble

if TYPE_CHECKING:
    from pathlib import Path

    from persim_gym.collection.collect import collect
    from persim_gym.collection.policies import MLPPolicy
    from persim_gym.config import PerSimConfig
    from persim_gym.data.trajectories import Trajectories
    from persim_gym.evaluation.calibration import calibrate
    from persim_gym.evaluation.coverage import IntervalCoverage, interval_coverage
    from persim_gym.evaluation.forecasts import Forecast, forecast
    from persim_gym.evaluation.log_errors import LogError, log_error
    from persim_gym.evaluation.prediction import PredictionError, prediction_error
    from persim_gym.evaluation.returns import (
        AverageReturn,
        mpc_returns,
        policy_returns,
        true_mpc_returns,
        value_iteration_returns,
    )
    from persim_gym.evaluation.simulated_returns import SimulatedReturn, simulated_policy_returns
    from persim_gym.factors.covariates import CovariateMap, fit_covariate_map
    from persim_gym.factors.inference import refit_factors, update
    from persim_gym.factors.newcomers import personalize
    from persim_gym.factors.similarity import nearest_agents
    from persim_gym.generation import generate
    from persim_gym.model.ensemble import Ensemble
    from persim_gym.planning import MPCAgent, ValueIterationAgent
    from persim_gym.plotting import plot_agents, plot_frames, plot_trajectories
    from persim_gym.simulators.simulator import Simulator
    from persim_gym.tasks import Covariate, PlanningObjective, Task, get_task, register_task, task_names
    from persim_gym.training.fit import fit

__version__ = "0.1.0"

__all__ = [
    "AverageReturn",
    "Covariate",
    "CovariateMap",
    "Ensemble",
    "Forecast",
    "IntervalCoverage",
    "LogError",
    "MLPPolicy",
    "MPCAgent",
    "PerSimConfig",
    "PlanningObjective",
    "PredictionError",
    "SimulatedReturn",
    "Simulator",
    "Task",
    "Trajectories",
    "ValueIterationAgent",
    "calibrate",
    "collect",
    "errors",
    "fit",
    "fit_covariate_map",
    "forecast",
    "generate",
    "get_task",
    "interval_coverage",
    "load",
    "log_error",
    "mpc_returns",
    "nearest_agents",
    "personalize",
    "plot_agents",
    "plot_frames",
    "plot_trajectories",
    "policy_returns",
    "prediction_error",
    "refit_factors",
    "register_ensemble",
    "register_task",
    "simulated_policy_returns",
    "task_names",
    "true_mpc_returns",
    "update",
    "value_iteration_returns",
]

_NAMES = {
    "collection.collect": ("collect",),
    "collection.policies": ("MLPPolicy",),
    "config": ("PerSimConfig",),
    "data.trajectories": ("Trajectories",),
    "evaluation.calibration": ("calibrate",),
    "evaluation.coverage": ("IntervalCoverage", "interval_coverage"),
    "evaluation.forecasts": ("Forecast", "forecast"),
    "evaluation.log_errors": ("LogError", "log_error"),
    "evaluation.prediction": ("PredictionError", "prediction_error"),
    "evaluation.returns": (
        "AverageReturn",
        "mpc_returns",
        "policy_returns",
        "true_mpc_returns",
        "value_iteration_returns",
    ),
    "evaluation.simulated_returns": ("SimulatedReturn", "simulated_policy_returns"),
    "factors.covariates": ("CovariateMap", "fit_covariate_map"),
    "factors.inference": ("refit_factors", "update"),
    "factors.newcomers": ("personalize",),
    "factors.similarity": ("nearest_agents",),
    "generation": ("generate",),
    "model.ensemble": ("Ensemble",),
    "planning": ("MPCAgent", "ValueIterationAgent"),
    "plotting": ("plot_agents", "plot_frames", "plot_trajectories"),
    "simulators.simulator": ("Simulator",),
    "tasks": ("Covariate", "PlanningObjective", "Task", "get_task", "register_task", "task_names"),
    "training.fit": ("fit",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_PUBLIC_MODULES = ("baselines", "config", "errors", "interop", "planning", "tasks", "types")


def load(path: str | Path, *, task: str | Task | None = None) -> Ensemble:
    """Load an ensemble.

    Args:
        path: a file that `Ensemble.save` or `persim-gym train` wrote, or the name of a model that ships with the
            package, is installed or was registered, such as "CartPole".
        task: the task it must be of; needed where the task has functions and is neither registered nor made with a
            reference.

    Raises:
        InvalidArgumentError: neither a path nor a name.
        MissingFileError: there is no such file.
        FileFormatError: damaged, of a newer format, of another task, or not an ensemble.
        UnknownNameError: no model of that name, or its task is not registered.

    """
    from persim_gym.errors import InvalidArgumentError
    from persim_gym.model.ensemble import Ensemble

    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgumentError(f"path={path!r} must be a file, or a model's name such as 'CartPole'")
    return Ensemble.load(registration.model_file(path), task=task)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        if name.startswith("_") or importlib.util.find_spec(f"persim_gym.{name}") is None:
            raise AttributeError(f"module 'persim_gym' has no attribute {name!r}")
        return importlib.import_module(f"persim_gym.{name}")
    value = getattr(importlib.import_module(f"persim_gym.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PUBLIC_MODULES})


registration.register_all()
