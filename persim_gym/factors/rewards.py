"""What agents' own rewards say of their factors, where the reward was learned with factors of each agent's own.

For given v and w the reward is linear in u, as the changes are, and its factors have a posterior of the same kind
(`persim_gym.model.posterior`). The prior is of the agents that the reward was learned from.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from persim_gym.data.trajectories import Trajectories
from persim_gym.devices import on_device, resolve_device
from persim_gym.factors.statistics import sampled_agents
from persim_gym.model.ensemble import Ensemble
from persim_gym.model.factorization import agent_features, member_actions
from persim_gym.model.outcomes import Outcome, reward_inputs
from persim_gym.model.posterior import FactorPosterior, Prior, SufficientStatistics
from persim_gym.threads import limited_threads
from persim_gym.types import IntArray

_BATCH = 512


def with_reward_posterior(
    ensemble: Ensemble, log: Trajectories, *, rows: IntArray | None = None, device: str = "cpu"
) -> Ensemble:
    """Return the ensemble with the posterior of its reward's factors, given the log it was trained on.

    Prior and noise are those that make the rewards most likely, unless there are some already. The factors stay.

    Args:
        ensemble: one whose reward was not learned, or is common to all agents, stays as it is.
        log: of exactly the ensemble's agents; one whose rewards are all zero has none to learn from.
        rows: (n,) of the transitions to use; by default all.
        device: to compute on.

    """
    if not _tells_rewards(ensemble, log):
        return ensemble
    outcome = ensemble.outcomes["reward"]
    statistics = _statistics(ensemble, log, rows, device=device)
    if outcome.posterior is None:
        sample = sampled_agents(ensemble.num_agents)
        prior = Prior.estimate(statistics.of_agents(sample), outcome.factors()[:, sample], np.array([True]))
    else:
        prior = outcome.posterior.prior
    posterior = FactorPosterior.of(prior, statistics)
    return _with_reward(ensemble, replace(outcome, posterior=posterior))


def with_own_rewards(ensemble: Ensemble, log: Trajectories, agents: IntArray, *, device: str = "cpu") -> Ensemble:
    """Return the ensemble with the reward's factors of some agents set to their posterior means, given more rewards.

    Args:
        ensemble: one whose reward was not learned, or is common to all agents, stays as it is.
        log: one whose rewards are all zero has none to learn from.
        agents: (n,) indices of those to adapt, as far as they are in the log.
        device: to compute on.

    """
    places = {label: place for place, label in enumerate(log.agent_labels)}
    chosen = np.array([agent for agent in agents if ensemble.agent_labels[int(agent)] in places], np.int64)
    if not len(chosen) or not _tells_rewards(ensemble, log):
        return ensemble
    outcome = ensemble.outcomes["reward"]
    assert outcome.posterior is not None  # as `fit` leaves every reward that it learned by agent
    told = FactorPosterior.of(outcome.posterior.prior, _statistics(ensemble, log, device=device))
    told = told.with_agents([places[ensemble.agent_labels[int(agent)]] for agent in chosen])
    posterior = outcome.posterior.with_information(told, chosen)
    table = np.array(outcome.parameters["agent.weight"])
    table[:, chosen] = outcome.table_rows(posterior.moments(chosen)[0])
    parameters = {**outcome.parameters, "agent.weight": table}
    return _with_reward(ensemble, replace(outcome, parameters=parameters, posterior=posterior))


def _tells_rewards(ensemble: Ensemble, log: Trajectories) -> bool:
    """Return whether the ensemble's reward was learned by agent, and the log has rewards."""
    return "reward" in ensemble.provenance.get("outcomes_by_agent", ()) and bool(np.any(log.rewards))


def _with_reward(ensemble: Ensemble, outcome: Outcome) -> Ensemble:
    return replace(ensemble, outcomes={**ensemble.outcomes, "reward": outcome})


def _statistics(
    ensemble: Ensemble, log: Trajectories, rows: IntArray | None = None, *, device: str
) -> SufficientStatistics:
    """Return what the rewards in some rows, by default all, say of the factors of the log's agents; D is 1."""
    outcome, place = ensemble.outcomes["reward"], resolve_device(device)
    parameters = on_device(outcome.parameters, place)
    members, _, rank = outcome.parameters["agent.weight"].shape
    sums = torch.zeros(log.num_agents, members, rank + 1, rank + 1, dtype=torch.float64, device=place)
    used = np.arange(log.num_transitions) if rows is None else rows
    agents = np.asarray(log.agents[used], np.int64)
    with torch.inference_mode(), limited_threads(ensemble.config.state_hidden):
        for start in range(0, len(used), _BATCH):
            part = used[start : start + _BATCH]
            before, after = (
                np.asarray(column[part], np.float64) for column in (log.observations, log.next_observations)
            )
            inputs, rewards = outcome.scaling.standardized(
                np.concatenate(reward_inputs(before, after), axis=1), np.asarray(log.rewards[part], np.float64)[:, None]
            )
            actions = torch.tensor(np.asarray(log.actions[part]), device=place)
            moves = member_actions(actions, members, ensemble.task.action_size).contiguous()
            states = torch.tensor(inputs, dtype=torch.float32, device=place).T.expand(members, -1, -1).contiguous()
            features = agent_features(parameters, states, moves)[:, 0].permute(2, 0, 1).double()  # (B, M, r)
            targets = torch.tensor(rewards, device=place)[:, :, None].expand(-1, members, -1)
            joint = torch.cat([features, targets], dim=2)
            owners = torch.tensor(agents[start : start + _BATCH], device=place)
            sums.index_add_(0, owners, joint[..., :, None] * joint[..., None, :])
    found = sums.cpu().numpy().swapaxes(0, 1)[:, :, None]  # (M, N, 1, r + 1, r + 1)
    counts = np.bincount(agents, minlength=log.num_agents)
    return SufficientStatistics(found[..., :-1, :-1], found[..., :-1, -1], found[..., -1, -1], counts)
