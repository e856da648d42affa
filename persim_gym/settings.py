"""`Settings`: dataclasses of settings, whose fields say how they are checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, field, fields, replace
from typing import Any, Self, cast

from persim_gym.arguments import finite_number, layer_widths, one_of, whole_number, yes_or_no
from persim_gym.errors import UnknownNameError

_CHECK = "check"
"""In the metadata of a field."""


class Settings:
    """A frozen dataclass of settings, checked when it is made, of which copies can be made.

    A field that `checked`, or one of the functions after it, returned has what its check makes of the value given: an
    int, say, of a NumPy integer. A subclass checks in its own ``__post_init__`` what concerns several fields.
    """

    def __post_init__(self) -> None:
        for one in fields(cast(Any, self)):
            if _CHECK in one.metadata:
                # The dataclass is frozen, for everybody else.
                object.__setattr__(self, one.name, one.metadata[_CHECK](one.name, getattr(self, one.name)))

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some settings changed.

        Raises:
            UnknownNameError: there is no such setting.
            InvalidArgumentError: its value is out of its range.

        """
        known = {one.name for one in fields(cast(Any, self))}
        check_settings_known(changes, known, of=type(self).__name__)
        return replace(cast(Any, self), **changes)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary as JSON has it, lists in the place of tuples."""
        values = asdict(cast(Any, self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the settings that `to_json` wrote; what is not there has its default.

        Raises:
            UnknownNameError: there is no such setting.
            InvalidArgumentError: a value is out of its range.

        """
        return cls().with_changes(**document)


def check_settings_known(given: Collection[str], known: Collection[str], *, of: str) -> None:
    """Raise `UnknownNameError`, which names all settings ``of`` something and those most alike, if one is not known."""
    for name in sorted(set(given) - set(known)):
        alike = " or ".join(difflib.get_close_matches(name, sorted(known)))
        meant = f"; did you mean {alike}?" if alike else ""
        raise UnknownNameError(f"no setting {name!r} of {of}; settings are {', '.join(sorted(known))}{meant}")


def checked(check: Callable[[str, Any], Any], default: Any = MISSING, *, optional: bool = False) -> Any:
    """Return a field of `Settings` that holds ``check(name, value)``, or None where that is allowed.

    Args:
        check: raises `InvalidArgumentError` for a value out of its range.
        default: of the field; it has to be given if left out.
        optional: whether the value may be None.

    """

    def unless_none(name: str, value: Any) -> Any:
        return None if value is None else check(name, value)

    return field(default=default, metadata={_CHECK: unless_none if optional else check})


def whole(default: Any = MISSING, *, least: int = 1, optional: bool = False) -> Any:
    """Return a field that holds a whole number of at least ``least``."""
    return checked(lambda name, value: whole_number(name, value, least), default, optional=optional)


def finite(default: Any = MISSING, *, above: float | None = None, optional: bool = False) -> Any:
    """Return a field that holds a finite number of at least 0, or ``above`` a bound."""
    least = 0.0 if above is None else above
    return checked(
        lambda name, value: finite_number(name, value, least, above=above is not None), default, optional=optional
    )


def truth(default: Any = MISSING) -> Any:
    """Return a field that holds True or False."""
    return checked(yes_or_no, default)


def widths(default: Any = MISSING, *, empty: bool = True) -> Any:
    """Return a field that holds the widths of layers, ``empty`` or not."""
    return checked(lambda name, value: layer_widths(name, value, empty=empty), default)


def choice(default: Any = MISSING, *, choices: Sequence[str]) -> Any:
    """Return a field that holds one of some words."""
    return checked(lambda name, value: one_of(name, value, choices), default)
