"""Pictures, drawn with matplotlib (extra "plots")."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persim_gym import files
from persim_gym.arguments import as_list, checked_seed, whole_number
from persim_gym.collection.episodes import run
from persim_gym.collection.policies import action_seed, as_policy
from persim_gym.data.labels import AgentIndex, find_listed
from persim_gym.data.trajectories import Trajectories
from persim_gym.errors import InvalidArgumentError, UnknownNameError
from persim_gym.extras import optional
from persim_gym.factors.inference import check_knows_factors
from persim_gym.model.ensemble import Ensemble
from persim_gym.types import FloatArray

EMBEDDINGS = ("pca", "tsne")
"""Ways to two dimensions of the agents' factors."""
_TRUE_WEIGHT = 0.65
_CHI_SQUARE_95 = 5.991
"""95 % of a normal distribution in two dimensions is within this squared distance."""
_ELLIPSES = "; ellipses: 95 % of what is known of each"


def plot_trajectories(
    ensemble: Ensemble,
    path: str | Path,
    *,
    agents: Sequence[int | str],
    steps: int = 50,
    policy: Any = "random",
    seed: int = 0,
    log: Trajectories | None = None,
    device: str = "cpu",
) -> Path:
    """Draw true against predicted states of some agents, each acting in its own true system from the same start state.

    Args:
        ensemble: whose predictions are drawn, every member and their mean, given the actions that were taken.
        path: the picture's file; its suffix says the format, PNG if it has none.
        agents: list of indices or labels, each agent once, one column per agent.
        steps: horizon, in steps; less where the episode ends before.
        policy: policy that acts on the true observations.
        seed: seed of the start state and random actions.
        log: log of these agents, where there are no true systems: each agent's first episode in it is drawn instead.
        device: device to predict on.

    Raises:
        InvalidArgumentError: there is neither a true system nor a log, no picture of this suffix, an argument out of
            its range, or an agent named twice.
        UnknownNameError: an agent is not in the ensemble or not in the log.
        FileWriteError: the picture cannot be written there.
        MissingExtraError: matplotlib is not installed.

    """
    path, task, seed, steps = _picture(path), ensemble.task, checked_seed(seed), whole_number("steps", steps)
    chosen = [AgentIndex(agent) for agent in find_listed(agents, ensemble.agent_labels)]
    rows, columns = task.observation_size, len(chosen)
    figure, axes = _panels(rows, columns, (4.2 * columns, 1.7 * rows + 0.8), sharex=True, sharey="row")
    for column, agent in enumerate(chosen):
        if log is None:
            true, actions = _true_trajectory(ensemble, agent, steps, policy, seed)
        else:
            true, actions = _logged_trajectory(log, ensemble.agent_labels[agent], steps)
        members = ensemble.simulator(agent, device=device).rollout(true[:1], actions[None])[:, 0]
        members = np.concatenate([np.broadcast_to(true[0], (len(members), 1, true.shape[1])), members], axis=1)
        for row, name in enumerate(task.observation_names):
            _draw_coordinate(axes[row, column], true[:, row], members[:, :, row], "true" if log is None else "logged")
            if column == 0:
                axes[row, column].set_ylabel(name)
        end = "" if len(actions) == steps else f", ends at step {len(actions)}"
        axes[0, column].set_title(_title(ensemble, agent) + end, fontsize=10)
        axes[-1, column].set_xlabel("step")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"{task.name}: up to {steps} steps predicted from the first state alone")
    return _save(figure, path)


