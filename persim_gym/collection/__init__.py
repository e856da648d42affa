"""Policies, episodes in true systems, and logs recorded from them."""
