"""The compiled layers against torch's matrix products."""

import numpy as np
import pytest
import torch
from support import DEEP, random_ensemble

pytest.importorskip("numba")
from persim_gym.simulators.networks.agent_network import AgentNetwork  # noqa: E402
from persim_gym.simulators.networks.kernels.layers import STATES_AT_ONCE  # noqa: E402
from persim_gym.simulators.networks.kernels.tiles import Tile, best_tile  # noqa: E402
from persim_gym.simulators.networks.layers import MemberLayers  # noqa: E402
from persim_gym.simulators.networks.layers_compiled import CompiledMemberLayers  # noqa: E402 - needs numba

MEMBERS = 3
TILES = [Tile(lanes=16, vectors=2, rows=8), Tile(lanes=8, vectors=3, rows=4)]
ALL = slice(None)


def random_layers(*sizes):
    """Weights (M, outputs, inputs) and biases (M, outputs, 1), of a third of the units so low that they stay zero."""
    draw = np.random.default_rng(0)
    layers = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        weight = draw.normal(size=(MEMBERS, outputs, inputs)) / inputs**0.5
        bias = draw.normal(size=(MEMBERS, outputs, 1)) - 10.0 * (draw.random((MEMBERS, outputs, 1)) < 1 / 3)
        layers.append((torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)))
    return layers


def random_inputs(size, batch):
    return torch.tensor(np.random.default_rng(batch).normal(size=(MEMBERS, size, batch)), dtype=torch.float32)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("sizes", [(18, 64, 64, 90), (3, 40, 7, 100, 5), (9, 1, 33, 1), (6, 256, 256, 15)])
@pytest.mark.parametrize("batch", [1, 7, 8, 200, STATES_AT_ONCE + 5])
def test_outputs(tile, sizes, batch):
    """Any widths and any number of states, of all members or some; a few inputs, which it sorts, and many."""
    layers, inputs = random_layers(*sizes), random_inputs(sizes[0], batch)
    compiled, plain = CompiledMemberLayers(layers, tile), MemberLayers(layers)
    for members in (ALL, slice(1, 2), slice(1, 3)):
        found, expected = compiled(inputs[members], members), plain(inputs[members], members)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("batch", [1, 30, 2 * STATES_AT_ONCE + 3])
def test_weighted_sums(tile, batch):
    """Of outputs and factors a column each, and of one column of outputs for all factors."""
    layers, factors = random_layers(11, 50, 60, 4 * 5), random_inputs(5, batch)
    compiled, plain = CompiledMemberLayers(layers, tile), MemberLayers(layers)
    for inputs in (random_inputs(11, batch), random_inputs(11, 1)):
        for members in (ALL, slice(2, 3)):
            arguments = inputs[members], factors[members], members
            expected = (plain(inputs[members], members).unflatten(1, (4, 5)) * factors[members][:, None]).sum(2)
            torch.testing.assert_close(compiled.weighted(*arguments), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plain.weighted(*arguments), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [4, 12])
def test_what_is_not_a_number_stays_so_and_does_not_spread(size):
    """Nor does what is infinite, or where a unit's sum is exactly zero."""
    layers, inputs = random_layers(size, 32, 32, 6), random_inputs(size, 40)
    inputs[:, 0, 5], inputs[:, :, 17] = torch.nan, 0.0
    inputs[:, 1, 30] = torch.inf
    found, expected = CompiledMemberLayers(layers)(inputs, ALL), MemberLayers(layers)(inputs, ALL)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert found[:, :, 5].isnan().all() and found[:, :, :5].isfinite().all()


def test_layers_whose_units_are_all_zero_give_the_bias():
    layers = random_layers(5, 30, 30, 8)
    layers[1][1].fill_(-1e3)
    found = CompiledMemberLayers(layers)(random_inputs(5, 20), ALL)
    torch.testing.assert_close(found, layers[2][1].expand(-1, -1, 20))


def test_threads_give_the_same_bits():
    layers, inputs, factors = random_layers(12, 64, 64, 10), random_inputs(12, 1500), random_inputs(5, 1500)
    compiled, threads = CompiledMemberLayers(layers), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append((compiled(inputs, ALL), compiled.weighted(inputs, factors, ALL)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


def test_the_best_tile_fits_the_batches():
    """States go through the layers in whole tiles."""
    assert best_tile() in TILES and all(STATES_AT_ONCE % tile.rows == 0 for tile in TILES)


def test_where_they_are_used(monkeypatch):
    """For deep networks on the CPU, if numba is there, and if all weights are finite: a zero left out hides no NaN."""
    deep, broken = random_layers(4, 8, 8, 4), random_layers(4, 8, 8, 4)
    broken[1][0][0, 2, 3] = torch.nan
    assert CompiledMemberLayers.fits(deep)
    assert not CompiledMemberLayers.fits(deep[:2]) and not CompiledMemberLayers.fits(broken)
    assert not CompiledMemberLayers.fits([(weight.to("meta"), bias.to("meta")) for weight, bias in deep])
    network = random_ensemble("HalfCheetah", DEEP).simulator(0).network(0)
    assert isinstance(network, AgentNetwork) and isinstance(network._state, CompiledMemberLayers)
    monkeypatch.setattr("persim_gym.simulators.networks.kernels.jit.available", lambda: False)
    assert not CompiledMemberLayers.fits(deep)
    network = random_ensemble("HalfCheetah", DEEP).simulator(0).network(0)
    assert isinstance(network._state, MemberLayers)
