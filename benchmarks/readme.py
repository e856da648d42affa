"""Write the tables of benchmarks/README.md from the results files.

    python benchmarks/readme.py

What stands outside the two marker lines is left as it is.
"""

from __future__ import annotations

from pathlib import Path

import protocol
import results
from paper import report

from persim_gym import storage
from persim_gym.errors import FileFormatError

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: written by readme.py -->", "<!-- end of tables -->"
_TEMPLATE = f"""# Benchmarks

Everything here is measured by the commands in this folder; figures of the paper stand beside ours in italics.

{BEGIN}
{END}
"""


def tables(folder: Path = results.RESULTS) -> str:
    """Return all tables that have full-scale results, as Markdown."""
    full = protocol.get_scale("full")
    measured = [table for table in protocol.TABLES.values() if results.results_file(table, full, folder).exists()]
    return "\n\n".join(f"## {_section(table, full, folder)}" for table in measured)


def update(text: str, content: str) -> str:
    """Return a text with what is between the markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise FileFormatError(f"README.md must hold the lines {BEGIN!r} and {END!r} once each, in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the file."""
    text = README.read_text() if README.exists() else _TEMPLATE
    storage.write_text(README, update(text, tables()))


def _section(table: protocol.Table, scale: protocol.Scale, folder: Path) -> str:
    rows = results.read(table, scale, folder)
    versions = ", ".join(dict.fromkeys(row.commit for row in rows))
    hours = sum({(row.env, row.data, row.method): row.wall_s for row in rows}.values()) / 3600
    note = f"`python benchmarks/paper.py --table {table.number}`; version {versions}; {hours:.1f} hours of computing."
    return f"{report(table, scale, folder)}\n\n{note}"


if __name__ == "__main__":
    main()
