"""Drawing states with the renderers that Gymnasium's own environments have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from persim_gym.errors import MissingExtraError, PerSimError
from persim_gym.types import FloatArray


class GymnasiumRenderer:
    """Draws a state by putting one of Gymnasium's environments into it."""

    def __init__(self, env_id: str, render_mode: str, put: Callable[[Any, FloatArray], None], extra: str) -> None:
        """Make the environment.

        Args:
            env_id: Gymnasium's id of the environment that draws.
            render_mode: "rgb_array" or "human".
            put: sets the unwrapped environment to an observation (D,).
            extra: the extra of persim-gym that brings what the renderer needs.

        """
        self._put = put
        self._extra = extra
        try:
            self._env: Any = gymnasium.make(env_id, render_mode=render_mode).unwrapped
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise MissingExtraError("the renderer's library", extra) from error
        self._env.reset(seed=0)

    def draw(self, observation: FloatArray) -> Any:
        self._put(self._env, observation)
        try:
            return self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise MissingExtraError("the renderer's library", self._extra) from error
        except Exception as error:
            if type(error).__name__ != "FatalError":  # MuJoCo's, which need not be installed
                raise
            raise PerSimError(
                f"MuJoCo cannot draw here ({error}); without a screen set MUJOCO_GL=egl before Python starts"
            ) from error

    def close(self) -> None:
        self._env.close()
