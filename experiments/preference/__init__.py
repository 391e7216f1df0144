"""Preference-optimisation experiments."""
