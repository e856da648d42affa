"""The network of one agent: the factorized model folded, and ways to evaluate it.

`folding` makes it; `interfaces` says what is asked of it. `steppers` take one state at a time; `shallow` takes many,
through one hidden layer on the CPU; `agent_network` takes many through any `layers` on any device. Where numba is
installed (extra "fast"), a class ``CompiledX`` does what ``X`` does, faster: those of `shallow` and `layers` are in
`shallow_compiled` and `layers_compiled`, that of `steppers` beside it. Their kernels are in `kernels`.
"""
