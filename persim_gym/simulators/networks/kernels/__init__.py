"""What numba compiles. All modules but `jit` import numba, and are themselves imported on use, where it is installed.

`shallow` and `layers` are kernels of the networks of these names, `epoch` is that of training
(`persim_gym.training.trainer`); `tiles` has the matrix products that all of them are made of.
"""
