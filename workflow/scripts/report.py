"""Stage 8: measure, draw and write the report."""

import sys

from instant_nk import entry

sys.exit(entry.rule("report"))
