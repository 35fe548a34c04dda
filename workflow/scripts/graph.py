"""Stage 3: place the deformation graph's nodes on the canonical mesh."""

import sys

from instant_nk import entry

sys.exit(entry.rule("graph"))
