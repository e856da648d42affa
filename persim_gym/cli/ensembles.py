"""Commands about ensembles: train one, tell it of more agents or transitions, calibrate, install, list."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from persim_gym.cli.arguments import (
    ENSEMBLE,
    Device,
    Epochs,
    Model,
    OwnTask,
    Quiet,
    Seed,
    check_output,
    rank_of,
    refuse_options,
    task_of,
)
from persim_gym.cli.console import console, print_written
from persim_gym.cli.logs import Log
from persim_gym.errors import FileWriteError
from persim_gym.terminal import table

Out = Annotated[Path, typer.Option(help="File to write, suffix .persim.")]
Name = Annotated[str | None, typer.Option(help="Name for its ids; the task's by default.")]


def train(
    context: typer.Context,
    data: Log,
    out: Out,
    task: Annotated[
        str | None,
        typer.Option(help='Task of the log, if it names none; "module:attribute" for one of your own.'),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Named settings; the task's own by default.")] = None,
    rank: Annotated[str | None, typer.Option(help='Number of latent factors, or "auto".')] = None,
    epochs: Epochs = None,
    validation: Annotated[
        float,
        typer.Option(
            help="Part of the transitions held out to measure the error; 0 skips validation and trains only once."
        ),
    ] = 0.2,
    refit: Annotated[bool, typer.Option(help="Train again on all transitions after validation.")] = True,
    install: Annotated[
        bool, typer.Option("--install", help="Also install the model: its ids exist in later sessions.")
    ] = False,
    name: Name = None,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train one model for all agents of a log. Run the same command again to resume an interrupted training."""
    from persim_gym import Trajectories, fit
    from persim_gym.registration import installed_file

    check_output(out, ENSEMBLE, data)
    if not install:
        refuse_options(context, ("name",), "is for --install, which is not given")
    log = Trajectories.load(data)
    own = task_of(task)
    if install:
        installed_file(name or getattr(own, "name", own) or log.task or "")
    ensemble = fit(
        log,
        task=own,
        config=config,
        rank=rank_of(rank),
        epochs=epochs,
        seed=seed,
        validation_fraction=validation,
        refit=refit,
        device=device,
        checkpoint=out,
        progress=not quiet,
    )
    _save(ensemble, out)
    print_written(ensemble, out)
    if install:
        _install(ensemble, name)


def personalize(model: Model, data: Log, out: Out, task: OwnTask = None, device: Device = "cpu") -> None:
    """Append new agents to an ensemble, known by their transitions in a log, without training."""
    from persim_gym import personalize as change

    _write_changed(change, model, data, out, task, device=device)


def update(model: Model, data: Log, out: Out, task: OwnTask = None, device: Device = "cpu") -> None:
    """Tell an ensemble of more transitions of its agents, exactly as if they had been there from the beginning."""
    from persim_gym import update as change

    _write_changed(change, model, data, out, task, device=device)


def calibrate(model: Model, data: Log, out: Out, task: OwnTask = None, seed: Seed = 0, device: Device = "cpu") -> None:
    """Set the width of forecast intervals by errors on agents of a log that the ensemble was not trained on."""
    from persim_gym import calibrate as change

    _write_changed(change, model, data, out, task, seed=seed, device=device)


def install(model: Model, name: Name = None, task: OwnTask = None) -> None:
    """Keep a copy of a model in the model home, so that its ids exist in all later sessions."""
    from persim_gym import load

    _install(load(model, task=task_of(task)), name)


def models() -> None:
    """List the models that have environment ids: shipped and installed."""
    from persim_gym.data.reprs import validation_text
    from persim_gym.registration import SHIPPED_MODELS, installed_models, model_home

    rows = []
    for path, header in installed_models():
        config, provenance = header["config"], header["provenance"]
        task, name = header["task"], path.stem
        rows.append(
            (
                name if name == task else f"{name} ({task})",
                str(header["num_agents"]),
                str(config["num_members"]),
                str(config["rank"]),
                str(provenance.get("data", {}).get("policy", "?")),
                str(config["epochs"]),
                validation_text(provenance) or "–",
                "shipped" if path.parent == SHIPPED_MODELS else "installed",
            )
        )
    columns = ("name", "agents", "members", "rank", "data", "epochs", "1-step error", "where")
    console.print(table("models", columns, rows))
    console.print(f"model home: {model_home()}")


def _write_changed(
    change: Callable[..., Any], model: Path, data: Path, out: Path, task: str | None, **settings: Any
) -> None:
    """Write what a function of the library makes of an ensemble and a log."""
    from persim_gym import Trajectories, load

    check_output(out, ENSEMBLE, model, data)
    changed = change(load(model, task=task_of(task)), Trajectories.load(data), **settings)
    changed.save(out)
    print_written(changed, out)


def _install(ensemble: Any, name: str | None) -> None:
    """Install an ensemble, and say which ids there are and how to undo it."""
    from persim_gym import register_ensemble
    from persim_gym.registration import SHIPPED_MODELS, find_model

    ids = register_ensemble(ensemble, name=name, install=True)
    path = find_model(name or ensemble.task.name)
    console.print(f"installed: {ids[1]} … {ids[-1]}; to undo it, delete {path}")
    if (SHIPPED_MODELS / path.name).exists():
        console.print("it takes the place of the shipped model of this name until then")


def _save(ensemble: Any, out: Path) -> None:
    """Write a trained ensemble; where that fails, hours of training are kept in the folder of temporary files."""
    try:
        ensemble.save(out)
    except FileWriteError as error:
        handle, kept = tempfile.mkstemp(prefix=f"{out.stem}-", suffix=out.suffix)
        os.close(handle)
        ensemble.save(kept)
        raise FileWriteError(f"{error}; the ensemble is in {kept}") from error
