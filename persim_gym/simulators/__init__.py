"""Models bound to agents: what steps, of any number of states, and the networks behind it."""
