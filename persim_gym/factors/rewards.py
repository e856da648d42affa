"""What agents' own rewards say of their factors, where the reward was learned with factors of each agent's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device, resolve_device
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.factorization import agent_features, member_actions
from persim_gym.model.outcomes import reward_inputs
from persim_gym.types import FloatArray, IntArray

_BATCH = 512
_NOISE, _LEAST_NOISE = 0.1, 1e-3
"""Deviation of rewards from the model, in deviations of the log's: where no held-out rows told it, and the smallest."""
_LEAST_VARIANCE = 0.01
"""Smallest variance of the factors in any direction, relative to the mean one: a few agents do not show all."""


def with_own_rewards(
    ensemble: Ensemble, log: Trajectories, agents: IntArray, earlier: IntArray, *, device: str = "cpu"
) -> Ensemble:
    """Return the ensemble with the reward's factors of some agents adapted to their rewards in a log.

    For given v and w the reward is linear in u, too: u is the ridge regression towards the factor that it was, which
    for a newcomer is the agents' mean. The penalty is the factors' covariance among the agents. Earlier transitions of
    an agent are no longer there; the factor they led to counts as if they had been like the log's.

    Args:
        ensemble: one whose reward was not learned, or is common to all agents, stays as it is.
        log: one whose rewards are all zero has none to learn from.
        agents: (n,) indices of those to adapt, as far as they are in the log.
        earlier: (n,) how many transitions each has had before.
        device: to compute on.

    """
    if "reward" not in ensemble.provenance.get("outcomes_by_agent", ()) or not np.any(log.rewards):
        return ensemble
    found = {label: index for index, label in enumerate(log.agent_labels)}
    places = [place for place, agent in enumerate(agents) if ensemble.agent_labels[int(agent)] in found]
    if not places:
        return ensemble
    outcome, chosen = ensemble.outcomes["reward"], agents[places]
    table = np.asarray(outcome.parameters["agent.weight"], np.float64)
    factors = table + np.asarray(outcome.parameters["agent.bias"], np.float64)[:, None]
    scale = float(outcome.output_scale[0])
    noise = max(ensemble.provenance.get("reward_rmse", _NOISE * scale) / scale, _LEAST_NOISE)
    rows = [found[ensemble.agent_labels[int(agent)]] for agent in chosen]
    sums, counts = (part[rows] for part in _sums(ensemble, log, device))
    gram, product = sums[..., :-1, :-1] / noise**2, sums[..., :-1, -1] / noise**2  # (n, M, r, r), (n, M, r)
    own = factors[:, chosen].swapaxes(0, 1)
    mean_gram = gram.sum(0) / max(int(counts.sum()), 1)
    precision = _penalty(factors) + gram + earlier[places, None, None, None] * mean_gram
    residual = product - np.einsum("nmij,nmj->nmi", gram, own)
    adapted = table.copy()
    adapted[:, chosen] += np.linalg.solve(precision, residual[..., None])[..., 0].swapaxes(0, 1)
    parameters = {**outcome.parameters, "agent.weight": adapted.astype(np.float32)}
    return replace(ensemble, outcomes={**ensemble.outcomes, "reward": replace(outcome, parameters=parameters)})


def _penalty(factors: FloatArray) -> FloatArray:
    """Return the inverse (M, r, r) of the covariance of factors (M, N, r)."""
    centred = factors - factors.mean(1, keepdims=True)
    covariance = np.einsum("mni,mnj->mij", centred, centred) / factors.shape[1]
    size = np.maximum(np.einsum("mii->m", covariance) / factors.shape[2], 1e-12)
    return np.linalg.inv(covariance + _LEAST_VARIANCE * size[:, None, None] * np.eye(factors.shape[2]))


def _sums(ensemble: Ensemble, log: Trajectories, device: str) -> tuple[FloatArray, IntArray]:
    """Return Σ (φ, reward)(φ, reward)ᵀ (N, M, r + 1, r + 1) over each agent's rows, and how many (N,) these are."""
    outcome, place = ensemble.outcomes["reward"], resolve_device(device)
    parameters = on_device(outcome.parameters, place)
    members, _, rank = outcome.parameters["agent.weight"].shape
    sums = torch.zeros(log.num_agents, members, rank + 1, rank + 1, dtype=torch.float64, device=place)
    agents = np.asarray(log.agents, np.int64)
    with torch.inference_mode():
        for start in range(0, log.num_transitions, _BATCH):
            part = slice(start, start + _BATCH)
            before, after = (
                np.asarray(column[part], np.float64) for column in (log.observations, log.next_observations)
            )
            inputs = np.concatenate(reward_inputs(before, after), axis=1)
            inputs = ((inputs - outcome.input_mean) / outcome.input_scale).astype(np.float32)
            rewards = (np.asarray(log.rewards[part], np.float64) - outcome.output_mean) / outcome.output_scale
            actions = torch.tensor(np.asarray(log.actions[part]), device=place)
            moves = member_actions(actions, members, ensemble.task.action_size).contiguous()
            states = torch.tensor(inputs, device=place).T.expand(members, -1, -1).contiguous()
            features = agent_features(parameters, states, moves)[:, 0].permute(2, 0, 1).double()  # (B, M, r)
            targets = torch.tensor(rewards, device=place)[:, None, None].expand(-1, members, -1)
            joint = torch.cat([features, targets], dim=2)
            rows = torch.tensor(agents[part], device=place)
            sums.index_add_(0, rows, joint[..., :, None] * joint[..., None, :])
    return sums.cpu().numpy(), np.bincount(agents, minlength=log.num_agents)
