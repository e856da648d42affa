"""The columns that a log has, and of which types and shapes they are."""

from __future__ import annotations

COLUMNS = {
    "agents": ("i", (1,)),
    "observations": ("f", (2,)),
    "actions": ("if", (1, 2)),
    "rewards": ("f", (1,)),
    "next_observations": ("f", (2,)),
    "terminated": ("b", (1,)),
    "truncated": ("b", (1,)),
}
"""Those with one entry a transition: NumPy's kinds of their types, and their numbers of axes."""
ARRAYS = {**COLUMNS, "episode_starts": ("i", (1,))}
"""All that every log has."""
