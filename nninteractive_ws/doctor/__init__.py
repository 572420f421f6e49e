"""Connection checks of ``nninteractive-ws doctor``."""
