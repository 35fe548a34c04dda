"""Stage 6: fit the residual field of one window."""

import sys

from instant_nk import entry

sys.exit(entry.rule("field"))
