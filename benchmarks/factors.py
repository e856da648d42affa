"""What the learned agent factors know of the hidden covariates (figures 1 and 5 of the paper).

    python benchmarks/factors.py --env CartPole --data pure

Draws the factors u(agent) of all members, reduced to two dimensions, coloured by each covariate, and measures the
cross-validated R² of regressions from factors to covariate. Writes benchmarks/results/factors.csv and one picture for
each data set. The ensembles are those of benchmarks/paper.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import protocol
from cells import CACHE, commit
from measurement_file import RESULTS, MeasurementFile
from models import trained
from script import script

from persim_gym import Ensemble
from persim_gym.errors import MissingExtraError, PerSimError
from persim_gym.plotting import EMBEDDINGS, embed_agents, factor_matrix

FOLDS = 10


@dataclass(frozen=True)
class Knowledge:
    """How well one regression predicts one covariate from the factors: a line of the results file."""

    env: str
    data: str
    covariate: str
    regressor: str
    r2: float
    """Of the predictions for held-out agents, all folds together."""
    folds: int
    agents: int
    seed: int
    scale: str
    commit: str
    wall_s: float


def regressors() -> dict[str, Any]:
    """Return the regressions, by name; each standardizes the factors itself."""
    _, sklearn = _libraries()
    scale, polynomial = sklearn.preprocessing.StandardScaler, sklearn.preprocessing.PolynomialFeatures
    steps = {"linear ridge": [scale()], "quadratic ridge": [scale(), polynomial(2), scale()]}
    ridge = sklearn.linear_model.RidgeCV
    penalties = np.logspace(-6, 3, 19)
    return {name: sklearn.pipeline.make_pipeline(*before, ridge(penalties)) for name, before in steps.items()}


def knowledge(ensemble: Ensemble, *, env: str, data: str, seed: int, scale: str) -> list[Knowledge]:
    """Measure how well the factors predict each covariate, for agents that the regression has not seen."""
    _, sklearn = _libraries()
    factors, covariates = factor_matrix(ensemble), ensemble.covariates
    if covariates is None:
        raise PerSimError("this ensemble's log did not record the agents' covariates; collect one with persim-gym")
    folds = sklearn.model_selection.KFold(min(FOLDS, len(factors)), shuffle=True, random_state=0)
    rows = []
    for index, name in enumerate(ensemble.task.covariate_names):
        for regressor, model in regressors().items():
            start = time.perf_counter()
            predicted = sklearn.model_selection.cross_val_predict(model, factors, covariates[:, index], cv=folds)
            score = sklearn.metrics.r2_score(covariates[:, index], predicted)
            wall = round(time.perf_counter() - start, 1)
            rows.append(
                Knowledge(
                    env, data, name, regressor, float(score), folds.n_splits, len(factors), seed, scale, commit(), wall
                )
            )
    return rows


def draw(ensemble: Ensemble, path: Path, *, method: str, rows: Sequence[Knowledge]) -> Path:
    """Draw the embedded factors, one panel a covariate, with the best regression's R² above it."""
    pyplot, _ = _libraries()
    points, _ = embed_agents(ensemble, method)
    names = ensemble.task.covariate_names
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.6 * len(names), 3.8), squeeze=False, layout="constrained")
    for axis, name, values in zip(axes[0], names, ensemble.covariates.T, strict=True):
        best = max((row for row in rows if row.covariate == name), key=lambda row: row.r2)
        dots = axis.scatter(points[:, 0], points[:, 1], c=values, cmap="viridis", s=12)
        figure.colorbar(dots, ax=axis, label=name)
        axis.set_title(f"{ensemble.task.name}: R² of {name} {best.r2:.3f} ({best.regressor})", fontsize=9)
        axis.set_xlabel(f"{method} 1")
        axis.set_ylabel(f"{method} 2")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def results_file(scale: protocol.Scale, folder: Path = RESULTS) -> MeasurementFile[Knowledge]:
    """Return a scale's results file."""
    path = folder / f"factors{scale.file_suffix}.csv"
    order = attrgetter("env", "data", "covariate", "regressor", "seed")
    return MeasurementFile(path, Knowledge, key=("env", "data", "seed"), order=order)


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, choices=["MountainCar", "CartPole", "HalfCheetah"])
    parser.add_argument("--data", default="random", choices=protocol.LOGGING_POLICIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", default="full", choices=protocol.SCALES)
    parser.add_argument("--embedding", default="pca", choices=EMBEDDINGS)
    parser.add_argument("--device", default="auto", help="a torch device, to train on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args(arguments)
    scale = protocol.get_scale(given.scale)
    ensemble = trained(given.env, given.data, scale, given.seed, device=given.device, cache=given.cache)
    rows = knowledge(ensemble, env=given.env, data=given.data, seed=given.seed, scale=scale.name)
    results_file(scale, given.results).replace(rows)
    name = f"factors-{given.env}-{given.data}-{given.embedding}{scale.file_suffix}.png"
    draw(ensemble, given.results / name, method=given.embedding, rows=rows)
    for row in rows:
        print(f"{row.env} {row.data}: R² of {row.covariate} {row.r2:.4f} by {row.regressor}")


def _libraries() -> tuple[Any, Any]:
    """Return matplotlib's pyplot, drawing to files, and scikit-learn."""
    try:
        import matplotlib
        import sklearn.linear_model
        import sklearn.metrics
        import sklearn.model_selection
        import sklearn.pipeline
        import sklearn.preprocessing
    except ImportError as error:
        raise MissingExtraError(str(error.name), "plots") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot, sklearn


if __name__ == "__main__":
    raise SystemExit(main())
