"""What is typed on the command line, checked before any work begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persim_gym import files, storage
from persim_gym.data.labels import NumberedLabels
from persim_gym.errors import InvalidArgumentError, UnknownNameError

COLLECTED, SYNTHETIC = "a collected log", "a synthetic log"
ENSEMBLE, RECORDS = storage.content_name("ensemble"), storage.JSON
"""What commands write that replace what they wrote before, and nothing else."""
IMPORTED, PART, TABLE = "a log of a table", "a part of a log", "a table of a log"
"""What commands write that replace nothing: a file does not tell whether they made it."""
Model = Annotated[
    Path, typer.Argument(help="Ensemble file, or the name of a shipped or installed model (see `persim-gym models`).")
]
OwnTask = Annotated[
    str | None,
    typer.Option("--task", help='"module:attribute" of the task, where the file cannot say where its functions are.'),
]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs; overrides the configuration.", min=1)]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda", …')]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def check_output(out: Path, content: str, *inputs: str | Path | None) -> None:
    """Refuse a file that cannot be written, or would take the place of what is read or of something else than content.

    Raises:
        FileWriteError: nothing can be written there.
        InvalidArgumentError: it holds something that must not be lost, or its name is a table's and the content not,
            or the other way round.

    """
    files.check_target(out)
    if content == TABLE:
        files.check_table_name(out)
    elif content != RECORDS:
        files.check_name(out)
    for given in inputs:
        path = _file_of(given)
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise InvalidArgumentError(f"{out} is read, and would be overwritten: give another file to write to")
    files.check_replaceable(out, content, _content)


def _file_of(given: str | Path | None) -> Path | None:
    """Return the file that is read where a file, or the name of a model, is given; None for other names."""
    if given is None or Path(given).exists():
        return None if given is None else Path(given)
    from persim_gym.registration import model_file

    with suppress(UnknownNameError):
        return model_file(given)
    return None


def _content(path: Path) -> str:
    """Say what a file holds; of a log, whether it can be made again."""
    kind = storage.kind_of(path)
    if kind != "trajectories":
        return storage.content_of(path)
    provenance = storage.read_document(path, kind).get("provenance") or {}
    if provenance.get("synthetic") is True:
        return SYNTHETIC
    return COLLECTED if set(provenance) == {"policy", "seed"} else "a recorded log"


def refuse_options(context: Any, names: Sequence[str], reason: str) -> None:
    """Raise `InvalidArgumentError` if one of these options stands on the command line, where it would do nothing."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise InvalidArgumentError(f"--{given[0].replace('_', '-')} {reason}: leave it out")


def task_of(text: str | None) -> Any:
    """Return the task "module:attribute", known by that where its functions are in no file; names stay as they are."""
    if text is None or ":" not in text:
        return text
    from persim_gym.tasks import import_task

    task = import_task(text)
    return replace(task, reference=task.reference or text) if task.has_own_functions else task


def number_or_text(text: str) -> float | str:
    """Return the number that a text is, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def policy_of(policy: str, task: Any, seed: int) -> Any:
    """Return the policy of that name: "random", "test" or a file."""
    from persim_gym.collection.logging_policies import test_policy
    from persim_gym.collection.policies import MLPPolicy

    if policy == "random":
        return policy
    if policy == "test":
        return test_policy(task, seed=seed)
    if not Path(policy).exists():
        raise InvalidArgumentError(
            f"--policy {policy!r} is no policy, and there is no file of this name; `persim-gym {sys.argv[1]} --help` "
            "lists the policies"
        )
    return MLPPolicy.load(policy, seed=seed)


def agents_of(text: str | None, labels: Sequence[str]) -> list[int | str] | None:
    """Parse labels, "anna,ben", and where there are none of this name, indices, "0-4,7"; None stays None.

    Numbers are never some of each: all of them are labels if one of them is, or if all labels are numbers.
    """
    if text is None or text in labels:
        return None if text is None else [text]
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidArgumentError(f'--agents {text!r} must look like "0-4", "0,7" or "anna,ben"')
    spans = [_span(part) for part in parts]
    numbers = [number for span in spans for number in span]
    # Where labels are "0", "1", …, both mean the same agents.
    by_label = NumberedLabels(len(labels)) != labels and (
        any(number in labels for number in numbers) or all(label.isdecimal() for label in labels)
    )
    chosen: list[int | str] = []
    for part, span in zip(parts, spans, strict=True):
        if not span or part in labels:
            chosen.append(part)
            continue
        first, last = map(int, span)
        if last < first:
            raise InvalidArgumentError(f"--agents {text!r}: {part!r} goes down; write {last}-{first}")
        if last - first >= len(labels):
            raise InvalidArgumentError(
                f"--agents {text!r}: {part!r} is {last - first + 1} agents; there are {len(labels)}"
            )
        inside = range(first, last + 1)
        chosen.extend((str(number).zfill(len(span[0])) for number in inside) if by_label else inside)
    return chosen


def _span(part: str) -> tuple[str, ...]:
    """Return first and last number of "0-4", or of "7"; nothing where it is no number."""
    first, dash, last = part.partition("-")
    return (first, last or first) if first.isdecimal() and (last.isdecimal() or not dash) else ()


def rank_of(text: str | None) -> int | str | None:
    """Parse a rank."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise InvalidArgumentError(f'--rank {text!r} must be a whole number or "auto"')
    return int(text)
