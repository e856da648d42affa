"""Where a log comes from, and whether any of it is synthetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persim_gym import storage
from persim_gym.errors import InvalidArgumentError
from persim_gym.user_warnings import warn_user

_MAX_UPDATES = 1000


def checked_provenance(provenance: Any) -> dict[str, Any]:
    """Return what a user says of where a log comes from.

    Raises:
        InvalidArgumentError: it is no mapping, or holds what JSON cannot.

    """
    if provenance is not None and not isinstance(provenance, Mapping):
        raise InvalidArgumentError(f"provenance={provenance!r} must be a dict, such as {{'source': {provenance!r}}}")
    found = dict(provenance or {})
    storage.to_json(found)  # which says at once what no file could hold
    return found


def joint_provenance(provenances: Sequence[Mapping[str, Any]], *, always: bool = False) -> dict[str, Any]:
    """Return where a log comes from that was put together of others.

    A single synthetic part makes the whole ``"synthetic": "in part"``: it can never pass for recorded data.

    Args:
        provenances: of the parts.
        always: whether parts of one and the same provenance are listed too, instead of their provenance returned.

    """
    different = [dict(one) for index, one in enumerate(provenances) if always or one not in provenances[:index]]
    if len(different) < 2 and not always:
        return different[0] if different else {}
    marks = [one.get("synthetic", False) for one in different]
    joint: dict[str, Any] = {"concatenated": different}
    if any(marks):
        joint["synthetic"] = True if all(mark is True for mark in marks) else "in part"
    return joint


def with_update(model: Mapping[str, Any], source: Mapping[str, Any], *, again: bool) -> dict[str, Any]:
    """Return the provenance of a model that has learned from one more log.

    "updates" lists such logs, the last thousand; a synthetic one makes the model's data "synthetic" for good, "in part"
    unless all of it was.

    Args:
        model: the provenance so far.
        source: `Trajectories.source` of the log.
        again: whether to warn of a log that the model has learned from before.

    """
    updates = [*model.get("updates", ())]
    if again and source["data_digest"] in [model.get("data_digest"), *(one["data_digest"] for one in updates)]:
        warn_user(
            "the model has learned from these very transitions before, and takes them now for as many new ones: give "
            "update only transitions that it has not seen",
        )
    data = dict(model.get("data") or {})
    mark = source["data"].get("synthetic", False)
    if mark != data.get("synthetic", False):
        data["synthetic"] = "in part"
    return {**model, "data": data, "updates": [*updates, dict(source)][-_MAX_UPDATES:]}
