"""What values the planners' settings may have. A setting of one name has one range, whichever planner has it.

Only ``initial_deviation``, two numbers in one planner and one in another, is checked by these themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from persim_gym.arguments import whole_number
from persim_gym.errors import InvalidArgumentError

EXECUTE = ("elite_mean", "best")

_COUNTS = ("num_candidates", "num_elites", "num_rounds")
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "smoothing": ("at least 0 and below 1", lambda weight: 0 <= weight < 1),
    "noise_smoothing": ("at least 0 and below 1", lambda weight: 0 <= weight < 1),
    "kept_fraction": ("from 0 to 1", lambda fraction: 0 <= fraction <= 1),
    "decay": ("at least 1", lambda ratio: ratio >= 1),
    "temperature": ("above 0", lambda temperature: temperature > 0),
    "deviation": ("a finite number of at least 0", lambda deviation: 0 <= deviation < math.inf),
    "noise_exponent": ("a finite number", math.isfinite),
    "execute": (f"one of {', '.join(EXECUTE)}", lambda executed: executed in EXECUTE),
}


def check_settings(**settings: Any) -> None:
    """Check a planner's settings, num_candidates among them.

    Raises:
        InvalidArgumentError: a number that is not whole or out of its range, or more elites than candidates.

    """
    for name, value in settings.items():
        if name in _COUNTS:
            whole_number(name, value)
        elif name in _ALLOWED:
            wanted, allows = _ALLOWED[name]
            try:
                allowed = bool(allows(value))
            except (TypeError, ValueError):  # it cannot be compared
                allowed = False
            if not allowed:
                raise InvalidArgumentError(f"{name}={value!r} must be {wanted}")
    elites, candidates = settings.get("num_elites", 1), settings["num_candidates"]
    if elites > candidates:
        raise InvalidArgumentError(f"num_elites={elites} must be at most num_candidates={candidates}")
