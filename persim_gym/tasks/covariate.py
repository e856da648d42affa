"""`Covariate`: a hidden property in which agents differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import finite_number, yes_or_no
from persim_gym.errors import InvalidArgumentError


@dataclass(frozen=True)
class Covariate:
    """A hidden property in which agents differ, drawn uniformly from [low, high].

    Agents outside this range can be asked for, too, such as the textbook system, which ``default`` is.

    Raises:
        InvalidArgumentError: a number that is not finite, ``low`` above ``high``, or ``low`` or ``default`` not above
            zero although only such values make sense.

    """

    name: str
    low: float
    high: float
    default: float
    positive: bool | None = None
    """Whether only values above zero make sense; if not given, whether ``low`` is above zero."""

    def __post_init__(self) -> None:
        for what in ("low", "high", "default"):
            number = finite_number(f"covariate {self.name!r}: {what}", getattr(self, what))
            object.__setattr__(self, what, number)
        if self.low > self.high:
            raise InvalidArgumentError(
                f"covariate {self.name!r}: low={self.low:g} is above high={self.high:g}: exchange them"
            )
        positive = self.low > 0 if self.positive is None else self.positive
        object.__setattr__(self, "positive", yes_or_no(f"covariate {self.name!r}: positive", positive))
        if self.positive and min(self.low, self.default) <= 0:
            raise InvalidArgumentError(
                f"covariate {self.name!r}: low={self.low:g} and default={self.default:g} must be above 0 where only "
                "such values make sense; if zero or less does too, give positive=False"
            )

    def checked(self, value: Any, task: str) -> float:
        """Return a value of an agent of a task, or raise `InvalidArgumentError`, which names the task."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise InvalidArgumentError(f"{self.name}={value} of task {task} must be a finite number")
        if self.positive and number <= 0:
            raise InvalidArgumentError(
                f"{self.name}={value} of task {task} must be above 0; one that may be zero or less is declared with "
                "positive=False"
            )
        return number
