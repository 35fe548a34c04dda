"""For all tests: seeds, one thread, and paths to the real captures where they lie beside the checkout."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")  # the same examples at every run and on every machine
torch.set_num_threads(1)  # tests run beside each other; results then do not depend on the machine either


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fox_tiny() -> Path:
    """A small real capture with ground truth; the test is skipped where it is absent."""
    path = ROOT.parent / "shared" / "data" / "fox_tiny"
    if not path.is_dir():
        pytest.skip(f"the capture {path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return ROOT
