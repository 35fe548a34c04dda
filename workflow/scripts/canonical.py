"""Stage 2: reconstruct the canonical surface and colour."""

import sys

from instant_nk import entry

sys.exit(entry.rule("canonical"))
