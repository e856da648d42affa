"""The network of one agent: the factorized model folded, and ways to evaluate it.

`folding` makes it. `steppers` take one state at a time; `shallow` takes many, through one hidden layer on the CPU;
`agent_network` takes many through any `layers` on any device. Where numba is installed (extra "fast"), a class
``CompiledX`` does what ``X`` does, faster: that of `shallow` is in `shallow_compiled` and calls the kernel in
`kernels.shallow`, and so on.
"""
