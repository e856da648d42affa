"""Checkpoints of training: what an interrupted run goes on from, if it is the very same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym import storage
from persim_gym.errors import FileFormatError

_KIND = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of one training run is kept; nowhere, if no path is given."""

    path: Path | None
    identity: Mapping[str, Any]
    """Everything the run depends on, as JSON can hold it: settings, seed, data."""

    def write(self, arrays: Mapping[str, np.ndarray], **progress: Any) -> None:
        """Keep a state, and how far the run has come."""
        if self.path is not None:
            storage.write(self.path, _KIND, arrays, {**self.identity, **progress})

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return what `write` kept last, arrays and progress; None if there is nothing.

        Raises:
            FileFormatError: damaged, or kept by another run.

        """
        if self.path is None or not self.path.exists():
            return None
        arrays, document = storage.read(self.path, _KIND)
        wanted = json.loads(json.dumps(dict(self.identity)))
        different = ", ".join(key for key in wanted if document.get(key) != wanted[key])
        if different:
            raise FileFormatError(
                f"{self.path} is a checkpoint of another training run (different {different}); "
                "delete it, or give another checkpoint name"
            )
        return arrays, document

    def remove(self) -> None:
        """Forget the run, which is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
