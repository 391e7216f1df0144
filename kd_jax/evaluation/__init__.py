"""Evaluation: metrics as pure functions of per-sample arrays and texts; no model in sight.

What comes from anyone's logs can be fed to them. One benchmark or topic a module.
"""
