"""Pictures, drawn with matplotlib (extra "plots")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym.errors import MissingExtraError
from persim_gym.model import Ensemble
from persim_gym.policies import as_policy
from persim_gym.types import FloatArray


def plot_trajectories(
    ensemble: Ensemble,
    path: str | Path,
    *,
    agents: Sequence[int | str],
    steps: int = 50,
    policy: Any = "random",
    seed: int = 0,
) -> Path:
    """Draw true against predicted states of some agents, each acting in its own true system from the same start state.

    Args:
        ensemble: whose predictions are drawn, every member and their mean, given the actions that were taken.
        path: the picture's file; its suffix says the format.
        agents: indices or labels, one column each.
        steps: horizon, in steps; less where the episode ends before.
        policy: acts on the true observations.
        seed: of the start state and random actions.

    """
    pyplot = _pyplot()
    task = ensemble.task
    figure, axes = pyplot.subplots(
        task.observation_size, len(agents), figsize=(4.2 * len(agents), 1.7 * task.observation_size + 0.8),
        sharex=True, sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, agent in enumerate(agents):
        true, actions = _true_trajectory(ensemble, agent, steps, policy, seed)
        members = ensemble.simulator(agent).rollout(true[:1], actions[None])[:, 0]
        members = np.concatenate([np.broadcast_to(true[0], (len(members), 1, true.shape[1])), members], axis=1)
        for row, name in enumerate(task.observation_names):
            _draw_coordinate(axes[row, column], true[:, row], members[:, :, row])
            if column == 0:
                axes[row, column].set_ylabel(name)
        axes[0, column].set_title(_title(ensemble, agent), fontsize=10)
        axes[-1, column].set_xlabel("step")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"{task.name}: {steps} steps predicted from the first state alone")
    return _save(figure, path)


def _draw_coordinate(axis: Any, true: FloatArray, members: FloatArray) -> None:
    """Draw one coordinate: true (H + 1,), members (M, H + 1)."""
    time = np.arange(len(true))
    axis.plot(time, true, color="black", linewidth=1.8, label="true system")
    for index, member in enumerate(members):
        label = "members" if index == 0 else None
        axis.plot(time, member, color="tab:orange", alpha=0.45, linewidth=0.8, label=label)
    axis.plot(time, members.mean(0), "--", color="tab:orange", linewidth=1.8, label="their mean")


def _true_trajectory(
    ensemble: Ensemble, agent: int | str, steps: int, policy: Any, seed: int
) -> tuple[FloatArray, np.ndarray]:
    """Return states (H + 1, D) and actions (H,) or (H, A) of one episode, up to its end."""
    task = ensemble.task
    actor = as_policy(policy, task, seed)
    system = task.system(ensemble.agent_covariates(agent)[None])
    states, actions, state = [system.reset(np.random.default_rng(seed))[0]], [], None
    while len(actions) < steps and not (actions and task.terminated(states[-1])):
        observation = states[-1].astype(np.float32)[None]
        action, state = actor.predict(observation, state, np.array([not actions]), True)
        actions.append(np.asarray(action)[0])
        states.append(system.step(action)[0])
    return np.stack(states), np.stack(actions)


def _title(ensemble: Ensemble, agent: int | str) -> str:
    values = ensemble.agent_covariates(agent)
    named = ", ".join(f"{name} {value:g}" for name, value in zip(ensemble.task.covariate_names, values, strict=True))
    return f"agent {ensemble.agent_labels[ensemble.agent_index(agent)]} (hidden: {named})"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)
    return path
