"""Where a file may be written, and how: as a whole or not at all, and over nothing but its like."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from persim_gym.errors import FileWriteError, InvalidArgumentError

CSV_SUFFIXES, PARQUET_SUFFIXES = (".csv", ".csv.gz"), (".parquet", ".pq")
"""Of tables, which `persim_gym.interop.from_dataframe` reads."""


def is_table(path: str | Path) -> bool:
    """Whether a file's name is that of a table."""
    return str(path).lower().endswith(CSV_SUFFIXES + PARQUET_SUFFIXES)


def check_name(path: str | Path) -> None:
    """Raise `InvalidArgumentError` if what is no table would get the name of one."""
    if is_table(path):
        raise InvalidArgumentError(
            f"{path} is the name of a table, but logs and ensembles are saved as safetensors: name a log "
            "'log.safetensors', an ensemble 'model.persim'; persim_gym.interop.to_dataframe(log) makes a table of a log"
        )


def check_table_name(path: str | Path) -> None:
    """Raise `InvalidArgumentError` if a table would get a name that does not say of which kind it is."""
    if not is_table(path):
        raise InvalidArgumentError(f"{path} must end with {', '.join(CSV_SUFFIXES)} or {', '.join(PARQUET_SUFFIXES)}")


def check_target(path: str | Path) -> None:
    """Raise `FileWriteError` if no file can be written to a path; worth asking before long work."""
    path = Path(path)
    if path.is_dir() or not path.name:
        raise FileWriteError(f"{path} is a folder: give the name of a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise FileWriteError(f"{path} cannot be written: it is read-only; choose another, or change its permissions")
    if _is_device(path):
        return
    path = path.resolve()
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise FileWriteError(f"{path} cannot be written: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise FileWriteError(f"{path} cannot be written: the folder {parent} is read-only; choose another")


def check_replaceable(path: Path, content: str, content_of: Callable[[Path], str]) -> None:
    """Raise `InvalidArgumentError` if there is a file that holds anything else than content, by ``content_of``."""
    if path.is_file() and path.stat().st_size and (found := content_of(path)) != content:
        raise InvalidArgumentError(
            f"{path} holds {found}, and would be overwritten by {content}: give another file to write to, or delete it"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``; it takes the place of ``path`` once it is whole, else it is removed.

    A device, such as /dev/stdout, cannot be replaced: what was written is copied into it.
    """
    from safetensors import SafetensorError

    check_target(path)
    device = _is_device(path)
    target = path if device else path.resolve()
    folder = Path(tempfile.gettempdir()) if device else target.parent
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _put(temporary, target, device)
    except (OSError, SafetensorError) as error:
        raise FileWriteError(f"{path} cannot be written ({error}); make room, or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _put(written: Path, target: Path, device: bool) -> None:
    """Let a file take the place of the target and its permissions; into a device it is copied."""
    with open(written, "rb") as file:
        if device:
            with open(target, "wb") as out:
                shutil.copyfileobj(file, out)
            return
        os.fsync(file.fileno())
    os.chmod(written, stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
    os.replace(written, target)


def _is_device(path: Path) -> bool:
    """Whether there is something that is neither a file nor a folder: a device, a terminal, a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
