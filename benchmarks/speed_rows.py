"""Measuring contenders in turn, and the lines of results/speed.csv."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

OURS = "persim-gym"


@dataclass(frozen=True)
class Row:
    """One contender in one row of the benchmark."""

    part: str
    what: str
    contender: str
    median: float
    unit: str
    ratio_to_ours: float
    """Median over the turns of contender / ours, of seconds or of bytes."""
    turns: int


def in_turn(
    contenders: dict[str, Callable[[], object]],
    turns: int,
    repeats: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Return the processor seconds of each call of each contender, measured in turn after one call to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, call in contenders.items():
            start = clock()
            for _ in range(repeats if turn else 1):
                call()
            if turn:
                seconds[name].append((clock() - start) / repeats)
    return seconds


def rows(part: str, what: str, measured: dict[str, list[float]], unit: str = "s", scale: float = 1.0) -> Iterator[Row]:
    """Yield a row for each contender; medians are multiplied by ``scale``."""
    ours = next(iter(measured.values()))
    for name, values in measured.items():
        ratio = statistics.median(value / own for value, own in zip(values, ours, strict=True))
        row = Row(part, what, name, statistics.median(values) * scale, unit, ratio, len(values))
        print(f"{part:8} {what:44} {name:28} {row.median:12.5g} {unit:6} {row.ratio_to_ours:8.2f} x", flush=True)
        yield row
