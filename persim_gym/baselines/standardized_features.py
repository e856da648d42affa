"""What stands before MOReL's networks; needs the extra `sb3`, and is imported when they are made."""

from __future__ import annotations

import gymnasium
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor


class StandardizedObservations(BaseFeaturesExtractor):
    """Observations less a mean (D,), over a scale (D,)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, observation_space: gymnasium.Space, size: int) -> None:
        super().__init__(observation_space, size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, observations: Tensor) -> Tensor:
        return (observations - self.mean) / self.scale
