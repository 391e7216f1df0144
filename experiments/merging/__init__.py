"""Merging experiments."""
