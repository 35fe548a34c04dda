"""Before stage 1: write the built-in capture in the capture format, so that it is read like any other."""

from __future__ import annotations

import logging

from instant_nk.io import synthetic
from instant_nk.layout import Job

logger = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Write the capture, its held-out views and its ground truth below the results."""
    path = synthetic.capture_path(job.config)
    synthetic.write(job.config, path)
    logger.info("wrote %s", path)
