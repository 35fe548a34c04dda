"""Before stage 1: write the built-in capture."""

import sys

from instant_nk import entry

sys.exit(entry.rule("synthetic"))
