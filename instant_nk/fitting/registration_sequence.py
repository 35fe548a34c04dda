"""Registration of a sequence: from the canonical frame outwards in both directions, each frame started from its neighbour."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Fit, Options, Pictures, align_rigidly, judge, register
from instant_nk.geometry.rotations import project_to_so3
from instant_nk.log import fields

logger = logging.getLogger(__name__)


def predict(previous: Pose, before: Pose | None) -> Pose:
    """Pose of the next frame under constant velocity: the last node motion applied once more."""
    if before is None:
        return previous
    turn = project_to_so3(previous.rotations @ before.rotations.transpose(-1, -2))
    return Pose(turn @ previous.rotations, 2 * previous.translations - before.translations)


def register_sequence(
    body: Body,
    frames: list[int],
    canonical_frame: int,
    observe: Callable[[int], Target],
    options: Options,
    pictures: Callable[[int], Pictures] | None = None,
    known: dict[int, Fit] | None = None,
    done: Callable[[dict[int, Fit]], None] | None = None,
) -> dict[int, Fit]:
    """Register all frames.

    Args:
        observe: the observation of a frame, prepared for matching.
        pictures: the images of a frame; None: surfaces only.
        known: fits of frames registered earlier (a resumed job); they are kept.
        done: called with all fits so far after each frame.

    Returns:
        fits by frame.
    """
    fits = dict(known or {})
    start = min(frames, key=lambda f: abs(f - canonical_frame))
    position = frames.index(start)
    for chain in (frames[position:], frames[position::-1]):
        for i, frame in enumerate(chain):
            if frame in fits:
                continue
            if frame == canonical_frame:  # the rest shape is this frame's: there is nothing to estimate, and noise would move the mesh off its own surface
                fits[frame] = judge(body, Pose.identity(body), observe(frame))
                continue
            previous = fits[chain[i - 1]].pose if i else Pose.identity(body)
            before = fits[chain[i - 2]].pose if i > 1 else None
            fits[frame] = _register_frame(body, observe(frame), previous, before, options, pictures(frame) if pictures else None)
            fit = fits[frame]
            numbers = fields(residual_spacing=fit.residual / body.spacing, coverage=fit.coverage, rigidity_spacing=fit.rigidity / body.spacing)
            logger.info("frame=%d %s converged=%s", frame, numbers, fit.converged)
            if done:
                done(fits)
    return fits


def _register_frame(body: Body, target: Target, previous: Pose, before: Pose | None, options: Options, pictures: Pictures | None) -> Fit:
    starts = [align_rigidly(body, previous, target)]
    if before is not None:
        starts.append(align_rigidly(body, predict(previous, before), target))
    best = max(starts, key=lambda pose: judge(body, pose, target).coverage)
    with torch.no_grad():
        return register(body, best, target, options, pictures)
