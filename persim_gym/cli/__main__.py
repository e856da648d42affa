"""``python -m persim_gym.cli``."""

from persim_gym.cli.app import main

main()
