"""Files of measurements: CSV, one record a line. Several processes may write to a folder of them at once."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import protocol
from filelock import BaseFileLock, FileLock

from persim_gym import files
from persim_gym.errors import FileFormatError

RESULTS = Path(__file__).parent / "results"
Record = TypeVar("Record")


def locked(folder: Path) -> BaseFileLock:
    """Return a folder's lock, to hold from reading a file of it to writing it; who has it may take it once more."""
    path = folder.resolve() / ".lock"
    files.check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, is_singleton=True)


@dataclass(frozen=True)
class MeasurementFile(Generic[Record]):
    """A CSV file of records: the fields of their dataclass, each a str, an int or a float, are its columns."""

    path: Path
    record: type[Record]
    key: tuple[str, ...] = ()
    """Columns that say what was measured: new lines replace those with the same there; without any, all lines."""
    order: Callable[[Record], Any] | None = None
    """What lines are sorted by; without it new ones come last."""
    float_format: str = ".6g"
    formats: Mapping[str, str] = field(default_factory=dict)
    """Of columns of floats that have another format."""
    versioned: bool = False
    """Whether lines that an environment's earlier protocol measured are refused; "env" is one of the columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._kinds)

    @property
    def _kinds(self) -> dict[str, type]:
        return get_type_hints(self.record)

    def read(self) -> list[Record]:
        """Return the records, none if there is no file.

        Raises:
            FileFormatError: the file has other columns, is damaged, or is of another version of the protocol.

        """
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            heading, *lines = [tuple(line) for line in csv.reader(file) if line] or [()]
        if heading != self.columns:
            raise FileFormatError(
                f"{self.path} must have the columns {','.join(self.columns)}; move it away and measure again"
            )
        try:
            records = [self._parse(line) for line in lines]
        except ValueError as error:
            raise FileFormatError(f"{self.path} is damaged ({error}); move it away and measure again") from error
        if self.versioned:
            _check_versions(self.path, {record.env for record in records})
        return records

    def replace(self, records: Sequence[Record]) -> None:
        """Write records down, in place of those with the same key, whatever other processes write meanwhile."""
        measured = {self.key_of(record) for record in records}
        with locked(self.path.parent):
            kept = [record for record in self.read() if self.key_of(record) not in measured]
            self._write([*kept, *records])

    def key_of(self, record: Record) -> tuple[Any, ...]:
        """Return what a record is a measurement of."""
        return tuple(getattr(record, name) for name in self.key)

    def texts(self, record: Record) -> list[str]:
        """Return a record as it is written, a text a column."""
        return [self._text(name, kind, getattr(record, name)) for name, kind in self._kinds.items()]

    def _text(self, column: str, kind: type, value: Any) -> str:
        return format(float(value), self.formats.get(column, self.float_format)) if kind is float else str(value)

    def _parse(self, texts: Sequence[str]) -> Record:
        return self.record(*(kind(text) for kind, text in zip(self._kinds.values(), texts, strict=True)))

    def _write(self, records: Iterable[Record]) -> None:
        """Write the file, and before it the versions of its protocols, each as a whole or not at all."""
        ordered = list(records) if self.order is None else sorted(records, key=self.order)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *map(self.texts, ordered)])
        if self.versioned:
            files.write_text(_versions_file(self.path), json.dumps({"protocol": protocol.PROTOCOL}) + "\n")
        files.write_text(self.path, text.getvalue())


def _check_versions(path: Path, envs: Iterable[str]) -> None:
    try:
        versions = dict(json.loads(_versions_file(path).read_text())["protocol"])
    except (OSError, ValueError, KeyError, TypeError):
        versions = {}
    for env in sorted(envs):
        version, current = versions.get(env, "unknown"), protocol.PROTOCOL.get(env)
        if version != current:
            raise FileFormatError(
                f"{path}: {env} was measured under protocol {version}, this is its protocol {current}: their figures "
                "do not mix; take its lines out of the file, or move the file away, and measure again"
            )


def _versions_file(path: Path) -> Path:
    return path.with_suffix(".meta.json")
