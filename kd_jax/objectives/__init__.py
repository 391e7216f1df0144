"""Objectives: models and losses joined into pure functions that a train step optimises."""
