"""Where the commands print."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

# In a pipe nothing is broken into lines.
console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)


def print_written(what: Any, path: Path) -> None:
    """Say what was written, and where."""
    console.print(f"{what}\nwritten to {path}")
