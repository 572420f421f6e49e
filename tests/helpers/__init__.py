"""Shared code of the tests. No test imports another test."""
