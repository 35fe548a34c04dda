"""Stage 1: validate a capture and write the dataset."""

import sys

from instant_nk import entry

sys.exit(entry.rule("dataset"))
