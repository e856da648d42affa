"""Covariates that a user gives by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from persim_gym.errors import InvalidArgumentError
from persim_gym.tasks.base import Task
from persim_gym.types import FloatArray


def covariate_array(task: Task, covariates: Sequence[Mapping[str, float]]) -> FloatArray:
    """Return covariates (n, K) of agents given by name.

    Raises:
        UnknownNameError: the task has no such covariate.
        InvalidArgumentError: one is missing, or is not a finite number that makes sense.

    """
    for values in covariates:
        if not isinstance(values, Mapping):
            raise InvalidArgumentError(
                f"covariates {values!r} must be given by name, such as "
                f"{dict(zip(task.covariate_names, task.default_covariates.tolist(), strict=True))}"
            )
        missing = [name for name in task.covariate_names if name not in values]
        if missing and set(values) <= set(task.covariate_names):
            raise InvalidArgumentError(
                f"covariates {dict(values)} lack {missing[0]!r}: all of {', '.join(task.covariate_names)} are needed"
            )
    return np.stack([task.covariate_vector(values) for values in covariates])
