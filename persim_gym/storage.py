"""Our files: safetensors with one JSON document in the header, never pickled."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym.errors import FileFormatError, FileWriteError, InvalidArgumentError, MissingFileError
from persim_gym.files import check_name, check_replaceable, is_table, replacing

FORMAT_VERSION = 2
"""Of files that are written; those of a later one are refused."""
JSON = "JSON"
"""What `content_of` says of records."""
_RECORDS_HAVE = {"command", "provenance"}
_CONTENTS = {"ensemble": "an ensemble", "trajectories": "a log"}
_METADATA_KEY = "persim_gym"
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_READ_AT_ONCE = 1_000_000
"""Arrays of fewer numbers are read and checked when a file is read, the others read when they are needed."""
_DIGESTS = "digests"
"""Of these arrays, by name, in the document; files from before every kind had them are not checked."""
_ADVICE = {
    "agent_labels": "give the agents shorter labels, or write fewer agents to a file",
    "provenance": "keep less in the provenance",
}
"""What to do about a part of a document that is too large for a header."""
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
READERS = {
    "ensemble": "persim_gym.load",
    "trajectories": "persim_gym.Trajectories.load",
    "policy": "persim_gym.MLPPolicy.load",
    "cadm": "persim_gym.baselines.CaDM.load",
    "joint": "persim_gym.baselines.JointModel.load",
    "a policy of BCQ or CQL": "persim_gym.baselines.OfflinePolicy.load",
    "a policy of MOReL": "persim_gym.baselines.MOReLPolicy.load",
}
"""What reads a file of each kind."""


def write(path: str | Path, kind: str, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
    """Write arrays and a JSON document to ``path`` as a whole or not at all.

    Args:
        path: where to; missing folders are made, links are followed, and a file that is there keeps its permissions.
        kind: what the file holds ("ensemble", "trajectories", …); checked again by `read`.
        arrays: named arrays.
        document: anything JSON can hold.

    Raises:
        FileWriteError: it cannot be written, or the document is too large for a header.
        InvalidArgumentError: there is a file of another kind, or the name is a table's.

    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    check_name(path)
    check_replaceable(path, content_name(kind), content_of)
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    digests = {name: _digest(array) for name, array in contiguous.items() if array.size < _READ_AT_ONCE}
    header = {"format_version": FORMAT_VERSION, "kind": kind, **document, _DIGESTS: digests}
    text = to_json(header)
    if (size := _header_bytes(text, contiguous)) > _MAX_HEADER_BYTES:
        raise FileWriteError(f"{path} cannot be written: {_too_large(header, size)}")
    with replacing(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={_METADATA_KEY: text})
        except SafetensorError as error:  # what the disk refused
            raise OSError(str(error)) from error


