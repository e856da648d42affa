"""Where the commands print."""

import sys

from rich.console import Console

# In a pipe nothing is broken into lines.
console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
