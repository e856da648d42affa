"""What the terminal shows: progress bars on the error stream, tables that fit 80 columns; and results as records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

_NAME_WIDTH = 36
"""A UUID is as wide; what is wider leaves the numbers of a table no room in 80 columns."""


class ProgressBar:
    """A bar with a note, what is done and the time left; silent when ``show`` is False."""

    def __init__(self, title: str, total: int, show: bool, done: int = 0) -> None:
        self._bar: Any = None
        if show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Count steps as done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, note=note)

    def complete(self, done: int, note: str = "") -> None:
        """Set what is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Return a table to print, narrow enough for a terminal of 80 columns; nothing is cut off.

    What is in the first column, a name perhaps to be copied, stays in one line if it is not too long for that.
    """
    from rich import box
    from rich.table import Column, Table

    made = Table(
        *(Column(name, overflow="fold", no_wrap=index == 0) for index, name in enumerate(columns)),
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for first, *others in rows:
        lines = [first[start : start + _NAME_WIDTH] for start in range(0, len(first), _NAME_WIDTH)]
        made.add_row("\n".join(lines), *others)
    return made


def to_records(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows, of dataclasses, as dictionaries that JSON can hold: what is not a finite number becomes None."""

    def known(value: Any) -> Any:
        if isinstance(value, tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: known(value) for name, value in asdict(row).items()} for row in rows]
