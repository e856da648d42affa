"""How long importing the package and making an environment take, beside Gymnasium itself.

    python benchmarks/startup.py

Fresh processes in turn, A B A B …; medians, and the median of the ratios pair by pair, into results/startup.csv.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measurement_file import RESULTS, MeasurementFile
from script import check_at_least, script

_TIMED = "import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
MEASURED = {
    "import gymnasium": "import gymnasium",
    "import persim_gym": "import persim_gym",
    "import and make CartPole-v1": "import gymnasium; gymnasium.make('CartPole-v1').reset(seed=0)",
    "import and make PerSim-CartPole-agent7-v0": (
        "import gymnasium, persim_gym; gymnasium.make('PerSim-CartPole-agent7-v0').reset(seed=0)"
    ),
}


@dataclass(frozen=True)
class StartTime:
    """How long one thing takes beside another: a line of the results file."""

    what: str
    median_s: float
    against: str
    median_ratio: float
    """Median over the runs of the ratio to what it is measured against."""
    runs: int


def results_file(folder: Path = RESULTS) -> MeasurementFile[StartTime]:
    """Return the results file."""
    return MeasurementFile(folder / "startup.csv", StartTime, formats={"median_s": ".4f", "median_ratio": ".2f"})


def seconds(code: str) -> float:
    """Return what some code takes in a fresh process, the interpreter's own start left out."""
    done = subprocess.run([sys.executable, "-c", _TIMED.format(code=code)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args(arguments).runs
    check_at_least(1, runs=runs)
    for code in MEASURED.values():
        seconds(code)  # fill the disk cache
    times: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(runs):
        for name, code in MEASURED.items():
            times[name].append(seconds(code))
    names = list(MEASURED)
    rows = []
    for index, name in enumerate(names):
        peer = names[index - index % 2]
        ratio = statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))
        rows.append(StartTime(name, statistics.median(times[name]), peer, ratio, runs))
    file = results_file()
    file.replace(rows)
    for row in rows:
        print(*file.texts(row), sep="  ")


if __name__ == "__main__":
    raise SystemExit(main())
