"""The map of agents: points, ellipses, colours, bad input."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from support import SMALL, perfect_walk_ensemble, random_ensemble, walk_task

import persim_gym
from persim_gym import errors, plot_agents, plotting

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
image, pyplot = (importlib.import_module(f"matplotlib.{name}") for name in ("image", "pyplot"))


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
    assert image.imread(path).std() > 0.01


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
    offset = (drawn - ensemble.posterior.moments([4])[0][:, 0]).reshape(4000, -1) @ components
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
        (
            errors.InvalidArgumentError,
            r"colors\['x'\] must be 12 numbers, one per agent; got shape \(1,\): give them for all agents",
            {"colors": {"x": [1.0]}},
        ),
        (errors.InvalidArgumentError, r"\['a', .*\] are not numbers: turn categories", {"colors": {"x": ["a"] * 12}}),
        (errors.InvalidArgumentError, r"are not numbers", {"colors": {"x": [[1.0], [2.0, 3.0]]}}),
        (errors.InvalidArgumentError, r"colors=\[1.0, 2.0\] must be a dictionary of panels", {"colors": [1.0, 2.0]}),
        (errors.InvalidArgumentError, r"colors='red' must be a dictionary", {"colors": "red"}),
        (errors.InvalidArgumentError, r"label=3 must be a list of indices or labels, such as \[3\]", {"label": 3}),
        (errors.UnknownNameError, "labelled 'nobody'", {"label": ["nobody"]}),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(ensemble, tmp_path, kind, message, settings):
    with pytest.raises(kind, match=message):
        plot_agents(ensemble, tmp_path / "agents.png", **settings)
    pyplot.close("all")


def test_pictures_are_where_the_path_says(ensemble, tmp_path):
    """PNG without a suffix; what cannot be drawn is said before the work."""
    path = plot_agents(ensemble, tmp_path / "agents")
    assert path.name == "agents.png" and path.exists()
    for kind, name, message in (
        (errors.InvalidArgumentError, "agents.foo", r"agents.foo must end in .png, .pdf, .svg or another of"),
        (errors.FileWriteError, ".", "is a folder"),
    ):
        with pytest.raises(kind, match=message):
            plot_agents(ensemble, tmp_path / name)
    with pytest.raises(errors.InvalidArgumentError, match="a map needs two agents or more"):
        plot_agents(ensemble.with_agents([0]), path)
    with pytest.raises(errors.InvalidArgumentError, match="colors={} must have one panel or more"):
        plot_agents(ensemble, path, colors={})


def test_a_picture_is_written_as_a_whole_or_not_at_all(ensemble, tmp_path, monkeypatch):
    """The one that was there stays where a new one cannot be finished."""
    from matplotlib.figure import Figure

    drawn = plot_agents(ensemble, tmp_path / "map.PNG")
    before = drawn.read_bytes()

    def broken(self, path, **settings):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(errors.FileWriteError, match=r"map\.PNG cannot be written \(no space left"):
        plot_agents(ensemble, tmp_path / "map.PNG")
    assert drawn.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["map.PNG"]


def test_ellipses_are_inside_the_axes_and_explained(ensemble, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plotting, "_save", lambda figure, path: drawn.append(figure))
    few = ensemble.with_agents([0, 1, 2])
    plot_agents(few, tmp_path / "agents.png")
    assert "95 % of what is known" in drawn[0].get_suptitle()
    axis = drawn[0].axes[0]
    (ellipses,) = [one for one in axis.collections if hasattr(one, "get_widths")]
    reach = np.maximum(ellipses.get_widths(), ellipses.get_heights()) / 2
    (left, right), points = axis.get_xlim(), plotting.embed_agents(few)[0]
    flat = np.abs(np.cos(np.radians(ellipses.get_angles())))  # the least that the longer axis spans
    assert ((points[:, 0] - reach * flat >= left) & (points[:, 0] + reach * flat <= right)).all()


def test_an_own_task_is_drawn_along_its_log(tmp_path, monkeypatch):
    """True against predicted without a true system; the title says where the episode ends."""
    task = replace(walk_task(), make_system=None)
    model = replace(perfect_walk_ensemble(task), covariates=None)
    log = persim_gym.Trajectories.from_arrays(
        agents=np.repeat(["0", "2"], 6), observations=np.zeros((12, 2)), actions=[0, 1, 2] * 4, task="Walk",
        next_observations=np.arange(24.0).reshape(12, 2),
    )  # fmt: skip
    with pytest.raises(errors.InvalidArgumentError, match=r"task Walk has no true system: .*log_error.*log=\.\.\."):
        plotting.plot_trajectories(model, tmp_path / "walk.png", agents=[0])
    drawn = []
    monkeypatch.setattr(plotting, "_save", lambda figure, path: drawn.append(figure))
    plotting.plot_trajectories(model, tmp_path / "walk.png", agents=["2"], steps=9, log=log)
    axis = drawn[0].axes[0]
    assert axis.get_title() == "agent 2, ends at step 6" and "up to 9 steps" in drawn[0].get_suptitle()
    assert axis.lines[0].get_ydata().tolist() == [0, 12, 14, 16, 18, 20, 22]
    assert axis.lines[-1].get_ydata().tolist() == [0, -2, -2, 0, -2, -2, 0]
    with pytest.raises(errors.UnknownNameError, match="labelled '1'"):
        plotting.plot_trajectories(model, tmp_path / "walk.png", agents=[1], log=log)
