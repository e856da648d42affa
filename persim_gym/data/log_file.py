"""A log's file: its columns as safetensors, and everything else as JSON in the header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from persim_gym import storage
from persim_gym.data.columns import ARRAYS
from persim_gym.errors import FileFormatError
from persim_gym.files import is_table

if TYPE_CHECKING:
    from persim_gym.data.trajectories import Trajectories

_KIND = "trajectories"


def write(path: str | Path, log: Trajectories) -> None:
    """Write a log, as a whole or not at all; raises what `Trajectories.save` does."""
    arrays = {name: getattr(log, name) for name in ARRAYS}
    if log.covariates is not None:
        arrays["covariates"] = log.covariates
    document = {
        "task": log.task,
        "agent_labels": list(log.agent_labels),
        "covariate_names": list(log.covariate_names),
        **{name: list(names) for name, names in log.given_names.items()},
        "provenance": dict(log.provenance),
    }
    storage.write(path, _KIND, arrays, document)


def read(path: str | Path) -> dict[str, Any]:
    """Return the fields of the log that `write` wrote, by name; whether they fit together is not looked at.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: damaged, of a newer format, or not a log.

    """
    if is_table(path) and storage.kind_of(path) is None and Path(path).exists():
        raise FileFormatError(
            f"{path} is a table: make a log of it, persim_gym.interop.from_dataframe({str(path)!r}, "
            "observations=[…], …).save('log.safetensors')"
        )
    arrays, document = storage.read(path, _KIND)
    try:
        fields = {
            **{name: arrays[name] for name in ARRAYS},
            "covariates": arrays.get("covariates"),
            "agent_labels": tuple(map(str, document["agent_labels"])),
            "covariate_names": tuple(document["covariate_names"]),
            "task": document["task"],
            "observation_names": tuple(document.get("observation_names", ())),
            "action_names": tuple(document.get("action_names", ())),
            "provenance": dict(document["provenance"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: {error} is missing or of the wrong kind") from error
    for name, (kinds, axes) in ARRAYS.items():
        column = arrays[name]
        if column.dtype.kind not in kinds or column.ndim not in axes:
            raise FileFormatError(f"{path} is damaged: {name} is of type {column.dtype} and shape {column.shape}")
    return fields
