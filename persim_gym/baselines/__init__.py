"""The other systems of the paper, run honestly beside PerSim.

Methods that learn dynamics (`cadm`, `joint`) give the same simulators as PerSim; methods that learn a policy (`bcq`,
`cql`, `morel`) give an object with Stable-Baselines3's `predict`. All have `save` and `load`. MPC in the true
environment needs no file of its own: `persim_gym.true_mpc_returns`.
"""

from persim_gym.baselines.bcq import fit_bcq
from persim_gym.baselines.cadm import CaDM
from persim_gym.baselines.cadm_agent import CaDMAgent
from persim_gym.baselines.cadm_training import fit_cadm
from persim_gym.baselines.cql import fit_cql
from persim_gym.baselines.joint import JointModel, fit_joint
from persim_gym.baselines.morel import MOReLPolicy, fit_morel
from persim_gym.baselines.offline import OfflinePolicy

__all__ = [
    "CaDM",
    "CaDMAgent",
    "JointModel",
    "MOReLPolicy",
    "OfflinePolicy",
    "fit_bcq",
    "fit_cadm",
    "fit_cql",
    "fit_joint",
    "fit_morel",
]
