"""Registration of a sequence: from the canonical frame outwards in both directions, frames that were lost, or a part of them, found again from either side."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from instant_nk.fitting import lost_parts
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Fit, Options, Pictures, disagreement, judge, register_from
from instant_nk.geometry.rotations import project_to_so3, so3_exp, so3_log
from instant_nk.io.motion import DOUBT
from instant_nk.log import fields

logger = logging.getLogger(__name__)


def predict(body: Body, previous: Pose, before: Pose, steps: float = 1.0) -> Pose:
    """Pose `steps` frames on under constant velocity: the common rigid motion goes on turning, what remains per node goes on straight."""
    earlier, now = body.nodes + before.translations, body.nodes + previous.translations
    turn, shift = common_rigid_motion(earlier, now)
    angle, own = steps * so3_log(turn), steps * so3_log(previous.rotations @ before.rotations.transpose(-1, -2))
    rest = now - (earlier @ turn.T + shift)
    onward = so3_exp(angle)
    centre, travelled = now.mean(0), (now.mean(0) - earlier.mean(0)) * steps
    live = (now - centre) @ onward.T + centre + travelled + steps * (rest - rest.mean(0)) @ onward.T
    return Pose(so3_exp(own) @ previous.rotations, live - body.nodes)


def common_rigid_motion(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [3, 3] and translation [3] that carry the points [N, 3] onto their partners best (Kabsch)."""
    a, b = source.mean(0), target.mean(0)
    turn = project_to_so3((target - b).T @ (source - a))
    return turn, b - turn @ a


def interpolate(body: Body, a: Pose, b: Pose, share: float) -> Pose:
    """Pose between two, rotations along the shortest arc; share 0 gives `a`."""
    turn = so3_exp(share * so3_log(b.rotations @ a.rotations.transpose(-1, -2))) @ a.rotations
    return Pose(turn, (1 - share) * a.translations + share * b.translations)


def chains(frames: list[int], canonical_frame: int) -> tuple[list[int], list[int]]:
    """Frames from the canonical one (or the nearest to it) to the end of the clip, and from there back to its start."""
    position = frames.index(min(frames, key=lambda f: abs(f - canonical_frame)))
    return frames[position:], frames[position::-1]


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
    for chain in chains(frames, canonical_frame):
        for i, frame in enumerate(chain):
            if frame in fits:
                continue
            if frame == canonical_frame:  # the rest shape is this frame's: there is nothing to estimate, and noise would move the mesh off its own surface
                fits[frame] = lost_parts.judged(body, Pose.identity(body), observe(frame))
                continue
            starts, seen, shown = _starts(body, chain[:i], frame, fits, canonical_frame), observe(frame), pictures(frame) if pictures else None
            fit = register_from(body, starts, seen, options, shown)
            earlier = next((fits[f].contradicted for f in reversed(chain[:i]) if fits[f].converged or f == canonical_frame), 0.0)  # where `starts` begins
            fits[frame] = lost_parts.search(body, fit, starts[0], earlier, seen, options, shown)
            _report(body, frame, fits[frame])
            if done:
                done(fits)
    for frame in [f for f in frames if _doubtful(fits[f]) and f != canonical_frame]:
        lost = not fits[frame].converged
        good = [f for f in frames if f == canonical_frame or (fits[f].converged if lost else not _doubtful(fits[f]))]
        beyond = [f for f in good if (f > frame if frame > canonical_frame else f < frame)]
        if not lost and not beyond:
            continue  # a part is missed, and the frames on the one side that are good led here
        seen = observe(frame)
        fit = _find_again(body, good, frame, fits, seen, options, pictures(frame) if pictures else None)
        fit = replace(fit, contradicted=lost_parts.contradiction(body, fit.pose, seen))
        if lost or lost_parts.improves(body, fit, fits[frame], seen):
            fits[frame] = fit
        _report(body, frame, fits[frame])
    return fits


def _doubtful(fit: Fit) -> bool:
    return not fit.converged or fit.contradicted > DOUBT


def _report(body: Body, frame: int, fit: Fit) -> None:
    numbers = fields(
        residual_spacing=fit.residual / body.spacing, coverage=fit.coverage, rigidity_spacing=fit.rigidity / body.spacing, contradicted=fit.contradicted
    )
    logger.log(logging.WARNING if _doubtful(fit) else logging.INFO, "frame=%d %s converged=%s", frame, numbers, fit.converged)


def _starts(body: Body, chain: list[int], frame: int, fits: dict[int, Fit], canonical_frame: int) -> list[Pose]:
    """Poses to start a frame from: the last good one along the chain, and that one moved on at its velocity. The canonical frame's is always good."""
    good = [f for f in chain if fits[f].converged or f == canonical_frame]
    if not good:
        return [fits[chain[0]].pose if chain else Pose.identity(body)]
    last = fits[good[-1]].pose
    if len(good) < 2:
        return [last]
    pace = abs(frame - good[-1]) / abs(good[-1] - good[-2])
    return [last, predict(body, last, fits[good[-2]].pose, pace)]


def _find_again(body: Body, good: list[int], frame: int, fits: dict[int, Fit], target: Target, options: Options, pictures: Pictures | None) -> Fit:
    """A frame that was lost, or in which a part was, once more: from the nearest of the `good` frames on either side and from between them.

    Where that does not help, the frame keeps whichever agrees better with its observation: the fit or the interpolation. It
    stays marked as not converged.
    """
    before = next((f for f in reversed(good) if f < frame), None)
    after = next((f for f in good if f > frame), None)
    if before is None and after is None:
        return fits[frame]
    starts = [fits[f].pose for f in (before, after) if f is not None]
    if len(starts) == 2:
        starts.append(interpolate(body, *starts, (frame - before) / (after - before)))
    again = register_from(body, starts, target, options, pictures)
    if again.converged:
        return again
    guess = judge(body, starts[-1], target)
    best = min((fits[frame], again, guess), key=lambda fit: disagreement(body, fit.pose, target))
    # Evidence that nothing explains is no reason to crumple the surface: between two good frames the way across is safer.
    return replace(guess if best.coverage < 0.5 else best, converged=False)
