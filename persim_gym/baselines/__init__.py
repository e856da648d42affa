"""The other systems of the paper, run honestly beside PerSim: one file a method.

Methods that learn dynamics (`cadm`, `joint`) give the same simulators as PerSim; methods that learn a policy (`bcq`,
`cql`, `morel`) give an object with Stable-Baselines3's `predict`. MPC in the true environment needs no file of its own:
`persim_gym.true_mpc_returns`.
"""
