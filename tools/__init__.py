"""Measurements, the README's picture, and the hooks of the documentation, which MkDocs loads.

Run the others with ``python -m tools.NAME``.
"""
