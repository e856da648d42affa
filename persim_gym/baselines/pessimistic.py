"""MOReL's pessimistic MDP: learned dynamics that halt where their members disagree (Kidambi et al., NeurIPS 2020)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor

from persim_gym.arguments import at_least_zero, whole_number
from persim_gym.baselines.context_network import Scaling, action_features, layer_shapes, mlp
from persim_gym.data.trajectories import Trajectories
from persim_gym.envs.vector import autoreset_metadata
from persim_gym.errors import EpisodeOverError, TrainingDivergedError
from persim_gym.model.factorization import initialize_layer
from persim_gym.tasks import Task
from persim_gym.terminal import ProgressBar
from persim_gym.threads import single_thread
from persim_gym.types import BoolArray, FloatArray

_EVALUATION_BATCH = 8192
_MIN_TO_VALIDATE = 200


@dataclass(frozen=True)
class PlainDynamics:
    """M networks [state, action] -> standardized change of state; nothing tells them who acts."""

    task: Task
    parameters: Mapping[str, Tensor]
    """"net.0.weight" …, (M, outputs, inputs)."""
    states: Scaling
    changes: Scaling

    def predict(self, observations: FloatArray, actions: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """Return the members' mean next observation (B, D) float32, and their discrepancy (B,).

        The discrepancy is the largest distance between two members' predictions, max_{i,j} ‖f_i − f_j‖₂, in units of
        the standardized change.
        """
        following, discrepancies = np.empty(observations.shape, np.float32), np.empty(len(observations), np.float32)
        with torch.inference_mode():
            for start in range(0, len(observations), _EVALUATION_BATCH):
                rows = slice(start, start + _EVALUATION_BATCH)
                states = torch.tensor(np.asarray(observations[rows], np.float32).T)
                moves = action_features(self.task, actions[rows])
                members = len(self.parameters["net.0.weight"])
                inputs = torch.cat([self.states(states), moves]).expand(members, -1, -1)
                outputs = mlp(self.parameters, "net", inputs, torch.relu)
                change = outputs.mean(0) * self.changes.scale + self.changes.mean
                following[rows] = (states + change).T.numpy()
                discrepancies[rows] = discrepancy(outputs).numpy()
        return following, discrepancies


def discrepancy(outputs: Tensor) -> Tensor:
    """Return max_{i,j} ‖f_i − f_j‖₂ (B,) of members' outputs (M, D, B)."""
    largest = torch.zeros(outputs.shape[2])
    for index in range(1, len(outputs)):
        distances = (outputs[index:] - outputs[:-index]).square().sum(1).sqrt()
        largest = torch.maximum(largest, distances.amax(0))
    return largest


