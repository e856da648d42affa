"""`AgentNetwork`: the members of an ensemble, folded for one agent, on a torch device."""

from __future__ import annotations

import torch
from torch import Tensor

from persim_gym.simulators.networks.folding import FoldedNetwork, Layers
from persim_gym.simulators.networks.interfaces import Bounds
from persim_gym.simulators.networks.layers import MemberLayers
from persim_gym.simulators.networks.layers_compiled import CompiledMemberLayers


class AgentNetwork:
    """One agent's folded members on a torch device, feature-major."""

    def __init__(self, folded: FoldedNetwork, bounds: Bounds | None, device: torch.device) -> None:
        def moved(layers: Layers) -> list[tuple[Tensor, Tensor]]:
            return [(torch.tensor(weight, device=device), torch.tensor(bias, device=device)) for weight, bias in layers]

        self.num_members = folded.head[0].shape[0]
        self.num_actions = folded.num_actions
        self._state = _network(moved([*folded.hidden, folded.head]))
        self._action = _network(moved(folded.action)) if folded.action else None
        self._change_mean = torch.tensor(folded.change_mean, device=device)[:, None]
        self._bounds = bounds

    def next_states(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return the next states (m, D, B) that some members predict; arguments as in `changes`."""
        return clamped(states + self.changes(states, actions, members), self._bounds)

    def action_factors(self, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return w (m, r, B) of continuous actions (A, B)."""
        assert self._action is not None, "discrete actions have indices"
        count = len(range(*members.indices(self.num_members)))
        return self._action(actions.expand(count, -1, -1), members)

    def changes(self, states: Tensor, actions: Tensor, members: slice = slice(None)) -> Tensor:
        """Return the changes (m, D, B) that some members predict for their states (m, D, B), or one for all (m, D, 1).

        ``actions`` are (B,) indices, or the factors (m, r, B) that `action_factors` made of continuous actions.
        """
        if self.num_actions == 0:
            return self._state.weighted(states, actions, members).add_(self._change_mean)
        count, size, batch = states.shape
        by_action = self._state(states, members).view(count, self.num_actions, size, batch)
        chosen = by_action[:, 0]
        for action in range(1, self.num_actions):
            chosen = torch.where(actions == action, by_action[:, action], chosen)
        return chosen


def _network(layers: list[tuple[Tensor, Tensor]]) -> CompiledMemberLayers | MemberLayers:
    """Return layers that are computed as fast as can be here."""
    return CompiledMemberLayers(layers) if CompiledMemberLayers.fits(layers) else MemberLayers(layers)


def clamped(states: Tensor, bounds: Bounds | None) -> Tensor:
    """Return states (M, D, B) kept within bounds, if there are any."""
    return states if bounds is None else torch.clamp(states, *bounds)
