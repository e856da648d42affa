"""The whole road on CartPole in a few minutes: collect, train, evaluate, draw."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from persim_gym import files, storage
from persim_gym.collection.collect import collect
from persim_gym.collection.logging_policies import test_policy
from persim_gym.evaluation.prediction import HORIZON, PredictionError, prediction_error
from persim_gym.evaluation.records import to_records
from persim_gym.evaluation.returns import AverageReturn, mpc_returns, policy_returns, true_mpc_returns
from persim_gym.extras import optional
from persim_gym.model.ensemble import Ensemble
from persim_gym.plotting import plot_trajectories
from persim_gym.terminal import table
from persim_gym.training.fit import fit

TASK = "CartPole"
WEAK_AND_SHORT = (0, 4)
"""Two very different test agents: a weak push, and a short pole."""
_PREDICTION_EPISODES = 200


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, for the five test agents."""

    errors: list[PredictionError]
    random: list[AverageReturn]
    simulator: list[AverageReturn]
    true: list[AverageReturn]


def run_demo(
    out: Path,
    *,
    num_agents: int,
    epochs: int | None,
    episodes: int,
    num_candidates: int,
    seed: int,
    console: Console,
    progress: bool,
) -> DemoResult:
    """Collect random trajectories, train, evaluate agents 0–4, save a picture, and say how to go on.

    Args:
        out: folder for the data, the model, the records and the picture.
        num_agents: N.
        epochs: instead of the configuration's.
        episodes: an agent, for the returns.
        num_candidates: action sequences that MPC scores at every step.
        seed: of everything.
        console: to print on.
        progress: whether to show bars.

    Raises:
        MissingExtraError: matplotlib is not installed; that is told before minutes go by.

    """
    optional("matplotlib", "plots")
    start = time.perf_counter()
    data_path, model_path = out / "cartpole-random.safetensors", out / "cartpole.persim"
    _heading(console, "1. one random trajectory of each agent")
    log = collect(TASK, policy="random", num_agents=num_agents, seed=seed)
    log.save(data_path)
    console.print(log, highlight=False)

    _heading(console, "2. learn one simulator for each agent")
    # No held-out part, which would mean training twice: the true systems are there to compare with.
    ensemble = fit(log, epochs=epochs, seed=seed, validation_fraction=0.0, checkpoint=model_path, progress=progress)
    ensemble.save(model_path)
    console.print(ensemble, highlight=False)

    _heading(console, "3. evaluate agents 0–4, which were seen once, failing")
    result = _evaluate(ensemble, episodes, num_candidates, seed, progress)
    console.print(_table(result, episodes))
    records = {
        "num_agents": num_agents,
        "seed": seed,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "prediction_error": to_records(result.errors),
        "returns": to_records([*result.random, *result.simulator, *result.true]),
    }
    files.write_text(out / "demo.json", storage.to_json(records, indent=2) + "\n")
    picture = plot_trajectories(
        ensemble, out / "demo.png", agents=WEAK_AND_SHORT, steps=50, policy=test_policy(TASK).act, seed=seed
    )
    console.print(f"picture: {picture}   records: {out / 'demo.json'}", highlight=False)

    _heading(console, "4. use it")
    console.print(
        "import gymnasium as gym, persim_gym\n"
        f'persim_gym.register_ensemble("{model_path}")\n'
        'env = gym.make("PerSim-CartPole-agent4-v0")',
        highlight=False,
        markup=False,
    )
    return result


def _evaluate(ensemble: Ensemble, episodes: int, num_candidates: int, seed: int, progress: bool) -> DemoResult:
    common: dict[str, Any] = {"episodes": episodes, "seed": seed, "progress": progress}
    return DemoResult(
        errors=prediction_error(
            ensemble, policy=test_policy(TASK).act, episodes=_PREDICTION_EPISODES, seed=seed, progress=progress
        ),
        random=policy_returns(ensemble, "random", **{**common, "episodes": 100}),
        simulator=mpc_returns(ensemble, num_candidates=num_candidates, **common),
        true=true_mpc_returns(ensemble, num_candidates=num_candidates, **common),
    )


def _heading(console: Console, text: str) -> None:
    """Print a heading; a console that breaks no lines, as in a pipe, is wider than anybody's screen."""
    console.print(Rule(text), width=min(console.width, 80))


def _table(result: DemoResult, episodes: int) -> Any:
    rows = [
        (
            error.agent,
            ", ".join(f"{value:g}" for value in error.covariates),
            f"{error.rmse:.4f}",
            f"{error.r2:.3f}",
            f"{random.mean:.1f}",
            f"{simulator.mean:.1f} ± {simulator.std:.1f}",
            f"{true.mean:.1f} ± {true.std:.1f}",
        )
        for error, random, simulator, true in zip(
            result.errors, result.random, result.simulator, result.true, strict=True
        )
    ]
    return table(
        f"Errors over {HORIZON} steps; returns of {episodes} episodes in the true system, at most 200",
        ("agent", "force, length", "RMSE", "R²", "random policy", "MPC in simulator", "MPC in true system"),
        rows,
    )