def fit_plain_dynamics(
    log: Trajectories,
    task: Task,
    *,
    hidden: tuple[int, ...],
    num_members: int = 4,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    validation_fraction: float = 0.1,
    max_gradient_steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PlainDynamics:
    """Train the networks on a log, each with batches of its own; the weights of each member's best epoch are kept.

    With fewer than 200 transitions there is no validation, and the last weights are kept.
    """
    generator = torch.Generator().manual_seed(seed)
    states = torch.tensor(np.asarray(log.observations, np.float32).T.copy())
    changes = torch.tensor(np.asarray(log.next_observations, np.float32).T.copy()) - states
    scalings = Scaling.of(states), Scaling.of(changes)
    inputs = torch.cat([scalings[0](states), action_features(task, log.actions)]).T.contiguous()
    targets = scalings[1](changes).T.contiguous()
    parameters = _initial_parameters(num_members, (inputs.shape[1], *hidden, targets.shape[1]), generator)
    optimizer = torch.optim.Adam(parameters.values(), lr=learning_rate, fused=True)
    order = torch.randperm(len(inputs), generator=generator)
    held = int(validation_fraction * len(order)) if len(order) >= _MIN_TO_VALIDATE else 0
    held_out, kept = order[:held], order[held:]
    if max_gradient_steps is not None:
        epochs = max(1, min(epochs, max_gradient_steps // -(-len(kept) // batch_size)))

    def member_losses(rows: Tensor) -> Tensor:
        outputs = mlp(parameters, "net", inputs[rows].transpose(1, 2), torch.relu)
        return (outputs - targets[rows].transpose(1, 2)).square().mean(dim=(1, 2))

    @torch.no_grad()
    def errors_on(rows: Tensor) -> Tensor:
        parts = [member_losses(part.expand(num_members, -1)) * len(part) for part in rows.split(4096)]
        return torch.stack(parts).sum(0) / len(rows)

    best = _BestWeights(parameters)
    with ProgressBar("dynamics", epochs, progress) as bar, single_thread():
        for _ in range(epochs):
            shuffled = torch.stack([kept[torch.randperm(len(kept), generator=generator)] for _ in range(num_members)])
            for rows in shuffled.split(batch_size, dim=1):
                optimizer.zero_grad(set_to_none=False)
                loss = member_losses(rows).sum()
                loss.backward()
                optimizer.step()
            if not torch.isfinite(loss):
                raise TrainingDivergedError(f"the loss is {float(loss)}; lower learning_rate={learning_rate}")
            if held:
                best.offer(parameters, errors_on(held_out))
            bar.advance(f"loss {float(loss.detach()) / num_members:.3e}")
        if not held:
            best.offer(parameters, errors_on(kept))
    if not best.finite:
        raise TrainingDivergedError(f"the networks' outputs are not finite; lower learning_rate={learning_rate}")
    return PlainDynamics(task, best.parameters, *scalings)


class _BestWeights:
    """The weights with which each of M members has erred least."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        self._errors = torch.full((len(next(iter(parameters.values()))),), torch.inf)

    def offer(self, parameters: Mapping[str, Tensor], errors: Tensor) -> None:
        """Keep the weights of the members whose errors (M,) are the lowest so far."""
        better = errors < self._errors
        self._errors = torch.where(better, errors, self._errors)
        for name, tensor in parameters.items():
            self.parameters[name][better] = tensor[better]

    @property
    def finite(self) -> bool:
        """Whether every member has had an error that is a finite number."""
        return bool(self._errors.isfinite().all())


def _initial_parameters(members: int, sizes: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    parameters = {}
    for name, shape in layer_shapes("net", members, sizes).items():
        fan_in = sizes[int(name.split(".")[1])]
        parameters[name] = initialize_layer(torch.empty(shape), fan_in, generator).requires_grad_()
    return parameters


class PessimisticVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """B copies of the pessimistic MDP, stepped together.

    From a pair of state and action on whose outcome the members disagree by more than ``threshold``, the episode ends
    with reward −``penalty``; else the next state is the members' mean, and reward and termination are the task's. Half
    of the episodes begin in the first state of a logged episode, half in any logged state.

    An episode that ended is followed by the next one at once: `step` returns the first observation of the next, and
    ``info["final_obs"]`` (B, D) the last of the old one, where ``info["_final_obs"]`` (Gymnasium's same-step
    autoreset). ``info["halted"]`` (B,) says where an episode ended for disagreement.
    """

    autoreset_mode = "same_step"
    metadata = {"render_modes": [], "autoreset_mode": autoreset_metadata(autoreset_mode)}

    def __init__(
        self,
        dynamics: PlainDynamics,
        log: Trajectories,
        *,
        threshold: float,
        penalty: float,
        num_envs: int = 64,
        max_episode_steps: int = 500,
    ) -> None:
        """Make the environments.

        Args:
            dynamics: learned from the log.
            log: whose states episodes begin in.
            threshold: discrepancy above which a pair counts as unknown; at 0 all pairs do, at infinity none.
            penalty: κ, what halting costs.
            num_envs: B.
            max_episode_steps: time limit; the task's if that is less.

        """
        num_envs = whole_number("num_envs", num_envs)
        threshold = at_least_zero("threshold", threshold)
        task = dynamics.task
        self.task, self.dynamics, self.num_envs = task, dynamics, num_envs
        self.threshold, self.penalty = threshold, penalty
        self.max_episode_steps = min(task.max_episode_steps, max_episode_steps)
        # Copies: learners seed a space's random state, which is not to be the task's.
        self.single_observation_space, self.single_action_space = copy.deepcopy(
            (task.observation_space, task.action_space)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._first = log.initial_observations.astype(np.float32)
        self._any = np.asarray(log.observations, np.float32)
        self._observations: FloatArray | None = None
        self._steps = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._observations = self._begin(self.num_envs)
        self._steps[:] = 0
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        before = self._observations
        if before is None:
            raise EpisodeOverError("call reset() before step()")
        actions = self.task.executed(actions, self.num_envs)
        after, discrepancies = self.dynamics.predict(before, actions)
        halted = self.unknown(discrepancies) | ~np.isfinite(after).all(axis=1)
        after = np.clip(after, self.task.observation_space.low, self.task.observation_space.high)
        after[halted] = before[halted]
        rewards = np.array(self.task.reward(before, actions, after), np.float64)  # a copy: both are written to below
        rewards[halted] = -self.penalty
        terminated = halted | np.asarray(self.task.terminated(after), bool)
        self._steps += 1
        truncated = ~terminated & (self._steps >= self.max_episode_steps)
        ended = terminated | truncated
        info: dict[str, Any] = {"halted": halted, "discrepancy": discrepancies}
        if ended.any():
            info |= {"final_obs": after.copy(), "_final_obs": ended}
            after[ended] = self._begin(int(ended.sum()))
            self._steps[ended] = 0
        self._observations = after
        return after.copy(), rewards, terminated, truncated, info

    def unknown(self, discrepancies: FloatArray) -> BoolArray:
        """Return which pairs (B,) count as unknown."""
        if self.threshold == 0:  # even where the members agree to the last bit
            return np.ones(len(discrepancies), bool)
        return discrepancies > self.threshold

    def _begin(self, count: int) -> FloatArray:
        """Draw (B, D) start states."""
        first = self._first[self.np_random.integers(len(self._first), size=count)]
        anywhere = self._any[self.np_random.integers(len(self._any), size=count)]
        return np.where(self.np_random.random(count)[:, None] < 0.5, first, anywhere)
