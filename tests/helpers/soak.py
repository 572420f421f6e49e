"""Duration of the long runs."""

import os

#: Minutes of a long run, 0 for the default of a few seconds.
MINUTES = float(os.environ.get("NNINTERACTIVE_WS_SOAK_MINUTES", "0"))
