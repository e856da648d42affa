"""Measurements as records for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any


def to_records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows, of dataclasses, as dictionaries that JSON can hold: what is not a finite number becomes None."""

    def known(value: Any) -> Any:
        if isinstance(value, tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: known(value) for name, value in asdict(row).items()} for row in rows]
