"""Segments: stretches of a log's episodes along which a model runs freely."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from persim_gym.data.parts import turns
from persim_gym.types import BoolArray, IntArray

if TYPE_CHECKING:
    from persim_gym.data.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Segments:
    """S segments of up to H steps, each within one episode."""

    starts: IntArray
    """(S,): first rows."""
    lengths: IntArray
    """(S,): steps."""

    @cached_property
    def rows(self) -> IntArray:
        """(S, H): the row of each step; beyond its end a segment stays at its last row."""
        return self.starts[:, None] + np.minimum(np.arange(self.lengths.max()), self.lengths[:, None] - 1)

    @cached_property
    def inside(self) -> BoolArray:
        """(S, H): whether a step is before the segment's end."""
        return np.arange(self.lengths.max()) < self.lengths[:, None]

    def where(self, chosen: BoolArray) -> Segments:
        """Return some of the segments (S,)."""
        return Segments(self.starts[chosen], self.lengths[chosen])


def drawn_starts(log: Trajectories, possible: BoolArray, most: int, rng: np.random.Generator) -> IntArray:
    """Return up to ``most`` of a log's possible rows (T,), ascending: drawn one of each agent, then a second one, …."""
    rows = rng.permutation(np.flatnonzero(possible))
    return np.sort(rows[np.argsort(turns(log.agents[rows]), kind="stable")][:most])
