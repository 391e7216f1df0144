"""Unlearning experiments."""
