"""What the terminal shows: progress bars on the error stream, and tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
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

    def advance(self, note: str = "") -> None:
        """Count one more step as done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=note)

    def complete(self, done: int, note: str = "") -> None:
        """Set the number of steps that are done."""
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
