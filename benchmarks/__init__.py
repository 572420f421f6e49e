"""Measurements of the whole chain; each module runs with ``python -m benchmarks.NAME``."""
