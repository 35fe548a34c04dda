"""`instant-nk check`: says whether a capture is sound, shows it in a picture, and what would be trained. Writes no artifact."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instant_nk import layout
from instant_nk import log as log_module
from instant_nk.config import Config, check_packages
from instant_nk.errors import DataError
from instant_nk.geometry import hulls, spaces
from instant_nk.io import capture_images
from instant_nk.io.capture_films import Films
from instant_nk.stages import check_picture, dataset
from instant_nk.stages.dataset import Plan

log = logging.getLogger(__name__)

SAMPLED_FRAMES = 12
"""Frames, spread over the clip, whose images are decoded; of the others only the files' beginnings and ends are read."""
LEAST_EXPLAINED = 0.9
"""Share of a mask that the visual hull must account for, below which a camera is named."""
HULL_RESOLUTION = 128
"""Voxels along each axis of the hulls that cameras are compared with: the finer, the smaller the calibration error that shows."""
MIB = 1 << 20
BASE_MIB = 500.0
"""Resident memory of a process that has loaded torch."""


@dataclass
class CameraReport:
    """What the sampled frames say about one camera.

    Attributes:
        name: the camera.
        subject: mean share of its pixels that are subject.
        outside: worst share of its mask whose rays miss the box.
        explained: least share of its mask that the visual hull accounts for.
        empty: frames with an empty mask.
    """

    name: str
    subject: float = 0.0
    outside: float = 0.0
    explained: float = 1.0
    empty: int = 0


def run_check(config: Config, out: Path) -> str:
    """Check the capture of `config` and draw it.

    Args:
        out: PNG file to write, or an existing folder, where `check.png` is written.

    Returns:
        what was found, as text for the terminal.

    Raises:
        InstantNKError: a package that the settings need is missing, or the capture is unsound; where it could be drawn, the picture is written first and named.
    """
    check_packages(config)
    out = Path(out)
    out = out / "check.png" if out.is_dir() else out
    with tempfile.TemporaryDirectory(prefix="instant-nk-check-") as scratch:
        return check_plan(config, dataset.make_plan(config, None, Path(scratch)), out)


def check_plan(config: Config, plan: Plan, out: Path) -> str:
    """`run_check` of a capture whose files are all there."""
    sampled = [plan.frames[i] for i in sorted(set(np.linspace(0, len(plan.frames) - 1, min(SAMPLED_FRAMES, len(plan.frames))).round().astype(int)))]
    with dataset.workers(config) as pool:
        dataset.decode_videos(plan, sampled, pool)
        look_at_files(plan, set(plan.frames) - set(sampled), pool)
        if plan.box is None:
            plan = dataset.with_proposed_box(plan, pool, sampled)
        cameras, problems, shown = look_at_masks(plan, sampled, config, pool)
    check_picture.draw(out, plan, sampled[0], shown, cameras, {c.name for c in cameras if doubt(c, config)})
    if problems:
        raise DataError("\n".join([*problems, f"Drawn in {out}."]))
    return "\n".join(describe(config, plan, sampled, cameras) + [f"picture: {out}"])


def look_at_files(plan: Plan, frames: set[int], pool: ThreadPoolExecutor) -> None:
    """Compare the sizes and ends of the image files of some frames, decoding only those with an odd end. Videos were looked at when they were decoded.

    Raises:
        DataError: lists every file that is cut off or of another size.
    """
    if isinstance(plan.train, Films):
        return

    def complaint(frame: int, camera: int) -> str | None:
        path = plan.train.view.file(plan.train.cameras[camera], frame)
        size, wanted = capture_images.image_size(path), plan.train.lenses[camera].raw_size
        if size != wanted:
            return f"{path}: the image has {size[0]}x{size[1]} pixels, its camera {wanted[0]}x{wanted[1]}"
        return None if capture_images.seems_whole(path) or decodes(path) else f"{path}: the image is truncated"

    bad = []
    for frame in log_module.progress(sorted(frames), "check: files", log):
        bad += [c for c in pool.map(complaint, [frame] * len(plan.train), range(len(plan.train))) if c]
    if bad:
        raise DataError(f"{len(bad)} unsound images:\n  " + "\n  ".join(bad))


