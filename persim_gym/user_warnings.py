"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


def warn_user(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn as of the line that called into this package, however many of its functions lie in between."""
    frame, level = sys._getframe(), 1
    while frame is not None and not _is_the_users(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_the_users(frame: FrameType) -> bool:
    """Whether a frame is of neither this package nor Gymnasium's `make`; the command line is one who calls, too."""
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] not in ("persim_gym", "gymnasium") or name.startswith("persim_gym.cli.")
