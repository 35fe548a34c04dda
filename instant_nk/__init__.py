"""Instant-NK: calibrated multi-view video in, one tracked animated mesh out."""

__version__ = "0.1.0"
