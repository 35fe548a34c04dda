"""Stage 5: estimate the nodes' motion over the sequence."""

import sys

from instant_nk import entry

sys.exit(entry.rule("registration"))
