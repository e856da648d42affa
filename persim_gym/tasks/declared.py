"""Whether what a user declares a task to be makes sense, its functions aside (`persim_gym.tasks.rules`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from persim_gym.arguments import array_or_object, first_repeated
from persim_gym.errors import InvalidArgumentError
from persim_gym.tasks.covariate import Covariate
from persim_gym.tasks.objective import PlanningObjective

if TYPE_CHECKING:
    from persim_gym.tasks.base import Task


def check_declared(task: Task) -> None:
    """Raise `InvalidArgumentError` for names, covariates, an objective, bounds or a system that are no such thing."""
    names = task.observation_names
    if len(names) != task.observation_size:
        raise InvalidArgumentError(f"task {task.name} has {task.observation_size} coordinates, {len(names)} names")
    _check_different(task, "coordinates", names)
    actions = 1 if task.discrete else task.action_size
    if len(task.action_names) != actions:
        raise InvalidArgumentError(
            f"action_names={task.action_names!r} of task {task.name} must be {actions}: "
            f"{'one of discrete actions' if task.discrete else 'one a coordinate'}"
        )
    _check_different(task, "observations or actions", [name for given in task.given_names.values() for name in given])
    if not task.name:
        raise InvalidArgumentError("name='' is no name for a task: ids and files are made of it")
    if task.reference is not None and not re.fullmatch(r"[\w.]+:[\w.]+", task.reference):
        raise InvalidArgumentError(f"reference={task.reference!r} must look like 'module:attribute'")
    if not all(isinstance(covariate, Covariate) for covariate in task.covariates):
        raise InvalidArgumentError(
            f"covariates={task.covariates!r} of task {task.name} must be of Covariate: give "
            "(persim_gym.tasks.Covariate(name, low, high, default),)"
        )
    _check_different(task, "covariates", [covariate.name for covariate in task.covariates])
    if task.planning_objective is not None and not isinstance(task.planning_objective, PlanningObjective):
        raise InvalidArgumentError(
            f"planning_objective={task.planning_objective!r} of task {task.name} must be a "
            "persim_gym.tasks.PlanningObjective(reward, terminated)"
        )
    if task.grid_bounds is not None:
        bounds = array_or_object(task.grid_bounds)
        numbers = bounds.shape == (2, task.observation_size) and bounds.dtype.kind in "fiu"
        if not (numbers and (bounds[0] < bounds[1]).all()):
            raise InvalidArgumentError(
                f"grid_bounds={task.grid_bounds!r} of task {task.name} must be (low, high), "
                f"{task.observation_size} numbers each, every low below its high"
            )
    if task.make_system is not None and not callable(task.make_system):
        raise InvalidArgumentError(
            f"make_system={task.make_system!r} of task {task.name} must be a function of covariates (B, K)"
        )


def _check_different(task: Task, what: str, names: Sequence[str]) -> None:
    """Raise `InvalidArgumentError` if a name is there twice."""
    if (twice := first_repeated(names)) is not None:
        raise InvalidArgumentError(f"task {task.name} has two {what} named {twice!r}: rename one")
