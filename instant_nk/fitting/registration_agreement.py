"""Frames of a registered sequence brought into agreement: what wanders in each frame its own way gives way to what all of them say.

Where neither shape nor colour holds a surface along itself, a frame's fit slides, another way in every frame. A subject that bends at joints moves
as few rigid parts with fixed blends between them; those are learnt from all frames, and each frame is fitted once more with their word as evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from instant_nk.fitting import lost_parts
from instant_nk.fitting.correspondences import Target
from instant_nk.fitting.deformation_solver import Body, Pose
from instant_nk.fitting.registration import Fit, Guide, Options, settle
from instant_nk.fitting.registration_sequence import chains
from instant_nk.fitting.skinning_decomposition import decompose, follow

BONES = 40  # rigid parts that all frames share: a limb and its neighbours' blends, not its noise
LEAST_FRAMES = 4  # fewer say nothing of which nodes move together
LEARNT_FRAMES = 48  # that parts and weights are learnt from; the parts' motion at the others follows
ARM = 0.5  # node spacings: how far from a node the points lie that its rotation moves
TRUST = 0.5  # node spacings: a point that the parts leave this far from where it was found follows them a quarter as much


def settle_sequence(
    body: Body,
    fits: dict[int, Fit],
    canonical_frame: int,
    observe: Callable[[int], Target],
    options: Options,
    done: Callable[[int], None] | None = None,
) -> dict[int, Fit]:
    """All frames once more, each drawn to where few rigid parts that move through all of them would have it.

    Frames that were not found stay as they are, and so does one whose new fit would not explain its observation.

    Args:
        fits: from `register_sequence`; the other arguments as there.
        done: called with the number of frames that are through, those that stay among them.
    """
    good = sorted(frame for frame, fit in fits.items() if fit.converged or frame == canonical_frame)
    if len(good) < LEAST_FRAMES:
        return fits
    settled = dict(fits)
    poses = {frame: fits[frame].pose for frame in _outwards(good, canonical_frame)}
    for count, (frame, guide) in enumerate(_guides(body, poses), 1 + len(fits) - len(good)):
        if frame != canonical_frame:
            target = observe(frame)
            fit = settle(body, fits[frame].pose, target, guide, options)
            if fit.converged:
                settled[frame] = replace(fit, contradicted=lost_parts.contradiction(body, fit.pose, target))
        if done:
            done(count)
    return settled


def _outwards(frames: list[int], canonical_frame: int) -> list[int]:
    forward, back = chains(frames, canonical_frame)
    return forward + back[1:]


def _guides(body: Body, poses: dict[int, Pose]) -> Iterator[tuple[int, Guide]]:
    """Frame by frame, where the parts would have each surface point, and how far that is to be believed."""
    frames = list(poses)
    nodes, arm = body.nodes.cpu().numpy(), ARM * body.spacing
    turn = np.stack([pose.rotations.cpu().numpy() for pose in poses.values()])
    shift = np.stack([pose.translations.cpu().numpy() for pose in poses.values()])
    learnt = np.unique(np.linspace(0, len(frames) - 1, min(LEARNT_FRAMES, len(frames))).round().astype(int))
    weights = decompose(nodes, turn[learnt], shift[learnt], arm, BONES).weights
    share = (body.weights[..., None] * torch.as_tensor(weights, device=body.nodes.device)[body.anchors]).sum(1)  # [N, K]
    for start in range(0, len(frames), LEARNT_FRAMES):
        some = slice(start, start + LEARNT_FRAMES)
        parts = follow(nodes, turn[some], shift[some], arm, weights)
        for frame, rotations, translations in zip(frames[some], parts.rotations, parts.translations):
            affine = torch.as_tensor(np.concatenate([rotations, translations[..., None]], -1).reshape(-1, 12), device=share.device)
            blended = (share @ affine).reshape(-1, 3, 4)
            wanted = (blended[..., :3] * body.points[:, None]).sum(-1) + blended[..., 3]
            away = (wanted - body.warp(poses[frame])).square().sum(-1) / (TRUST * body.spacing) ** 2
            yield frame, Guide(wanted, 1 / (1 + away) ** 2)
