"""Logs: trajectories of agents, their checks and labels, and where they come from."""
