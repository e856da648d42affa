"""Environment ids: of the true systems, of the models that ship, and of those in the user's model home."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import EnvSpec, registry

from persim_gym import files, storage
from persim_gym.errors import FileFormatError, InvalidArgumentError, ModelHomeError, PerSimError, UnknownNameError
from persim_gym.user_warnings import warn_user

if TYPE_CHECKING:
    from persim_gym.model.ensemble import Ensemble

SHIPPED_MODELS = Path(__file__).parent / "assets" / "models"
SUFFIX = ".persim"
MAX_AGENT_IDS = 10_000
"""Agents beyond this number have no id of their own; the generic id with ``agent=`` reaches them all."""

_NO_LIMIT = {"time_limit": -1}
"""Of an environment whose only limit is Gymnasium's, ``max_episode_steps``, so that a longer one can be given."""
_BUILT_IN = {"MountainCar": 500, "CartPole": 200, "HalfCheetah": 1000}  # step limits; a test holds them to the tasks


def model_home() -> Path:
    """Return the folder of installed models: $PERSIM_HOME, or the platform's folder for a user's data."""
    chosen = os.environ.get("PERSIM_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("persim-gym", appauthor=False)


def register_all() -> None:
    """Register the true systems, the shipped models, and the installed ones, which take precedence."""
    for task, steps in _BUILT_IN.items():
        _add(
            EnvSpec(
                id=f"Heterogeneous-{task}-v0",
                entry_point="persim_gym.tasks.heterogeneous:HeterogeneousEnv",
                max_episode_steps=steps,
                kwargs={"task": task, **_NO_LIMIT},
            )
        )
    for path, document in _models():
        _register_document(path, document, path.stem)


def register_ensemble(ensemble: str | Path | Ensemble, *, name: str | None = None, install: bool = False) -> list[str]:
    """Register ``PerSim-<name>-v0`` and ``PerSim-<name>-agent0-v0``, … for a trained ensemble.

    Args:
        ensemble: a file, or with ``install`` an `Ensemble`.
        name: by default the task's name; ids of the same name are replaced.
        install: whether to keep a copy in the model home, so that later sessions have the ids too.

    Returns:
        The ids.

    Raises:
        FileFormatError: the file is not a whole ensemble file.
        UnknownNameError: its task is not known; call `persim_gym.register_task` first.
        InvalidArgumentError: an `Ensemble` without ``install``, for ids name a file; or no id can be made of the name,
            or another task is known under the task's name.
        ModelHomeError: the model home cannot be written.

    """
    from persim_gym.model.dynamics import LearnedDynamics, check_is_ensemble
    from persim_gym.model.ensemble import Ensemble
    from persim_gym.tasks import register_task

    if isinstance(ensemble, LearnedDynamics) and not isinstance(ensemble, Ensemble):
        raise InvalidArgumentError(
            f"ids are of PerSim's ensembles, and {ensemble!r} is none: make its environments by "
            "persim_gym.envs.PersonalizedEnv(model, agent)"
        )
    if not isinstance(ensemble, (str, Path)):
        check_is_ensemble(ensemble)
    given = ensemble if isinstance(ensemble, Ensemble) else Ensemble.load(ensemble)
    name = checked_name(given.task.name if name is None else name)
    if not install:
        if isinstance(ensemble, Ensemble):
            raise InvalidArgumentError(
                "an id names a file, and this ensemble is in none: save it and register the file, or pass "
                "install=True, which keeps it in the model home for later sessions too"
            )
        return _register_file(Path(ensemble).absolute(), name)
    path = installed_file(name)
    if isinstance(ensemble, Ensemble) and given.task.has_own_functions:
        register_task(given.task)  # functions are in no file; the ids of this session find them by the task's name
    given.save(path)
    return _register_file(path, name)


def installed_file(name: str) -> Path:
    """Return where the model of a name is kept once it is installed.

    Raises:
        InvalidArgumentError: no id can be made of the name.
        ModelHomeError: the model home cannot be written.

    """
    path = model_home() / f"{checked_name(name)}{SUFFIX}"
    try:
        files.check_target(path)
    except OSError as error:
        raise ModelHomeError(f"no model can be installed: {error}; set PERSIM_HOME to a folder of yours") from error
    return path


def installed_models() -> list[tuple[Path, dict[str, Any]]]:
    """Return file and header of every model with ids: the shipped and the installed ones."""
    return list({path.stem: (path, document) for path, document in _models()}.values())


def find_model(name: str) -> Path:
    """Return the file of the model of that name.

    Raises:
        UnknownNameError: no such model, or the name is an environment's id.

    """
    spec = registry.get(f"PerSim-{name}-v0") or registry.get(name)
    if spec is None or "model" not in spec.kwargs:
        raise UnknownNameError(f"no model, and no file, is named {name!r}; `persim-gym models` lists the models")
    agent = spec.kwargs.get("agent")
    if agent is not None or spec.id == name:
        model = spec.id.removeprefix("PerSim-").removesuffix("-v0").removesuffix(f"-agent{agent}")
        choice = "" if agent is None else f", and agent {agent} where an agent is asked for"
        raise UnknownNameError(f"{name!r} is an environment's id, not a model's name: give the model {model!r}{choice}")
    return Path(spec.kwargs["model"])


def model_file(model: str | Path) -> Path:
    """Return the path of a file as it is, whether there is one or not, and for a model's name that of its file."""
    path = Path(model)
    return path if path.is_file() or path.suffix == SUFFIX or len(path.parts) > 1 else find_model(str(model))


def _models() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield file and header of the shipped and of the installed models; warn of those that cannot be read."""
    home = model_home()
    for path in [*sorted(SHIPPED_MODELS.glob(f"*{SUFFIX}")), *sorted(home.glob(f"*{SUFFIX}"))]:
        try:
            checked_name(path.stem)
            yield path, _header(path)
        except (PerSimError, OSError) as error:
            warn_user(f"model {path} left out: {error}")


def _header(path: Path) -> dict[str, Any]:
    """Return the header of an ensemble's file, with what ids are made of."""
    document = storage.read_document(path, "ensemble")
    definition = document.get("task_definition", {})
    if (
        not isinstance(document.get("task"), str)
        or not isinstance(document.get("num_agents"), int)
        or not isinstance(document.get("config"), dict)
        or not isinstance(document.get("provenance"), dict)
        or not isinstance(definition, dict)
        or not isinstance(definition.get("max_episode_steps", 1), int)
    ):
        raise FileFormatError(f"{path}: the header is damaged; write or fetch the file again")
    return document


def _register_file(path: Path, name: str) -> list[str]:
    """Write the specs of a model into Gymnasium's registry; only the file's header is read."""
    return _register_document(path, _header(path), name)


def _register_document(path: Path, document: dict[str, Any], name: str) -> list[str]:
    task, count = document["task"], document["num_agents"]
    # What an earlier model of this name registered goes, or agents that this one lacks would still be found.
    for known in [known for known in registry if re.fullmatch(rf"PerSim-{re.escape(name)}(-agent\d+)?-v0", known)]:
        del registry[known]
    steps = _BUILT_IN.get(task) or document.get("task_definition", {}).get("max_episode_steps") or _step_limit(task)
    ids = [_add_simulator(f"PerSim-{name}-v0", path, steps, {})]
    for agent in range(min(count, MAX_AGENT_IDS)):
        ids.append(_add_simulator(f"PerSim-{name}-agent{agent}-v0", path, steps, {"agent": agent}))
    return ids


def checked_name(name: str) -> str:
    """Return a model's name if ids and a file can be made of it."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidArgumentError(
            f"name={name!r} makes no id: use letters, digits, '_', '-' and '.', in a task's name or in "
            "register_ensemble(..., name=...)"
        )
    if re.search(r"-agent\d+$", name):
        raise InvalidArgumentError(f"name={name!r} would make ids that are those of a model's agents: choose another")
    return name


def _step_limit(task: str) -> int | None:
    """Return the step limit of a user's own task; unknown in a session that has not registered the task."""
    from persim_gym.tasks import get_task

    try:
        return get_task(task).max_episode_steps
    except UnknownNameError:
        return None


def _add_simulator(env_id: str, path: Path, steps: int | None, kwargs: dict[str, Any]) -> str:
    spec = EnvSpec(
        id=env_id,
        entry_point="persim_gym.envs:PersonalizedEnv",
        vector_entry_point="persim_gym.envs:PersonalizedVectorEnv",
        max_episode_steps=steps,
        kwargs={"model": str(path), **kwargs, **({} if steps is None else _NO_LIMIT)},
    )
    _add(spec)
    return env_id


def _add(spec: EnvSpec) -> None:
    # gymnasium.register compares each new id with all the others: 500 agents are fine, 10 000 are not.
    registry[spec.id] = spec
