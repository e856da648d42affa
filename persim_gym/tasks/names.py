"""Names of observations and actions, and what they are called where nobody has named them."""

from __future__ import annotations

from collections.abc import Sequence


def usual_names(observation_size: int, action_coordinates: int | None) -> dict[str, tuple[str, ...]]:
    """Return the "observation_names" and "action_names" that only number them; None for discrete actions."""
    return {
        "observation_names": _numbered("observation", observation_size),
        "action_names": ("action",) if action_coordinates is None else _numbered("action", action_coordinates),
    }


def telling(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return "observation_names" or "action_names", () if they only number what they are of, however many there are."""
    names, one = tuple(names), what.removesuffix("_names")
    return () if names in ((one,), _numbered(one, len(names))) else names


def _numbered(what: str, count: int) -> tuple[str, ...]:
    return tuple(f"{what} {number}" for number in range(count))
