"""Closed-form inference of the agents' factors: from transitions, and from covariates."""
