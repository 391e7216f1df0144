"""Experiments: one module a paper or comparison, in folders by family; run with python -m.

`python -m experiments` lists them.
"""
