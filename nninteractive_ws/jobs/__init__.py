"""Many volumes, prompted from a table."""
