"""The data sets of the paper's tables, and the models learned from them."""

from __future__ import annotations

import sys
from pathlib import Path

import protocol
from cells import CACHE, cache_folder, locked_file
from protocol import Scale

from persim_gym import Ensemble, Trajectories, collect, fit
from persim_gym.config import get_config
from persim_gym.errors import FileFormatError


def logged(env: str, data: str, scale: Scale, seed: int = protocol.DATA_SEED) -> Trajectories:
    """Collect a data set."""
    return collect(env, policy=data, num_agents=scale.num_agents, seed=seed)


def trained(
    env: str,
    data: str,
    scale: Scale,
    seed: int,
    *,
    config: str | None = None,
    first: int | None = None,
    device: str = "auto",
    cache: Path = CACHE,
) -> Ensemble:
    """Return the ensemble learned from a data set, trained now or earlier; interrupted training goes on.

    Without a config it is the paper's; with ``first`` it learns from so many agents only.
    """
    part = "" if first is None else f"-first{first}"
    path = models_folder(cache, env) / f"{config or env}-{data}-{scale.name}{part}-seed{seed}.persim"
    settings = get_config(config or env, env).with_changes(**scale.changes)
    with locked_file(path):
        if path.exists():
            ensemble = Ensemble.load(path, task=env)
            if ensemble.config != settings:
                raise other_settings(path)
            return ensemble
        log = logged(env, data, scale)
        ensemble = fit(
            log if first is None else log.select(range(first)),
            config=settings,
            validation_fraction=0.0,
            seed=seed,
            device=device,
            checkpoint=path,
            progress=sys.stderr.isatty(),
        )
        ensemble.save(path)
    return ensemble


def other_settings(path: Path) -> FileFormatError:
    """Return the error about a model's file that is not of the settings asked for."""
    return FileFormatError(f"{path} was trained with other settings; delete it and what was measured with it")


def models_folder(cache: Path, env: str) -> Path:
    """Return the folder of an environment's trained models."""
    return cache_folder(cache, env) / "models"
