"""The pictures of `speed.py`: how many times slower the others are, and how cost grows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_SCALES = {
    "batch": ("environments in a batch", "transitions a second"),
    "agents": ("agents of the ensemble", "microseconds"),
    "members": ("members of the ensemble", "microseconds"),
}


def draw(rows: list[Any], folder: Path) -> None:
    """Write ``speed-bars.png`` and ``speed-scaling.png``."""
    _bars(
        [
            row
            for row in rows
            if row.part in ("train", "step", "plan", "offline", "memory", "start") and row.unit != "return"
        ],
        folder,
    )
    _curves(rows, folder)


def _bars(rows: list[Any], folder: Path) -> None:
    shown = [row for row in rows if row.ratio_to_ours != 1.0]
    figure, axes = plt.subplots(figsize=(12, 0.32 * len(shown) + 1.2), layout="constrained")
    labels = [f"{row.what}: {row.contender}" for row in shown]
    bars = axes.barh(labels, [row.ratio_to_ours for row in shown], color="tab:blue")
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="cost, in units of the first persim-gym row of the same task")
    axes.margins(x=0.1, y=0.01)
    axes.invert_yaxis()
    figure.savefig(folder / "speed-bars.png", dpi=110)
    plt.close(figure)


def _curves(rows: list[Any], folder: Path) -> None:
    figure, all_axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axes, (part, (along, what)) in zip(all_axes, _SCALES.items(), strict=True):
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row.part == part:
                number = int(re.search(r"\d+", row.what).group())
                name = row.contender if part == "batch" else row.what.split(",")[0]
                curves.setdefault(name, []).append((number, row.median))
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel=along, ylabel=what)
        axes.legend(fontsize=8)
    figure.savefig(folder / "speed-scaling.png", dpi=110)
    plt.close(figure)
