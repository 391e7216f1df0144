"""Throughput and memory of steps at scale, measured and planned."""
