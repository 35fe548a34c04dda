"""`instant-nk register`: one surface moved onto another, from files, without a capture."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from instant_nk.config import Config
from instant_nk.errors import DataError, NumericalError
from instant_nk.fitting.pair_registration import LEAST_COVERAGE, PAIR, PairFit, PairSettings, register_pair
from instant_nk.fitting.registration import LOST_RIGIDITY
from instant_nk.io import rgbd, surface_file
from instant_nk.io.surface_file import Surface

logger = logging.getLogger(__name__)

DEPTH_NODES = 100  # nodes for one view of a depth camera; measured: with 400 the noise makes the surface slide, and the error doubles
NEARBY = 0.3  # without a mask, what a second depth frame shows within this share of the subject's size around it may be the subject


def settings_of(config: Config, colours: bool = True, depth_camera: bool = False) -> PairSettings:
    """The pair's settings from the config's `graph` and `registration` sections.

    Args:
        depth_camera: two frames of one: already in one place, too noisy for a fine graph.
    """
    g, r = config.graph, config.registration
    options = replace(PAIR, iterations=r.iterations, rigidity=PAIR.rigidity * r.rigidity_weight)
    nodes = min(g.max_nodes, DEPTH_NODES) if depth_camera else g.max_nodes
    return PairSettings(nodes, g.node_spacing, g.anchors, g.neighbours, r.max_points, options, colours, align=not depth_camera)


def from_files(source: Path, target: Path) -> tuple[Surface, Surface]:
    return surface_file.load(source), surface_file.load(target)


def from_rgbd(images: list[str], intrinsics: Path, masks: list[str], depth_scale: float) -> tuple[Surface, Surface]:
    """The surfaces of two frames of one standing depth camera: `images` are colour, depth, colour, depth.

    Where only the first frame has a mask, the second is cut to the neighbourhood of what the first shows.
    """
    K = rgbd.read_intrinsics(intrinsics)
    first, second = (rgbd.load(*images[2 * i : 2 * i + 2], K, masks[i] if i < len(masks) else None, depth_scale).surface for i in range(2))
    return first, second if len(masks) != 1 else cut(second, first)


def cut(surface: Surface, around: Surface) -> Surface:
    """The part of a surface near another one.

    Raises:
        DataError: nothing is near.
    """
    low, high = around.points.min(0), around.points.max(0)
    margin = NEARBY * np.linalg.norm(high - low)
    inside = ((surface.points > low - margin) & (surface.points < high + margin)).all(1)
    faces = surface.faces[inside[surface.faces].all(1)]
    if not len(faces):
        raise DataError("the second depth frame shows nothing near the masked subject of the first. Give its mask too: --mask MASK0 MASK1.")
    keep = np.unique(faces)
    cut_off = np.zeros(len(inside), bool)
    cut_off[surface.faces[~inside[surface.faces].all(1)]] = True
    colours = None if surface.colours is None else surface.colours[keep]
    goes_on = None if surface.open is None else (surface.open | cut_off)[keep]
    return Surface(surface.points[keep], surface.normals[keep], np.searchsorted(keep, faces), colours, goes_on, surface.seen)


def run_register(source: Surface, target: Surface, output: Path, settings: PairSettings, device: str = "cpu", seed: int = 0) -> str:
    """Register and write the moved source.

    Returns:
        a few lines that say how good it is.

    Raises:
        NumericalError: it did not converge; the file is written all the same, because looking at it says why.
    """
    start = time.monotonic()
    fit = register_pair(source, target, settings, device, seed)
    seconds = time.monotonic() - start
    surface_file.save(output, fit.moved)
    said = describe(fit, output, seconds)
    if not fit.converged:
        raise NumericalError(f"{said}\nThe surfaces do not agree: {_why(fit)} The best found was written; look at it before you use it.")
    return said


def describe(fit: PairFit, output: Path, seconds: float) -> str:
    return (
        f"{output}: {len(fit.moved.points)} points moved by {fit.nodes} nodes {fit.spacing:.4g} apart in {seconds:.2f} s, converged: {'yes' if fit.converged else 'no'}\n"
        f"residual {fit.residual:.4g}, rigidity error {fit.rigidity / fit.spacing:.3g} of the spacing, "
        f"target explained {100 * fit.target_coverage:.1f} %, source explained {100 * fit.source_coverage:.1f} %"
    )


def _why(fit: PairFit) -> str:
    if max(fit.target_coverage, fit.source_coverage) <= LEAST_COVERAGE:
        return (
            f"each explains less than {LEAST_COVERAGE:.0%} of the other. They must be in the same unit and show the same thing; "
            "a rough alignment beforehand, or more of either surface, helps."
        )
    return (
        f"the source is crumpled (rigidity error {fit.rigidity / fit.spacing:.2g} of the spacing, at most {LOST_RIGIDITY:g}). "
        "Raise registration.rigidity_weight, or lower graph.max_nodes."
    )
