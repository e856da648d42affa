"""What environments make of the members' disagreement: what it costs, and how much of it ends an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persim_gym.arguments import by_coordinate
from persim_gym.tasks import Task
from persim_gym.types import FloatArray

MOST = 1e6
"""Of a coordinate's disagreement that is counted, so that a member that diverges leaves rewards to learn from."""


@dataclass(frozen=True)
class Caution:
    """A penalty and a limit on disagreement (…, D), the standard deviation of the members' predictions.

    With the penalty a policy that learns in the simulator learns to stay where the members agree (Yu et al., "MOPO",
    NeurIPS 2020, whose reward is r − λ·u); with the limit it meets nothing beyond it.
    """

    penalty: FloatArray | None
    """λ (D,): reward for each unit of disagreement."""
    limit: FloatArray | None
    """(D,)."""

    @classmethod
    def of(
        cls,
        task: Task,
        disagreement_penalty: float | Sequence[float] | None,
        max_disagreement: float | Sequence[float] | None,
    ) -> Caution:
        """Check an environment's arguments, one number or D numbers each.

        Raises:
            InvalidArgumentError: other numbers than D, a penalty below 0 or a limit that is not above 0.

        """
        penalty, limit, size = disagreement_penalty, max_disagreement, task.observation_size
        return cls(
            None if penalty is None else by_coordinate("disagreement_penalty", penalty, size),
            None if limit is None else by_coordinate("max_disagreement", limit, size, above=True),
        )

    def __bool__(self) -> bool:
        return self.penalty is not None or self.limit is not None

    def cost(self, disagreement: FloatArray, diverged: Any) -> FloatArray | None:
        """Return what disagreement (…, D) costs (…), a finite number; nothing where ``diverged`` (…): no step was made.

        Where one member alone has diverged, disagreement is no number, or infinite: it then costs as much as `MOST`.
        """
        if self.penalty is None:
            return None
        known = np.minimum(np.nan_to_num(disagreement.astype(np.float64), nan=MOST), MOST)
        return np.where(diverged, 0.0, known @ self.penalty)

    def exceeded(self, disagreement: FloatArray, diverged: Any) -> Any:
        """Return where (…) disagreement (…, D) is not within the limit in a coordinate, but not ``diverged`` (…)."""
        if self.limit is None:
            return np.zeros(disagreement.shape[:-1], bool)
        return ~(disagreement <= self.limit).all(axis=-1) & ~np.asarray(diverged, bool)
