"""Bridges to other libraries, one file each, imported only when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persim_gym.interop.d3rlpy import from_d3rlpy, to_d3rlpy
    from persim_gym.interop.dataframe import from_dataframe
    from persim_gym.interop.minari import from_minari, to_minari
    from persim_gym.interop.own_table import to_dataframe
    from persim_gym.interop.sb3 import fill_replay_buffer, policy_from_sb3, to_sb3_vec_env

__all__ = [
    "fill_replay_buffer",
    "from_d3rlpy",
    "from_dataframe",
    "from_minari",
    "policy_from_sb3",
    "to_d3rlpy",
    "to_dataframe",
    "to_minari",
    "to_sb3_vec_env",
]

_HOMES = {
    "fill_replay_buffer": "sb3",
    "from_d3rlpy": "d3rlpy",
    "from_dataframe": "dataframe",
    "from_minari": "minari",
    "policy_from_sb3": "sb3",
    "to_d3rlpy": "d3rlpy",
    "to_dataframe": "own_table",
    "to_minari": "minari",
    "to_sb3_vec_env": "sb3",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'persim_gym.interop' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"persim_gym.interop.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
