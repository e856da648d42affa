"""Settings: what a field holds, and what it refuses."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch

from persim_gym import PerSimConfig, baselines, fit
from persim_gym.arguments import checked_seed, first_repeated
from persim_gym.baselines.cadm_config import CaDMConfig
from persim_gym.baselines.morel import MOReLConfig
from persim_gym.errors import InvalidArgumentError
from persim_gym.settings import Settings, choice, finite, truth, whole, widths


@dataclasses.dataclass(frozen=True)
class Kettle(Settings):
    cups: int = whole()
    spare_cups: int = whole(0, least=0)
    limit: int | None = whole(None, optional=True)
    heat: float = finite(1.0)
    volume: float = finite(1.5, above=0.5)
    loud: bool = truth(False)
    layers: tuple[int, ...] = widths((3,), empty=False)
    colour: str = choice("red", choices=("red", "blue"))
    owner: str = "nobody"


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("cups=0 must be a whole number of at least 1", {"cups": 0}),
        ("cups=True must be a whole number", {"cups": True}),
        ("cups=None must be a whole number", {"cups": None}),
        ("spare_cups=-1 must be a whole number of at least 0", {"spare_cups": -1}),
        ("limit=0 must be a whole number", {"limit": 0}),
        ("heat=-0.1 must be a finite number of at least 0", {"heat": -0.1}),
        ("heat=inf must be a finite number", {"heat": float("inf")}),
        ("volume=0.5 must be a finite number above 0.5", {"volume": 0.5}),
        ("loud=1 must be True or False", {"loud": 1}),
        (r"layers=\(\) needs at least one layer", {"layers": ()}),
        (r"layers\[1\]=0 must be a whole number", {"layers": (3, 0)}),
        ("colour='green' must be one of red, blue", {"colour": "green"}),
    ],
)
def test_a_field_refuses_what_is_out_of_its_range(message, changes):
    """When it is made, and when a copy is."""
    with pytest.raises(InvalidArgumentError, match=message):
        Kettle(**{"cups": 1, **changes})
    with pytest.raises(InvalidArgumentError, match=message):
        Kettle(1).with_changes(**changes)


def test_a_field_holds_the_value_as_it_was_checked():
    """Python's numbers for NumPy's, so that JSON holds them; a tuple for a list."""
    kettle = Kettle(np.int64(2), limit=np.int8(4), heat=2, loud=np.bool_(True), layers=[np.int32(3), 4], owner=7)
    assert kettle == Kettle(2, 0, 4, 2.0, 1.5, True, (3, 4), "red", 7)
    for name, kind in (("cups", int), ("limit", int), ("heat", float), ("loud", bool)):
        assert type(getattr(kettle, name)) is kind
    assert [type(width) for width in kettle.layers] == [int, int]
    with pytest.raises(TypeError, match="cups"):
        Kettle()


@pytest.mark.parametrize("name", ["fit_bcq", "fit_cadm", "fit_cql", "fit_joint", "fit_morel", "fit"])
def test_whatever_fits_takes_its_arguments_in_one_order(name):
    """The log, the common arguments by name, then those of the method, then settings by their names."""
    common = ["agent", "task", "config", "seed", "device", "checkpoint", "progress"]
    log, *others = inspect.signature(getattr(baselines, name, fit)).parameters.values()
    assert log.name == "trajectories" and others[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in others[:-1])
    shared = [one.name for one in others if one.name in common]
    assert shared == [one.name for one in others[: len(shared)]] == [one for one in common if one in shared]


@pytest.mark.parametrize("config", [PerSimConfig(epochs=3), CaDMConfig(iterations=3), MOReLConfig(penalty=3)])
def test_settings_can_be_copied_and_pickled(config):
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == dataclasses.replace(config) == config
    assert type(config)(**dataclasses.asdict(config)) == config and config.with_changes() == config
    assert all(type(value) in (int, float, bool, str, tuple, type(None)) for value in vars(config).values())


def test_seeds_of_any_size():
    """Those that all libraries take are themselves; NumPy's own, of 128 bits, become one."""
    assert checked_seed(0) == 0 and checked_seed(2**63 - 1) == 2**63 - 1
    large = checked_seed(2**127 + 1), checked_seed(2**127 + 2)
    assert large[0] != large[1] and all(0 <= one < 2**63 for one in large)
    torch.Generator().manual_seed(large[0])


@pytest.mark.parametrize(
    ("names", "repeated"),
    [([], None), (["a", "b"], None), (["a", "b", "b", "a"], "a"), ((2, 0, 0), 0), (iter(["b", "a", "a"]), "a")],
)
def test_the_first_name_that_comes_up_again(names, repeated):
    assert first_repeated(names) == repeated
