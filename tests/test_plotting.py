"""The map of agents: points, ellipses, colours, bad input."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot
from support import SMALL, random_ensemble

import persim_gym
from persim_gym import errors, plot_agents, plotting


@pytest.fixture(scope="module")
def ensemble():
    """CartPoles with covariates and posteriors."""
    log = persim_gym.collect("CartPole", num_agents=12, seed=0)
    made = random_ensemble("CartPole", SMALL, num_agents=12)
    return persim_gym.refit_factors(replace(made, agent_labels=log.agent_labels, covariates=log.covariates), log)


@pytest.mark.parametrize(
    "settings", [{}, {"method": "tsne"}, {"colors": {"mine": np.arange(12.0)}, "ellipses": False, "label": [3, "7"]}]
)
def test_a_picture_is_drawn(ensemble, tmp_path, settings):
    path = plot_agents(ensemble, tmp_path / "agents.png", **settings)
    assert matplotlib.image.imread(path).std() > 0.01


def test_an_ellipse_is_the_posterior_seen_through_the_map(ensemble, monkeypatch):
    """Factors drawn from an agent's posterior fall into its ellipse 95 times in 100."""
    pyplot.switch_backend("Agg")
    points, components = plotting.embed_agents(ensemble)
    figure, axis = pyplot.subplots()
    plotting._draw_ellipses(axis, points, components, ensemble)
    (collection,) = axis.collections
    width, height, angle = (
        collection.get_widths()[4],
        collection.get_heights()[4],
        np.radians(collection.get_angles()[4]),
    )
    drawn = ensemble.posterior.draw([4], np.random.default_rng(0), 4000)[:, :, 0]
    offset = (drawn - ensemble.posterior.solve([4])[0][:, 0]).reshape(4000, -1) @ components
    turned = offset @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inside = (2 * turned[:, 0] / width) ** 2 + (2 * turned[:, 1] / height) ** 2 <= 1
    assert inside.mean() == pytest.approx(0.95, abs=0.015)
    pyplot.close(figure)


def test_the_map_keeps_the_order_of_a_single_covariate():
    """A factor that is a line in the covariate lies on a line in the map."""
    ensemble = random_ensemble("MountainCar", SMALL, num_agents=20)
    gravity = np.linspace(0.0001, 0.0035, 20)
    weight = ensemble.parameters["agent.weight"][:, :1] + 100 * gravity[None, :, None]
    line = replace(ensemble, parameters={**ensemble.parameters, "agent.weight": weight.astype(np.float32)})
    points, _ = plotting.embed_agents(line)
    assert abs(np.corrcoef(points[:, 0], gravity)[0, 1]) > 0.999 and points[:, 1].std() < 1e-3


@pytest.mark.parametrize(
    ("kind", "message", "settings"),
    [
        (errors.UnknownNameError, "no embedding 'umap'; there are pca, tsne", {"method": "umap"}),
        (errors.InvalidArgumentError, r"colors\['x'\] must be 12 numbers", {"colors": {"x": [1.0]}}),
        (errors.UnknownNameError, "labelled 'nobody'", {"label": ["nobody"]}),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(ensemble, tmp_path, kind, message, settings):
    with pytest.raises(kind, match=message):
        plot_agents(ensemble, tmp_path / "agents.png", **settings)
    pyplot.close("all")
