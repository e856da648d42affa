"""How fast training, stepping and planning are, beside a plain implementation, `mbrl` and the real environments.

    OMP_NUM_THREADS=1 python benchmarks/speed.py            # some minutes; writes results/speed*.csv and the pictures
    OMP_NUM_THREADS=1 python benchmarks/speed.py --only step,plan    # measures these anew, keeps the others

All contenders of a row are measured in one process, in turn, A B C A B C …: medians, and the median over the turns of
the ratio to ours. Seconds are of processor time on one thread, which other programs on the machine disturb least, but
of the clock where it says "two threads" and for newcomers; import, make and peak memory are measured in processes of
their own.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import speed_mbrl
import torch
from cells import commit
from measurement_file import RESULTS, MeasurementFile, locked
from script import script
from speed_parts import PARTS
from speed_rows import Row

import persim_gym
from persim_gym import files


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    chosen = parser.parse_args(arguments).only.split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    if not speed_mbrl.available():
        print("mbrl cannot be imported: its rows are left out (benchmarks/speed_mbrl.py says how to install it)")
    found = [row for part in chosen for row in PARTS[part]()]
    with locked(RESULTS):
        results_file().replace(found)
        _write_circumstances(chosen)
    import speed_plots

    speed_plots.draw(results_file().read(), RESULTS)


def results_file(folder: Path = RESULTS) -> MeasurementFile[Row]:
    """Return the results file."""
    path = folder / "speed.csv"
    return MeasurementFile(path, Row, key=("part",), order=lambda row: _ORDER.index(row.part), float_format=".5g")


def _write_circumstances(parts: Sequence[str]) -> None:
    """Write down with which versions and on which processor some parts were measured, and keep the others'."""
    path = RESULTS / "speed.meta.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    document = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/speed.py",
        "commits": {**known.get("commits", {}), **dict.fromkeys(parts, commit())},
        "processors": {**known.get("processors", {}), **dict.fromkeys(parts, _processor())},
        "versions": {m.__name__: m.__version__ for m in (persim_gym, gymnasium, np, torch)}
        | {"python": platform.python_version()},
        "mbrl": speed_mbrl.available(),
    }
    files.write_text(path, json.dumps(document, indent=1) + "\n")


_ORDER = (
    "train", "step", "batch", "plan", "context", "product", "offline", "start", "memory", "agents", "members",
    "newcomers",
)  # fmt: skip


def _processor() -> str:
    """Return the processor's family, and how much of the machine was used."""
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, one thread, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    raise SystemExit(main())
