"""Stage 4: observe the live surface of one batch of frames."""

import sys

from instant_nk import entry

sys.exit(entry.rule("observation"))
