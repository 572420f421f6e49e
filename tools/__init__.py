"""End-to-end measurements. Each module is run with ``python -m tools.NAME``."""
