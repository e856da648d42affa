"""Measuring many cells at once: processes take the groups that share a trained model, then divide their agents."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import protocol
import torch
from cells import Cell, Measured, canonical, commit
from measure import measure
from methods import METHODS, Model

from persim_gym.errors import PerSimError


def measure_in_processes(
    cells: Sequence[Cell], processes: int, *, device: str, cache: Path
) -> Iterator[tuple[Cell, Measured | str]]:
    """Yield what was measured of each cell, or why it could not be, as groups of cells are done.

    A process that finds no other group left helps with the last ones: a cell's agents are then measured in several at
    once (`cells.by_agent`), which wait for one that trains the model.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_model_of(cell), []).append(cell)
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
        helping = list(groups.values())[: -processes - 1 : -1] * (processes - 1)
        futures = [pool.submit(_measure_group, group, device, cache) for group in [*groups.values(), *helping]]
        done: set[str] = set()
        for future in as_completed(futures):
            found = [one for one in future.result() if one[0].name not in done]
            yield from found
            done |= {cell.name for cell, _ in found}


def _begin(threads: int) -> None:
    """Take down the version of the code as it was loaded, leave the others their processors, and end when they do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a report of each: the first process has one
    commit()
    torch.set_num_threads(threads)


def _model_of(cell: Cell) -> tuple[str, ...]:
    """Return a name of the model that a cell trains or finds in the cache; of the cell itself if no other has it."""
    cell = canonical(cell)
    method = METHODS[cell.method]
    if method.model in (Model.LOG, Model.TRUE):
        return (cell.name,)
    model = method.config_name(cell.env) if method.is_persim else method.base
    return cell.env, cell.data, model, protocol.scale_of(cell.scale, cell.method).name, str(cell.seed)


def _measure_group(cells: Sequence[Cell], device: str, cache: Path) -> list[tuple[Cell, Measured | str]]:
    found: list[tuple[Cell, Measured | str]] = []
    for cell in cells:
        try:
            found.append((cell, measure(cell, device=device, cache=cache)))
        except PerSimError as error:
            found.append((cell, str(error)))
    return found
