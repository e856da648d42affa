"""Tables as they come, a data frame, or a CSV or Parquet file, with rows numbered from 0; and such files written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persim_gym.errors import InvalidArgumentError, InvalidDataError, MissingFileError, PerSimError
from persim_gym.extras import optional
from persim_gym.files import CSV_SUFFIXES, PARQUET_SUFFIXES, check_table_name, replacing

_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
_OTHERWISE = (
    "; of another separator, decimal comma or encoding read it yourself, pandas.read_csv(path, sep=';', decimal=',', "
    "encoding='latin-1'), and give the frame"
)


def import_pandas() -> Any:
    """Return pandas, or raise `MissingExtraError`."""
    return optional("pandas", "tables")


def read_table(pandas: Any, table: Any, agent: str, *, nameless: bool) -> tuple[Any, dict[str, Any]]:
    """Return the frame with rows numbered from 0, and where it comes from.

    In a CSV file an empty cell is a missing agent, unless one is ``nameless``.
    """
    origin: dict[str, Any] = {}
    if isinstance(table, (str, Path)):
        path = Path(table)
        if not path.exists():
            raise MissingFileError(f"there is no file {path}")
        origin = {"table": path.name}
        readers = dict.fromkeys(CSV_SUFFIXES, _read_csv) | dict.fromkeys(PARQUET_SUFFIXES, _read_parquet)
        reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
        if reader is None:
            raise InvalidArgumentError(f"{path} must be a .csv or .parquet file; read others with pandas yourself")
        try:
            table = reader(pandas, path, agent, nameless)
        except PerSimError:
            raise
        except Exception as error:
            advice = _OTHERWISE if reader is _read_csv else "; write or fetch it again"
            raise InvalidDataError(f"{path} cannot be read as a table: {error}{advice}") from error
    if not isinstance(table, pandas.DataFrame) and callable(getattr(table, "to_pandas", None)):
        table = table.to_pandas()
    if not isinstance(table, pandas.DataFrame):
        raise InvalidArgumentError(
            f"table must be a pandas.DataFrame, what has to_pandas(), or a file, got {type(table).__name__}"
        )
    if len(table) == 0:
        raise InvalidDataError("the table has no row")
    attributes = dict(table.attrs)
    named = [name for name in table.index.names if name is not None and name not in table.columns]
    table = table.reset_index(named).reset_index(drop=True)
    table.attrs = attributes
    return table, origin


def write_table(frame: Any, path: str | Path) -> None:
    """Write a frame without its index, as CSV or Parquet by the file's name, as a whole or not at all.

    Raises:
        FileWriteError: it cannot be written.
        InvalidArgumentError: the name is no table's.

    """
    check_table_name(path)
    name = Path(path).name.lower()
    with replacing(Path(path)) as temporary:
        if name.endswith(PARQUET_SUFFIXES):
            optional("pyarrow", "tables")
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, compression="gzip" if name.endswith(".gz") else None)


def _read_csv(pandas: Any, path: Path, agent: str, nameless: bool) -> Any:
    """Read a CSV file as it is written: the label "007" is no number, "NA" is not missing, numbers are exact."""
    # To the last bit, as pandas from 3.1 on reads by itself.
    version = tuple(map(int, pandas.__version__.split(".")[:2]))
    exact = {} if version >= (3, 1) else {"float_precision": "round_trip"}
    header = pandas.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False).iloc[0].tolist()
    names = pandas.read_csv(path, nrows=0).columns  # of two columns of one name the second is called another
    missing = {name: _MISSING for name in names} | {agent: () if nameless else ("",)}
    table = pandas.read_csv(path, dtype={agent: str}, keep_default_na=False, na_values=missing, **exact)
    if not isinstance(table.index, pandas.RangeIndex):
        raise InvalidDataError(
            f"the rows of {path} have more fields than its header has names: name every column, and let no row end "
            f"with a comma{_OTHERWISE}"
        )
    if len(header) == 1 and ";" in str(header[0]):
        raise InvalidDataError(f"{path} has the single column {header[0]!r}{_OTHERWISE}")
    table.columns = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    return table


def _read_parquet(pandas: Any, path: Path, agent: str, nameless: bool) -> Any:
    optional("pyarrow", "tables")
    return pandas.read_parquet(path)