def decodes(path: Path) -> bool:
    """Whether an image can be decoded whole; some writers leave bytes after an image's end."""
    try:
        capture_images.open_image(path)
    except DataError:
        return False
    return True


def look_at_masks(plan: Plan, frames: list[int], config: Config, pool: ThreadPoolExecutor) -> tuple[list[CameraReport], list[str], np.ndarray]:
    """Compare masks, box and cameras at some frames.

    Returns:
        a report per camera, what is wrong, and the visual hull of the first frame.
    """
    similarity = spaces.similarity_from_box(plan.box)
    poses, resolution = spaces.transform_poses(similarity, plan.c2w), max(config.dataset.hull_resolution, HULL_RESOLUTION)
    reductions = [hulls.pool_for(2 / resolution, k, c2w, np.zeros(3)) for k, c2w in zip(plan.K, poses)]
    covered = dataset.coverages(plan.box, plan, reductions)
    cameras = [CameraReport(c.name) for c in plan.train.cameras]
    problems: list[str] = []
    outside: dict[int, str] = {}
    shown = None
    for frame in log_module.progress(frames, "check: masks", log):
        masks = dataset.silhouettes(plan.train, frame, reductions, pool)
        hull = hulls.visual_hull(masks, plan.K, poses, resolution)
        shown = dataset.subject_alone(hull, masks, poses, plan)[0] if shown is None else shown
        shares = dataset.outside_shares(masks, plan, covered)
        try:
            dataset.check_inside(frame, masks, shares, plan, config.dataset.outside_tolerance)
        except DataError as error:
            outside[frame] = str(error)
        try:
            dataset.check_agreement(frame, hull, masks, poses, plan)
        except DataError as error:
            problems.append(str(error))
        explained = hulls.explained_shares(hull, masks, plan.K, poses)
        for i, (camera, mask) in enumerate(zip(cameras, masks)):
            camera.subject += mask.subject / (mask.size[0] * mask.size[1]) / len(frames)
            camera.outside = max(camera.outside, float(shares[i]))
            camera.explained = min(camera.explained, float(explained[i]))
            camera.empty += not mask.subject
    if outside:
        problems = [outside_problem(outside, plan, pool), *problems]
    return cameras, problems, shown


def outside_problem(outside: dict[int, str], plan: Plan, pool: ThreadPoolExecutor) -> str:
    """What to say of a subject that leaves the box at some frames: the first of them, the others' numbers, and a box that would do."""
    first, *others = outside
    text = outside[first] + (f" So it does at frames {', '.join(map(str, others))}." if others else "")
    try:
        better = dataset.with_proposed_box(dataclasses.replace(plan, box=None), pool, list(outside)).box
    except DataError as error:
        return f"{text} No better box can be proposed: {error}"
    union = np.stack([np.minimum(plan.box[0], better[0]), np.maximum(plan.box[1], better[1])])
    return f"{text} A box that holds these frames: dataset.box: {union.round(6).tolist()}."


def describe(config: Config, plan: Plan, sampled: list[int], cameras: list[CameraReport]) -> list[str]:
    """The findings, line by line."""
    sizes = sorted({lens.size for lens in plan.train.lenses})
    bent = sum(not lens.straight for lens in plan.train.lenses)
    heldout_images = sum(plan.heldout.source(c, t) is not None for c in plan.heldout.cameras for t in plan.frames)
    extent = plan.box[1] - plan.box[0]
    unit = "" if plan.depth_unit is None else f"; depth maps, {plan.depth_unit:g} world units per step"
    looked = "decoded, files of all looked at"
    if isinstance(plan.train, Films):
        looked = f"compared, videos decoded up to the last; the decoded images will take about {decoded_gib(plan.train, plan, sampled):.2f} GiB"
    lines = [
        f"{plan.root}: sound",
        f"cameras: {len(plan.train)} training, {len(plan.heldout)} held out ({heldout_images} of {len(plan.heldout) * len(plan.frames)} of their images present); "
        f"images {', '.join(f'{w}x{h}' for w, h in sizes)}; {bent} to undistort{unit}",
        f"masks: {MASKS[plan.train.rule.kind]}",
        f"frames: {len(plan.frames)} used, {plan.frames[0]} to {plan.frames[-1]}; images of {len(sampled)} {looked}",
        f"box: {plan.box_source}; from {plan.box[0].round(4).tolist()} to {plan.box[1].round(4).tolist()}, size {extent.round(4).tolist()} world units",
        "",
        f"{'camera':<24} {'subject':>8} {'outside box':>12} {'agrees with hull':>17}",
    ]
    for c in cameras:
        lines.append(f"{c.name:<24} {100 * c.subject:>6.1f} % {100 * c.outside:>10.1f} % {100 * c.explained:>15.1f} %{doubt(c, config)}")
    return [*lines, "", *describe_work(config, plan)]


