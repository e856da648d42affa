"""From a log to a model: gradient descent, its checkpoints, and the choice among members."""
