"""Duration of the long runs."""

import os

#: Minutes of a long run; 0 for the few seconds that a soak test takes by default.
MINUTES = float(os.environ.get("NNINTERACTIVE_WS_SOAK_MINUTES", "0"))