def decoded_gib(films: Films, plan: Plan, sampled: list[int]) -> float:
    """Room that the decoded images of all frames will take, from those at the sampled ones."""
    sizes = [films.whole(camera, frame).stat().st_size for camera in range(len(films)) for frame in sampled]
    return sum(sizes) / len(sampled) * len(plan.frames) / dataset.GIB


def doubt(camera: CameraReport, config: Config) -> str:
    """What to look at in a camera; "" when nothing."""
    found = {
        f"{camera.empty} empty masks": camera.empty > 0,
        "its mask leaves the box": camera.outside > config.dataset.outside_tolerance,
        "check its pose and masks": camera.explained < LEAST_EXPLAINED,
    }
    return "".join(f"  <- {text}" for text, true in found.items() if true)


MASKS = {
    "alpha": "the images' alpha",
    "files": "separate mask images",
    "colour": "difference from the plain backdrop (dataset.background)",
    "plates": "difference from clean plates (dataset.background)",
}


def describe_work(config: Config, plan: Plan) -> list[str]:
    """What would be trained, and about how much memory it takes."""
    windows = layout.windows(plan.frames, config.field.window_frames, config.field.overlap)
    batches = layout.batches(plan.frames, config.observation.frames_per_job)
    lines = [
        f"preset {config.preset}: canonical {config.canonical.steps} steps; observation {len(batches)} jobs, {config.observation.steps} steps a frame; "
        f"field {len(windows)} windows of up to {config.field.window_frames} frames ({windows[0]}{' … ' + windows[-1] if len(windows) > 1 else ''}), {config.field.steps} steps each",
    ]
    estimate = memory_mib(config, plan)
    return [*lines, "memory, about: " + ", ".join(f"{stage} {mib / 1024:.1f} GiB" for stage, mib in estimate.items()) + " (per job)"]


def memory_mib(config: Config, plan: Plan) -> dict[str, float]:
    """Rough resident memory of one job of the large stages, MiB: the images it holds, its tables with gradients and moments, its samples."""
    pixels = sum(lens.size[0] * lens.size[1] for lens in plan.train.lenses)
    largest = max(lens.raw_size[0] * lens.raw_size[1] for lens in plan.train.lenses)
    images = pixels * 4 / MIB

    def training(levels: int, features: int, log2_table_size: int, samples: int, width: int) -> float:
        return (levels * features * 2**log2_table_size * 4 * 4 + samples * (levels * features + 8 * width) * 4 * 6) / MIB

    c, o, f = config.canonical, config.observation, config.field
    canonical = training(c.levels, c.features, c.log2_table_size, c.samples_per_step, c.hidden)
    return {
        "dataset": 60 + (config.runtime.threads or 8) * largest * 40 / MIB + images,
        "canonical": BASE_MIB + images + canonical,
        "observation": BASE_MIB + images + training(c.levels, c.features, o.log2_table_size, o.samples_per_step, c.hidden),
        "field": BASE_MIB
        + images * min(f.window_frames, len(plan.frames))
        + canonical
        + training(f.levels, f.features, f.log2_table_size, f.samples_per_step, c.hidden),
    }