def plot_frames(
    ensemble: Ensemble,
    path: str | Path,
    *,
    agents: Sequence[int | str],
    horizons: Sequence[int] = (10, 25, 50),
    policy: Any = "random",
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Draw true systems and, translucent over them, their predictions, some steps after a common start state.

    Args:
        ensemble: whose predictions are drawn, the mean over its members, given the actions that were taken.
        path: the picture's file; its suffix says the format.
        agents: list of indices or labels, each agent once, one row per agent.
        horizons: list of steps after the start, one column each; an episode that has ended before is drawn at its end.
        policy: policy that acts on the true observations.
        seed: seed of the start state and random actions.
        device: device to predict on.

    Raises:
        UnknownNameError: there is no such agent.
        InvalidArgumentError: no horizon, one below 1, an agent named twice, a seed below 0, a task that cannot be
            drawn, or an agent whose true system is not known.
        FileWriteError: the picture cannot be written there.
        MissingExtraError: matplotlib or the renderer's library is not installed.

    """
    path, task, seed = _picture(path), ensemble.task, checked_seed(seed)
    chosen = [AgentIndex(agent) for agent in find_listed(agents, ensemble.agent_labels)]
    horizons = [whole_number("horizons", steps) for steps in as_list("horizons", horizons, "numbers of steps")]
    if not horizons:
        raise InvalidArgumentError("horizons=() must be one number of steps or more")
    if task.make_renderer is None:
        raise InvalidArgumentError(f"task {task.name} has no renderer; use plot_trajectories(..., log=...)")
    figure, axes = _panels(len(chosen), len(horizons), (3.6 * len(horizons), 2.7 * len(chosen)))
    for row, agent in enumerate(chosen):
        true, actions = _true_trajectory(ensemble, agent, max(horizons), policy, seed)
        simulator = ensemble.simulator(agent, device=device)
        predicted = simulator.combine(simulator.rollout(true[:1], actions[None]))[0]
        renderer = task.make_renderer(ensemble.agent_covariates(agent), "rgb_array")
        for axis, horizon in zip(axes[row], horizons, strict=True):
            step = min(horizon, len(actions))
            # Some renderers draw into one buffer, again and again.
            frames = [np.array(renderer.draw(state)) for state in (true[step], predicted[step - 1])]
            axis.imshow((_TRUE_WEIGHT * frames[0] + (1 - _TRUE_WEIGHT) * frames[1]).astype(np.uint8))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"step {step}" + (" (end)" if step < horizon else ""), fontsize=9)
        axes[row, 0].set_ylabel(_title(ensemble, agent).replace(" (", "\n("), fontsize=9)
        renderer.close()
    figure.suptitle(f"{task.name}: true system, and translucent its prediction from the first state alone")
    return _save(figure, path)


def plot_agents(
    ensemble: Ensemble,
    path: str | Path,
    *,
    colors: Mapping[str, Sequence[float]] | None = None,
    method: str = "pca",
    ellipses: bool = True,
    label: Sequence[int | str] = (),
) -> Path:
    """Draw a map of the agents: their factors in two dimensions, one panel per covariate.

    Args:
        ensemble: whose agents are drawn.
        path: the picture's file; its suffix says the format.
        colors: (N,) numbers by name, one per agent, that colour a panel each; by default the covariates, where known.
        method: "pca" or "tsne" of the factors of all members side by side.
        ellipses: whether to draw, where the ensemble knows the factors' posterior, what 95 % of it covers; only in a
            PCA, which is linear.
        label: list of indices or labels of the agents whose labels are written beside them.

    Raises:
        UnknownNameError: there is no such method or agent.
        InvalidArgumentError: colors that are not one number per agent, or a single agent.
        MissingStatisticsError: the model is not one of PerSim's.
        FileWriteError: the picture cannot be written there.
        MissingExtraError: matplotlib or scikit-learn is not installed.

    """
    check_knows_factors(ensemble)
    path = _picture(path)
    panel_colors = _colors_of(ensemble) if colors is None else _checked_colors(colors, ensemble.num_agents)
    labelled = find_listed(label, ensemble.agent_labels, name="label", distinct=False).tolist()
    points, axes_of_factors = embed_agents(ensemble, method)
    drawn = ellipses and axes_of_factors is not None and ensemble.posterior is not None
    figure, panels = _panels(1, len(panel_colors), (4.6 * len(panel_colors), 3.8))
    for axis, (name, values) in zip(panels[0], panel_colors.items(), strict=True):
        if drawn and axes_of_factors is not None:
            _draw_ellipses(axis, points, axes_of_factors, ensemble)
        dots = axis.scatter(*points.T, c=values, cmap="viridis", s=12, plotnonfinite=True)
        figure.colorbar(dots, ax=axis, label=name)
        for index in labelled:
            axis.annotate(
                ensemble.agent_labels[index], points[index], xytext=(4, 3), textcoords="offset points", fontsize=8
            )
        axis.set(xlabel=f"{method} 1", ylabel=f"{method} 2")
    figure.suptitle(
        f"{ensemble.task.name}: the factors of {ensemble.num_agents} agents{_ELLIPSES * drawn}", fontsize=10
    )
    return _save(figure, path)


def _checked_colors(colors: Any, num_agents: int) -> dict[str, FloatArray]:
    """Return the colors (N,) of each panel, as a user gave them by name."""
    wanted = f"{num_agents} numbers, one per agent"
    if not isinstance(colors, Mapping):
        raise InvalidArgumentError(
            f'colors={reprlib.repr(colors)} must be a dictionary of panels: {{"name": {wanted}}}'
        )
    if not colors:
        raise InvalidArgumentError("colors={} must have one panel or more; leave it out for the covariates")
    checked = {}
    for name, values in colors.items():
        try:
            checked[name] = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"colors[{name!r}] must be {wanted}; {reprlib.repr(values)} are not numbers: turn categories into "
                "numbers, and name colors by what they show"
            ) from error
        if checked[name].shape != (num_agents,):
            raise InvalidArgumentError(
                f"colors[{name!r}] must be {wanted}; got shape {checked[name].shape}: give them for all agents, in the "
                "order of ensemble.agent_labels"
            )
    return checked


def _colors_of(ensemble: Ensemble) -> Mapping[str, Any]:
    """Return the agents' covariates (N,) by name, where they are known."""
    if ensemble.covariates is None or not ensemble.task.covariates:
        return {"agent": np.arange(ensemble.num_agents)}
    return dict(zip(ensemble.task.covariate_names, ensemble.covariates.T, strict=True))


def embed_agents(ensemble: Ensemble, method: str = "pca") -> tuple[FloatArray, FloatArray | None]:
    """Return the agents' factors in two dimensions (N, 2), and the map there (M·r, 2) where it is linear.

    Factors of all members stand side by side, each standardized over the agents.
    """
    if method not in EMBEDDINGS:
        raise UnknownNameError(f"no embedding {method!r}; there are {', '.join(EMBEDDINGS)}")
    decomposition = optional("sklearn.decomposition", "plots", library="scikit-learn")
    manifold = optional("sklearn.manifold", "plots", library="scikit-learn")
    factors = factor_matrix(ensemble)
    if len(factors) < 2:
        raise InvalidArgumentError("a map needs two agents or more; the ensemble has one")
    spread = factors.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    standard = (factors - factors.mean(axis=0)) / spread
    if method == "pca":
        pca = decomposition.PCA(2, random_state=0).fit(standard)
        return pca.transform(standard), (pca.components_ / spread).T
    perplexity = min(30.0, (len(factors) - 1) / 3)
    return manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(standard), None


def factor_matrix(ensemble: Ensemble) -> FloatArray:
    """Return the factors (N, M·r) of all agents, those of all members side by side."""
    return np.moveaxis(ensemble.agent_factors(), 0, 1).reshape(ensemble.num_agents, -1).astype(np.float64)


def _draw_ellipses(axis: Any, points: FloatArray, components: FloatArray, ensemble: Ensemble) -> None:
    """Draw what covers 95 % of each agent's posterior, members taken as independent, around points (N, 2)."""
    from matplotlib.collections import EllipseCollection

    _, covariances = ensemble.known_posterior().moments(np.arange(ensemble.num_agents))
    by_member = components.reshape(ensemble.num_members, -1, 2)
    flat = np.einsum("mia,mnij,mjb->nab", by_member, covariances, by_member, optimize=True)
    reach = np.sqrt(_CHI_SQUARE_95 * np.maximum(flat[:, [0, 1], [0, 1]], 0))
    axis.update_datalim(np.concatenate([points - reach, points + reach]))  # collections do not scale the axes
    values, vectors = np.linalg.eigh(flat)
    widths = 2 * np.sqrt(_CHI_SQUARE_95 * np.maximum(values, 0))
    angles = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    axis.add_collection(
        EllipseCollection(
            widths[:, 1], widths[:, 0], angles, units="xy", offsets=points, offset_transform=axis.transData,
            facecolors="none", edgecolors="tab:gray", linewidths=0.5, alpha=0.6,
        )
    )  # fmt: skip


def _draw_coordinate(axis: Any, true: FloatArray, members: FloatArray, name: str) -> None:
    """Draw one coordinate: true (H + 1,) under its name, members (M, H + 1)."""
    time = np.arange(len(true))
    axis.plot(time, true, color="black", linewidth=1.8, label=name)
    for index, member in enumerate(members):
        label = "members" if index == 0 else None
        axis.plot(time, member, color="tab:orange", alpha=0.45, linewidth=0.8, label=label)
    axis.plot(time, members.mean(0), "--", color="tab:orange", linewidth=1.8, label="their mean")


def _true_trajectory(
    ensemble: Ensemble, agent: int, steps: int, policy: Any, seed: int
) -> tuple[FloatArray, np.ndarray]:
    """Return states (H + 1, D) and actions (H,) or (H, A) of one episode, up to its end."""
    task = ensemble.task
    actor = as_policy(policy, task, action_seed(seed))
    system = task.system(ensemble.agent_covariates(agent)[None])
    path = list(run(task, actor, system, np.random.default_rng(seed), steps=steps, leave=True))
    states = [path[0].observations, *(step.next_observations for step in path)]
    return np.concatenate(states), np.concatenate([step.actions for step in path])


def _logged_trajectory(log: Trajectories, label: str, steps: int) -> tuple[FloatArray, np.ndarray]:
    """Return states (H + 1, D) and actions (H,) or (H, A) of an agent's first episode, up to so many steps."""
    episode = int(np.flatnonzero(log.episode_agents == log.agent_index(label))[0])
    start, end = int(log.episode_starts[episode]), int(log.episode_ends[episode])
    rows = slice(start, min(end, start + steps))
    return np.concatenate([log.observations[start : start + 1], log.next_observations[rows]]), log.actions[rows]


def _title(ensemble: Ensemble, agent: int) -> str:
    name = f"agent {ensemble.agent_labels[agent]}"
    if ensemble.covariates is None or not np.isfinite(ensemble.covariates[agent]).all():
        return name
    pairs = zip(ensemble.task.covariate_names, ensemble.covariates[agent], strict=True)
    return f"{name} (hidden: {', '.join(f'{covariate} {value:g}' for covariate, value in pairs)})"


def _panels(rows: int, columns: int, size: tuple[float, float], **sharing: Any) -> tuple[Any, Any]:
    """Return a figure of so many inches and its axes (rows, columns).

    It is drawn to files only, and so leaves pyplot's figures and the backend of a notebook alone.
    """
    figure = optional("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def _picture(path: str | Path) -> Path:
    """Return where a picture is written, if it can be: asked before the work."""
    path = Path(path)
    files.check_target(path)
    known = optional("matplotlib.backend_bases", "plots").FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise InvalidArgumentError(f"{path} must end in .png, .pdf, .svg or another of {', '.join(sorted(known))}")
    return path if path.suffix else path.with_name(f"{path.name}.png")


def _save(figure: Any, path: Path) -> Path:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=130)
    return path
