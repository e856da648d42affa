"""The settings of planners, and `Planner`: what `MPCAgent` has to know of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Any, ParamSpec

import numpy as np

from persim_gym.arguments import below_one, finite_number, one_of, whole_number, zero_to_one
from persim_gym.errors import InvalidArgumentError
from persim_gym.planning.search import Plan

EXECUTE = ("elite_mean", "best")

_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "num_candidates": whole_number,
    "num_elites": whole_number,
    "num_rounds": whole_number,
    "smoothing": below_one,
    "noise_smoothing": below_one,
    "kept_fraction": zero_to_one,
    "decay": partial(finite_number, least=1),
    "temperature": partial(finite_number, least=0, above=True),
    "deviation": partial(finite_number, least=0),
    "initial_deviation": partial(finite_number, least=0),
    "noise_exponent": finite_number,
    "execute": partial(one_of, choices=EXECUTE),
}
"""A setting of one name has one range, whichever planner has it."""

_Arguments = ParamSpec("_Arguments")


def checks_settings(search: Callable[_Arguments, Plan]) -> Callable[_Arguments, Plan]:
    """Decorate a planner: its keyword arguments are checked before it searches."""

    @wraps(search)
    def checked(*given: _Arguments.args, **settings: _Arguments.kwargs) -> Plan:
        return search(*given, **_checked(_defaults(search), settings))  # pyright: ignore[reportCallIssue]

    return checked


@dataclass(frozen=True)
class Planner:
    """A planner, and how `MPCAgent` has to treat it."""

    name: str
    search: Callable[..., Plan]
    """From a search and settings to a plan."""
    discrete: bool
    """Whether it plans discrete actions. Otherwise it plans continuous ones."""
    horizon: int
    """The default horizon H."""
    best_only: bool = False
    """Whether only the best return of a search matters to it, so that the others need not be exact."""
    remembers_elites: bool = False
    """Whether a plan's ``warm_start`` is (E, 1 + n, H, A) and not (E, H, A)."""

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The planner's settings and their defaults; None where the planner derives one from another."""
        return _defaults(self.search)

    def with_settings(self, settings: Mapping[str, Any]) -> Callable[[Any], Plan]:
        """Return the search with settings, which are checked here and not again at every step.

        Raises:
            InvalidArgumentError: the planner has no such setting, one is out of its range, or there are more elites
                than candidates.

        """
        unknown = [setting for setting in settings if setting not in self.defaults]
        if unknown:
            raise InvalidArgumentError(
                f"{unknown[0]}={settings[unknown[0]]!r} is no setting of planner {self.name!r}; "
                f"it has {', '.join(self.defaults)}"
            )
        return partial(inspect.unwrap(self.search), **_checked(self.defaults, settings))


def _defaults(search: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(search).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _checked(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as their checks return them; a planner itself refuses those that it does not have."""
    checked = {
        name: _checked_setting(name, value, defaults[name]) if name in defaults else value
        for name, value in settings.items()
    }
    effective = {**defaults, **checked}
    elites, candidates = effective.get("num_elites"), effective["num_candidates"]
    if elites is not None and elites > candidates:
        raise InvalidArgumentError(f"num_elites={elites} must be at most num_candidates={candidates}")
    return checked


def _checked_setting(name: str, value: Any, default: Any) -> Any:
    if value is None and default is None:
        return None
    if not isinstance(default, tuple):
        return _CHECKS[name](name, value)
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != len(default):
        raise InvalidArgumentError(f"{name}={value!r} must be a range, two numbers")
    low, high = (_CHECKS[name](name, end) for end in value)
    if low > high:
        raise InvalidArgumentError(f"{name}={value!r} must be a range, the lower number first")
    return low, high
