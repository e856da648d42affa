"""What the provenance of a log or an ensemble says of it, in the few words that a `repr` or a table has room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def validation_text(provenance: Mapping[str, Any]) -> str | None:
    """Return the one-step validation error of an ensemble; of shipped ones, whose is not known, the RMSE, said so."""
    if "validation_error" in provenance:
        return f"{provenance['validation_error']:.2g}"
    return f"{provenance['validation_rmse']:.2g} (RMSE)" if "validation_rmse" in provenance else None


def outcomes_note(provenance: Mapping[str, Any]) -> str:
    """Return what validation found of the learned reward and termination, as ", reward RMSE 0.071"; or nothing."""
    note = ""
    if "reward_rmse" in provenance:
        note += f", reward RMSE {provenance['reward_rmse']:.2g}"
    if "terminations_expected" in provenance:
        expected = provenance["terminations_expected"]
        note += f", ends {provenance['terminations_held_out']}, expected {expected:.1f}"
    return note


def synthetic_note(provenance: Mapping[str, Any]) -> str:
    """Return ", synthetic", ", synthetic in part" or nothing, as the provenance of a log has it."""
    mark = provenance.get("synthetic", False)
    return "" if not mark else ", synthetic" if mark is True else f", synthetic {mark}"