def _header_bytes(text: str, arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many bytes safetensors' header has at most: our document's text, and an entry for each array."""
    end = sum(array.nbytes for array in arrays.values())
    entries = {
        name: {"dtype": "BOOL", "shape": array.shape, "data_offsets": [end, end]} for name, array in arrays.items()
    }
    return len(json.dumps({"__metadata__": {_METADATA_KEY: text}, **entries}))


def _too_large(document: Mapping[str, Any], size: int) -> str:
    """Say which part of a document makes a header of ``size`` bytes, which are too many, and what to do about it."""
    parts = {name: len(json.dumps(to_json(part))) for name, part in document.items()}
    largest = max(parts, key=parts.__getitem__)
    return (
        f"its header would have {size:,} bytes, {parts[largest]:,} of them for {largest}, and safetensors allows "
        f"{_MAX_HEADER_BYTES:,}: {_ADVICE.get(largest, 'keep less in it')}"
    )


def to_json(document: Any, **settings: Any) -> str:
    """Return a document as JSON; NumPy's numbers and arrays become numbers and lists.

    Raises:
        InvalidArgumentError: JSON cannot hold it.

    """

    def plain(value: Any) -> Any:
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        raise InvalidArgumentError(f"{value!r}, a {type(value).__name__}, cannot be kept in a file, which holds JSON")

    return json.dumps(document, default=plain, **settings)


def with_prefix(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries with names that begin with one more name and a dot."""
    return {f"{name}.{key}": value for key, value in entries.items()}


def without_prefix(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return those entries that `with_prefix` named so, under the names they had."""
    return {key.removeprefix(f"{name}."): value for key, value in entries.items() if key.startswith(f"{name}.")}


def kind_of(path: str | Path) -> str | None:
    """Return the kind of a file of ours, as given to `write`; None for what is not one."""
    path = Path(path)
    try:
        return _read_header(path, None)[0]["kind"] if path.is_file() else None
    except (FileFormatError, OSError):
        return None


def content_name(kind: str) -> str:
    """Return what users call a file of ours of some kind."""
    return _CONTENTS.get(kind, f"a file of kind {kind!r}")


def content_of(path: Path) -> str:
    """Say what a file holds: what `content_name` says of ours, a table by its name, records in JSON, or another."""
    kind = kind_of(path)
    if kind is not None:
        return content_name(kind)
    if is_table(path):
        return "a table"
    with open(path, "rb") as file:
        text = file.read() if file.read(1) == b"{" else b""
    try:
        document = json.loads(b"{" + text)
    except ValueError:
        return "something else"
    return JSON if _RECORDS_HAVE <= document.keys() else "other JSON than this command's"


def read_document(path: str | Path, kind: str) -> dict[str, Any]:
    """Return the JSON document of a file of ours without touching its arrays."""
    document, _, _ = _read_header(Path(path), kind)
    document.pop(_DIGESTS, None)
    return document


def read(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays, memory-mapped and read-only, and the JSON document of a file of ours.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: the file is cut short, damaged, of a newer format, of another kind, or not ours.

    """
    path = Path(path)
    document, entries, start = _read_header(path, kind)
    arrays = {name: _map(path, name, entry, start) for name, entry in entries.items()}
    _check_digests(path, arrays, document.pop(_DIGESTS, None))
    return arrays, document


def check_numbers(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    *,
    whole: Container[str] = (),
    infinite: Container[str] = (),
    unknown: Container[str] = (),
) -> None:
    """Refuse arrays of a file that are not of floats, or hold NaN or infinity; large ones are not looked at for these.

    Args:
        path: of the file.
        arrays: by name.
        whole: last parts of the names of arrays of whole numbers instead.
        infinite: names of arrays that may hold infinity.
        unknown: names of arrays that may hold both.

    Raises:
        FileFormatError: an array is damaged.

    """
    for name, array in arrays.items():
        if array.dtype.kind != ("i" if name.rpartition(".")[2] in whole else "f"):
            raise FileFormatError(
                f"{path} is damaged: array {name!r} is of type {array.dtype}; write or fetch it again"
            )
        if array.size >= _READ_AT_ONCE or name in unknown:
            continue
        if not (~np.isnan(array) if name in infinite else np.isfinite(array)).all():
            raise FileFormatError(f"{path} is damaged: array {name!r} holds NaN or infinity; write or fetch it again")


def _check_digests(path: Path, arrays: Mapping[str, np.ndarray], digests: Any) -> None:
    """Refuse arrays that are not what was written; large ones are not looked at."""
    if digests is None:
        return
    if not isinstance(digests, dict):
        raise FileFormatError(f"{path}: the header is damaged (digests is {digests!r})")
    for name, array in arrays.items():
        if array.size < _READ_AT_ONCE and digests.get(name) != _digest(array):
            raise FileFormatError(f"{path} is damaged: array {name!r} is not what was written; write or fetch it again")


def _digest(array: np.ndarray) -> str:
    return hashlib.blake2b(np.asarray(array, order="C").tobytes(), digest_size=16).hexdigest()


def _read_header(path: Path, kind: str | None) -> tuple[dict[str, Any], dict[str, Any], int]:
    if not path.exists():
        raise MissingFileError(f"there is no file {path}")
    size = path.stat().st_size
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder, not a file of persim-gym")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise FileFormatError(f"{path} is cut short or is not a file of persim-gym; write or fetch it again")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        document = json.loads(entries.pop("__metadata__")[_METADATA_KEY])
        found_kind, version = str(document["kind"]), int(document["format_version"])
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a file of persim-gym") from error
    if version > FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format {version}; this persim-gym reads up to {FORMAT_VERSION}: upgrade persim-gym"
        )
    if kind is not None and found_kind != kind:
        reader = f" ({READERS[found_kind]} reads this one)" if found_kind in READERS else ""
        raise FileFormatError(f"{path} is a file of kind {found_kind!r}; one of kind {kind!r} is needed here{reader}")
    if size < 8 + length + end:
        raise FileFormatError(f"{path} is cut short: {size} bytes of {8 + length + end}; write or fetch it again")
    return document, entries, 8 + length


def _map(path: Path, name: str, entry: Mapping[str, Any], start: int) -> np.ndarray:
    try:
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape = tuple(int(length) for length in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: the entry of array {name!r} is damaged") from error
    if begin < 0 or min(shape, default=0) < 0 or end - begin != dtype.itemsize * math.prod(shape):
        raise FileFormatError(f"{path}: the entry of array {name!r} is damaged")
    if begin == end:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + begin, shape=shape).reshape(shape)
