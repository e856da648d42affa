"""What the learned agent factors know of the hidden covariates (figures 1 and 5 of the paper).

    python benchmarks/factors.py --env CartPole --data pure

Draws the factors u(agent) of all members, reduced to two dimensions, coloured by each covariate, and measures the
cross-validated R² of regressions from factors to covariate. Writes benchmarks/results/factors.csv and one picture for
each data set. The ensembles are those of benchmarks/paper.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import protocol
from cells import commit
from measurement_file import RESULTS, MeasurementFile
from models import trained
from script import check_at_least, ensemble_parser, script

from persim_gym import Ensemble, plot_agents
from persim_gym.errors import PerSimError
from persim_gym.extras import optional
from persim_gym.plotting import EMBEDDINGS, factor_matrix

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
    scale, polynomial = _sklearn("preprocessing").StandardScaler, _sklearn("preprocessing").PolynomialFeatures
    steps = {"linear ridge": [scale()], "quadratic ridge": [scale(), polynomial(2), scale()]}
    make_pipeline, ridge = _sklearn("pipeline").make_pipeline, _sklearn("linear_model").RidgeCV
    penalties = np.logspace(-6, 3, 19)
    return {name: make_pipeline(*before, ridge(penalties)) for name, before in steps.items()}


def knowledge(ensemble: Ensemble, *, env: str, data: str, seed: int, scale: str) -> list[Knowledge]:
    """Measure how well the factors predict each covariate, for agents that the regression has not seen."""
    selection, metrics = _sklearn("model_selection"), _sklearn("metrics")
    factors, covariates = factor_matrix(ensemble), ensemble.covariates
    if covariates is None:
        raise PerSimError("this ensemble's log did not record the agents' covariates; collect one with persim-gym")
    folds = selection.KFold(min(FOLDS, len(factors)), shuffle=True, random_state=0)
    rows = []
    for index, name in enumerate(ensemble.task.covariate_names):
        for regressor, model in regressors().items():
            start = time.perf_counter()
            predicted = selection.cross_val_predict(model, factors, covariates[:, index], cv=folds)
            score = metrics.r2_score(covariates[:, index], predicted)
            wall = round(time.perf_counter() - start, 1)
            rows.append(
                Knowledge(
                    env, data, name, regressor, float(score), folds.n_splits, len(factors), seed, scale, commit(), wall
                )
            )
    return rows


def draw(ensemble: Ensemble, path: Path, *, method: str, rows: Sequence[Knowledge]) -> Path:
    """Draw the embedded factors, one panel a covariate, with the best regression's R² beside its name."""
    colors = {}
    for name, values in zip(ensemble.task.covariate_names, ensemble.covariates.T, strict=True):
        best = max((row for row in rows if row.covariate == name), key=lambda row: row.r2)
        colors[f"{name} (R² {best.r2:.3f}, {best.regressor})"] = values
    return plot_agents(ensemble, path, colors=colors, method=method, ellipses=False)


def results_file(scale: protocol.Scale, folder: Path = RESULTS) -> MeasurementFile[Knowledge]:
    """Return a scale's results file."""
    path = folder / f"factors{scale.file_suffix}.csv"
    order = attrgetter("env", "data", "covariate", "regressor", "seed")
    return MeasurementFile(path, Knowledge, key=("env", "data", "seed"), order=order)


@script
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, draw."""
    parser = ensemble_parser(__doc__)
    parser.add_argument("--embedding", default="pca", choices=EMBEDDINGS)
    given = parser.parse_args(arguments)
    check_at_least(0, seed=given.seed)
    scale = protocol.get_scale(given.scale)
    for env in given.env:
        ensemble = trained(env, given.data, scale, given.seed, device=given.device, cache=given.cache)
        rows = knowledge(ensemble, env=env, data=given.data, seed=given.seed, scale=scale.name)
        results_file(scale, given.results).replace(rows)
        name = f"factors-{env}-{given.data}-{given.embedding}{scale.file_suffix}.png"
        draw(ensemble, given.results / name, method=given.embedding, rows=rows)
        for row in rows:
            print(f"{row.env} {row.data}: R² of {row.covariate} {row.r2:.4f} by {row.regressor}")


def _sklearn(module: str) -> Any:
    """Import a module of scikit-learn."""
    return optional(f"sklearn.{module}", "plots", library="scikit-learn")


if __name__ == "__main__":
    raise SystemExit(main())
