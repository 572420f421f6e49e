"""A package, so that its conftest does not clash with the one above. It must not be called qt, as it would hide qt."""
