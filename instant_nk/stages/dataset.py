"""Stage 1, dataset: a raw capture becomes validated, undistorted RGBA images, one box, visual hulls and the canonical frame.

The manifest is written last, so that a killed job leaves none. Everything else is made in a folder aside and moved into place.
Frames are worked on one after the other: memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instant_nk import config as config_module
from instant_nk import layout
from instant_nk import log as log_module
from instant_nk.config import Config, DatasetConfig
from instant_nk.errors import ConfigError, ContractError, DataError
from instant_nk.geometry import hulls, spaces
from instant_nk.geometry.hulls import Silhouette
from instant_nk.io import artifact, capture_images
from instant_nk.io import capture as captures
from instant_nk.io import dataset as datasets
from instant_nk.io.capture_cameras import RawCamera
from instant_nk.io.capture_films import Films
from instant_nk.io.capture_images import Images
from instant_nk.io.capture_layout import View
from instant_nk.io.dataset import CameraSet, Dataset

log = logging.getLogger(__name__)

ELSEWHERE = 0.5
"""Share of one camera's mask outside the box above which that camera looks elsewhere: its pose or masks are wrong."""
LEAST_AGREEMENT = 0.5
"""Share of most masks that the visual hull must account for."""
COARSEST = 1e-4
"""Rounding of world coordinates, in edges of the box, above which a capture must come nearer to the origin."""
BOX_MARGIN = 0.1
"""Margin around a proposed box, as a share of its extent on each side."""
END_PENALTY = 0.05
"""What lying at an end of the clip takes off a frame's hull surface when the canonical frame is chosen."""
GIB = 1 << 30
SEARCH_SIDE = 256
"""Longer side, in pixels, of the masks from which a box is proposed."""


@dataclass(frozen=True)
class Plan:
    """What a run will use of a capture, before any image is decoded.

    Attributes:
        root: folder of the capture.
        listing: the capture's files as found at the start.
        frames: absolute frame numbers used.
        train, heldout: their images.
        box: [[min], [max]] in world units, f64 [2, 3]; None: to be proposed.
        box_source: where the box comes from, for messages.
        depth_unit: world units per integer step of the depth maps; None: no depth maps.
    """

    root: Path
    listing: dict[str, str]
    frames: list[int]
    train: Images
    heldout: Images
    box: np.ndarray | None
    box_source: str
    depth_unit: float | None

    @property
    def c2w(self) -> np.ndarray:
        return np.stack([c.c2w for c in self.train.cameras])

    @property
    def K(self) -> np.ndarray:
        return np.stack([lens.K for lens in self.train.lenses])


def run(job: layout.Job) -> None:
    """Validate the capture and write `1_dataset/`."""
    watch = log_module.measure()
    config, manifest = job.config, job.paths.manifest
    root = ready_capture(config)
    say_what_changed(root, manifest)
    with aside(job.paths.dataset) as store:
        plan = make_plan(config, store, job.paths.dataset)
        with workers(config) as pool:
            decode_videos(plan, plan.frames, pool)
            if plan.box is None:
                plan = with_proposed_box(plan, pool, plan.frames)
            dataset, measures = build(plan, store, config, pool)
        if changes := captures.describe_changes(plan.listing, captures.listing(root)):
            raise DataError(f"{root}: the capture changed while it was read ({changes}). Run the same command again when it is complete.")
        section = layout.stage_config(config, "dataset")
        header = artifact.make_header("dataset", datasets.FORMAT, "dataset", section, {"capture": captures.digest(plan.listing)})
        extra = {"masks": plan.train.rule.kind, "box_source": plan.box_source, "hull_surface_voxel_faces": measures.pop("hull_surface")}
        move_in(store, job.paths.dataset)
    captures.save_listing(manifest, plan.listing)
    artifact.save_json(job.paths.dataset / "metrics.json", {**measures, **watch.numbers()})
    datasets.save(dataset, header, extra)
    drop_unused_videos(plan, job.paths.dataset)


# Reading.


def ready_capture(config: Config) -> Path:
    """Folder of the capture; the built-in one is written first when it is not there."""
    root = captures.resolve_capture(config)
    if config.capture == config_module.SYNTHETIC and not root.is_dir():
        from instant_nk.io import synthetic

        synthetic.write(config, root)
    return root


def make_plan(config: Config, store: Path | None, decoded: Path) -> Plan:
    """Read the capture's json, choose frames and cameras, and see that every file is there.

    Args:
        store: folder for converted images; None: nothing is written.
        decoded: folder for the images of videos, which a later run uses again.

    Raises:
        DataError: anything about the capture that can be found without decoding images.
    """
    root = ready_capture(config)
    listing = captures.listing(root)
    capture = captures.read(root)
    frames = captures.select_frames(capture.frames, config.frames, str(capture.train.folder))
    settings = config.dataset
    if settings.canonical_frame is not None and settings.canonical_frame not in frames:
        raise ConfigError(f"config key 'dataset.canonical_frame': wanted one of the frames used ({frames[0]} to {frames[-1]}), got {settings.canonical_frame}.")
    used = [capture.train.cameras[i] for i in captures.select_cameras(capture.train.cameras, settings.cameras)]
    views = ((capture.train, used, "images", False), (capture.heldout, capture.heldout.cameras, "images_test", True))
    train, heldout = (
        images_of(view, cameras, frames, settings, root, store and store / name, decoded / f"decoded_{name}", optional)
        for view, cameras, name, optional in views
    )
    if missing := train.missing(capture.depth_unit is not None) + heldout.missing():
        raise DataError(
            f"{root}: {len(missing)} missing:\n  "
            + "\n  ".join(missing)
            + "\nRestore them, or leave them out with frames.first, frames.count and dataset.cameras."
        )
    for images in (train, heldout):
        if isinstance(images, Films):
            images.check_lengths(config.frames.count is None)
    box, source = capture.box, "the capture's json"
    if settings.box is not None:
        box, source = np.array(settings.box, np.float64), "dataset.box"
    log.info("%s", log_module.fields(frames=len(frames), first=frames[0], last=frames[-1], cameras=len(train), heldout=len(heldout), masks=train.rule.kind))
    check_near_origin(box, root)
    return Plan(root, listing, frames, train, heldout, box, source, capture.depth_unit)


def images_of(
    view: View, cameras: Sequence[RawCamera], frames: list[int], settings: DatasetConfig, root: Path, store: Path | None, decoded: Path, optional: bool
) -> Images:
    """The images of a view's cameras, which are files or come from videos."""
    rule = capture_images.find_masks(settings, root, view, cameras, frames)
    if view.video:
        return Films(view, cameras, frames, rule, settings.max_image_side, decoded, optional)
    return Images(view, cameras, frames, rule, settings.max_image_side, store, optional)


def decode_videos(plan: Plan, frames: list[int], pool: ThreadPoolExecutor) -> None:
    """Write the images of all videos at `frames`, several videos side by side; those that are there from an earlier run stay.

    Raises:
        DataError: a video is truncated, of another size, or without its mask.
        ContractError: the disk has no room for them; said before they are decoded.
    """
    todo = [
        (films, camera) for films in (plan.train, plan.heldout) if isinstance(films, Films) for camera in range(len(films)) if films.undecoded(camera, frames)
    ]
    if not todo:
        return
    say_disk_need(todo, frames)
    left = sum(len(films.undecoded(camera, frames)) for films, camera in todo)
    report, lock, written, ended = log_module.Progress("dataset: videos", left, log), threading.Lock(), itertools.count(1), threading.Event()

    def done() -> None:
        if ended.is_set():
            raise CancelledError
        with lock:
            report.update(next(written))

    try:
        for _ in pool.map(lambda task: task[0].decode(task[1], frames, done), todo):
            pass
    finally:
        ended.set()  # one video that fails, or a job that is ended, does not wait for the other videos


def say_disk_need(todo: list[tuple[Films, int]], frames: list[int]) -> None:
    """Log how much room the decoded images will take, from the first one of some videos.

    Raises:
        ContractError: there is less.
    """
    sample = todo[:: max(1, len(todo) // 3)][:3]
    for films, camera in sample:
        films.decode(camera, frames[:1])
    mean = sum(films.whole(camera, frames[0]).stat().st_size for films, camera in sample) / len(sample)
    count = sum(len(films.undecoded(camera, frames)) for films, camera in todo)
    need, folder = 1.2 * mean * count, todo[0][0].cache
    free = shutil.disk_usage(folder).free
    log.info("%d pictures of %d videos to decode: about %.2f GiB in %s, where %.1f GiB are free", count, len(todo), need / GIB, folder, free / GIB)
    if need > free:
        raise ContractError(
            f"{folder}: {count} decoded pictures need about {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free. Free space, put runtime.results on a larger disk, "
            "or use fewer frames (frames.count, frames.step), cameras (dataset.cameras) or pixels (dataset.max_image_side)."
        )


def drop_unused_videos(plan: Plan, folder: Path) -> None:
    """Remove decoded images that the dataset just written does not use."""
    used = {
        films.folder(camera)
        for films in (plan.train, plan.heldout)
        if isinstance(films, Films)
        for camera in range(len(films))
        if films.source(films.cameras[camera], plan.frames[0])
    }
    for old in folder.glob("decoded_*/*"):
        if old not in used:
            shutil.rmtree(old)


def say_what_changed(root: Path, manifest: Path) -> None:
    """Log what differs between the capture now and when the dataset was made last."""
    if captures.listing_file(manifest).is_file() and (changes := captures.changes_since(manifest, captures.listing(root))):
        log.warning("%s: the capture changed since the last run: %s", root, changes)


def workers(config: Config) -> ThreadPoolExecutor:
    """Threads that decode images; decoding releases Python's lock."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not every system can say what a job may use
    return ThreadPoolExecutor(config.runtime.threads or mine)


def silhouettes(images: Images, frame: int, reductions: list[int], pool: ThreadPoolExecutor) -> list[Silhouette]:
    """Reduced masks of all cameras at a frame; reading them checks (and converts) the images.

    Raises:
        DataError: an image is unsound, or all masks of the frame are empty.
    """
    found = list(pool.map(lambda c: hulls.silhouette(images.read(c, frame)[..., 3] >= capture_images.MASK_LEVEL, reductions[c]), range(len(images))))
    empty = [images.cameras[i].name for i, s in enumerate(found) if not s.subject]
    if len(empty) == len(found):
        hint = "dataset.background_tolerance" if images.rule.kind in ("colour", "plates") else "the masks"
        raise DataError(f"{images.view.folder}: the masks of all {len(found)} cameras are empty at frame {frame}. Check {hint}, or choose other frames.")
    if empty:
        log.warning("frame %d: empty masks do not vote: %s", frame, ", ".join(empty))
    return found


# The box.


def with_proposed_box(plan: Plan, pool: ThreadPoolExecutor, frames: list[int]) -> Plan:
    """The plan with a box around the visual hulls of `frames`, plus a margin."""
    centre = hulls.meeting_point(plan.c2w)
    unknown = f"{plan.root}: the capture's json gives no box ('aabb') and none can be proposed"
    how = "Give dataset.box: [[x, y, z], [x, y, z]] in world units."
    if centre is None:
        raise DataError(f"{unknown}: the cameras look in (almost) parallel directions. {how}")
    reach = float(np.linalg.norm(plan.c2w[:, :3, 3] - centre, axis=1).max())
    reductions = [max(1, -(-max(lens.size) // SEARCH_SIDE)) for lens in plan.train.lenses]
    box = None
    for frame in log_module.progress(frames, "dataset: box", log):
        masks = silhouettes(plan.train, frame, reductions, pool)
        if box is not None and outside_shares(masks, plan, coverages(box, plan, reductions)).max() == 0:
            continue  # the box holds this frame already
        found = hulls.subject_box(masks, plan.K, plan.c2w, centre - reach, centre + reach)
        if found is None:
            raise DataError(
                f"{unknown}: no point of space lies in the masks of frame {frame}. {disagreement(masks, plan, np.stack([centre - reach, centre + reach]))} {how}"
            )
        box = found if box is None else np.stack([np.minimum(box[0], found[0]), np.maximum(box[1], found[1])])
    box += BOX_MARGIN * np.array([[-1.0], [1.0]]) * (box[1] - box[0])
    check_near_origin(box, plan.root)
    log.info("proposed box: %s", box.round(4).tolist())
    return dataclasses.replace(plan, box=box, box_source="proposed from the visual hulls")


def check_near_origin(box: np.ndarray | None, root: Path) -> None:
    """Refuse a box so far from the origin that meshes, whose coordinates are of single precision in every format, would be lost in rounding.

    Raises:
        DataError: says how far, and what to subtract.
    """
    if box is None:
        return
    edge, middle = float((box[1] - box[0]).max()), box.mean(0)
    if np.abs(box).max() * np.finfo(np.float32).eps / 2 > COARSEST * edge:
        raise DataError(
            f"{root}: the box {box.tolist()} lies {np.abs(box).max() / edge:.0f} of its edges from the origin, where single precision, which mesh files use, resolves "
            f"no more than 1/{edge / np.spacing(np.float32(np.abs(box).max())):.0f} of an edge. Subtract {np.round(middle).tolist()} from the cameras' positions and the box."
        )


def coverages(box: np.ndarray, plan: Plan, reductions: list[int]) -> list[np.ndarray]:
    """For each training camera the reduced pixels whose rays meet the box, and their neighbours."""
    result = []
    for lens, c2w, reduction in zip(plan.train.lenses, plan.c2w, reductions):
        padded = np.pad(hulls.box_coverage(box, lens.size, reduction, lens.K, c2w), 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        result.append(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])
    return result


def outside_shares(masks: list[Silhouette], plan: Plan, covered: list[np.ndarray]) -> np.ndarray:
    """Share of each camera's mask whose rays miss the box, f64 [C]; 0 for an empty mask."""
    return np.array([np.count_nonzero(m.mask & ~c) / max(np.count_nonzero(m.mask), 1) for m, c in zip(masks, covered)])


def check_inside(frame: int, masks: list[Silhouette], shares: np.ndarray, plan: Plan, tolerance: float) -> float:
    """Refuse a subject that leaves the box: the masks of two cameras say so, or one mask and the visual hull, or most of one mask.

    One mask alone is a stray part of that mask, the hull alone a phantom of few cameras: both are only looked at.

    Args:
        shares: share of each camera's mask whose rays miss the box.
        tolerance: share above which a mask counts.

    Returns:
        share of the visual hull outside the box.

    Raises:
        DataError: names frame, cameras and shares.
    """
    similarity = spaces.similarity_from_box(plan.box)
    extent = (plan.box[1] - plan.box[0]) / 2 * spaces.scale_of(similarity)
    beyond = hulls.share_beyond(extent, masks, plan.K, spaces.transform_poses(similarity, plan.c2w))
    bad = np.flatnonzero(shares > tolerance)
    named = ", ".join(f"{plan.train.cameras[i].name} {100 * shares[i]:.0f} %" for i in bad)
    if len(bad) >= min(2, len(shares)) or (len(bad) and beyond > tolerance / 4) or shares.max() > ELSEWHERE:
        alone = "Check that camera's pose and masks. " if len(bad) == 1 < len(shares) else ""
        raise DataError(
            f"{plan.root}: at frame {frame} the subject reaches outside the box in {len(bad)} of {len(shares)} cameras (share of the mask outside: {named}). {alone}"
            f"The box, from {plan.box_source}, is {plan.box.tolist()} in world units. Enlarge it with dataset.box, or check that masks hold the subject alone (`instant-nk check`)."
        )
    if len(bad):
        log.warning("frame %d: the mask of one camera reaches outside the box: %s", frame, named)
    return beyond


def check_agreement(frame: int, hull: np.ndarray, masks: list[Silhouette], poses: np.ndarray, plan: Plan) -> None:
    """Refuse masks and cameras that contradict each other: the visual hull accounts for less than half of most masks.

    Args:
        poses: camera-to-scene of the training cameras, f64 [C, 4, 4].
    """
    share = float(np.median(hulls.explained_shares(hull, masks, plan.K, poses)))
    if share < LEAST_AGREEMENT:
        raise DataError(
            f"{plan.root}: masks and cameras contradict each other at frame {frame}: points that lie in all masks account for {100 * share:.0f} % of a mask. {disagreement(masks, plan, plan.box)}"
        )


def subject_alone(hull: np.ndarray, masks: list[Silhouette], poses: np.ndarray, plan: Plan) -> tuple[np.ndarray, float]:
    """A visual hull without what lies outside the box or is a phantom of cones that meet where few cameras look.

    Args:
        poses: camera-to-scene of the training cameras, f64 [C, 4, 4].

    Returns:
        bool [R, R, R], and the share of the hull that was left out.
    """
    extent = (plan.box[1] - plan.box[0]) / 2 * spaces.scale_of(spaces.similarity_from_box(plan.box))
    kept = hulls.without_phantoms(hulls.within_box(hull, extent), masks, plan.K, poses)
    return kept, 1 - np.count_nonzero(kept) / max(np.count_nonzero(hull), 1)


def disagreement(masks: list[Silhouette], plan: Plan, box: np.ndarray) -> str:
    """Whose mask or pose contradicts the others within a region [[min], [max]], as a sentence: the camera without which the rest agree best."""
    poses = spaces.transform_poses(spaces.similarity_from_box(box), plan.c2w)
    agreement = []
    for left_out in range(len(masks)):
        others = [i for i, m in enumerate(masks) if i != left_out and m.subject]
        hull = hulls.visual_hull([masks[i] for i in others], plan.K[others], poses[others], 32, least_seen=len(others) // 2 + 1)
        agreement.append(float(np.median(hulls.explained_shares(hull, [masks[i] for i in others], plan.K[others], poses[others]))) if len(others) > 1 else 0.0)
    best = int(np.argmax(agreement))
    if agreement[best] > LEAST_AGREEMENT:
        return f"Without {plan.train.cameras[best].name} they account for {100 * agreement[best]:.0f} %: check that camera's pose and masks."
    return "Poses must be camera-to-world in OpenGL axes (y up, looking along -z), intrinsics for the size of the images, and images must belong to their camera and frame."


# Building.


def build(plan: Plan, store: Path, config: Config, pool: ThreadPoolExecutor) -> tuple[Dataset, dict[str, Any]]:
    """Hulls, checked images and the dataset that lists them."""
    resolution = config.dataset.hull_resolution
    similarity = spaces.similarity_from_box(plan.box)
    poses, K = spaces.transform_poses(similarity, plan.c2w), plan.K
    reductions = [hulls.pool_for(2 / resolution, k, c2w, np.zeros(3)) for k, c2w in zip(K, poses)]
    covered = coverages(plan.box, plan, reductions)
    header = artifact.make_header("hull", datasets.HULL_FORMAT, "dataset", layout.stage_config(config, "dataset"))
    partial = Dataset(
        store,
        plan.root.resolve(),
        tuple(plan.frames),
        plan.frames[0],
        camera_set(plan.train),
        camera_set(plan.heldout),
        similarity,
        plan.box,
        {},
        {},
        depth_unit=plan.depth_unit or Dataset.depth_unit,
    )
    numbers = {
        "frames": len(plan.frames),
        "cameras": len(plan.train),
        "heldout_cameras": len(plan.heldout),
        "mask_outside_box_worst_share": 0.0,
        "hull_outside_box_worst_share": 0.0,
        "phantoms_worst_share": 0.0,
    }
    files: dict[str, dict[str, list]] = {"images": {}, "heldout_images": {}, "depth": {}}
    measures = {}
    for frame in log_module.progress(plan.frames, "dataset", log):
        masks = silhouettes(plan.train, frame, reductions, pool)
        shares = outside_shares(masks, plan, covered)
        beyond = check_inside(frame, masks, shares, plan, config.dataset.outside_tolerance)
        numbers["mask_outside_box_worst_share"] = max(numbers["mask_outside_box_worst_share"], float(shares.max()))
        numbers["hull_outside_box_worst_share"] = max(numbers["hull_outside_box_worst_share"], beyond)
        hull = hulls.visual_hull(masks, K, poses, resolution)
        check_agreement(frame, hull, masks, poses, plan)
        hull, beside = subject_alone(hull, masks, poses, plan)
        numbers["phantoms_worst_share"] = max(numbers["phantoms_worst_share"], beside)
        partial.save_hull(frame, hull, header)
        measures[frame] = hulls.open_surface(hull)
        for kind, names in frame_files(plan, frame, store, pool).items():
            files[kind][str(frame)] = names
    if numbers["hull_outside_box_worst_share"] > config.dataset.outside_tolerance / 4:
        share = 100 * numbers["hull_outside_box_worst_share"]
        log.warning("%.1f %% of a visual hull lie outside the box, hidden from the masks: a part of the subject, or a phantom of few cameras", share)
    if numbers["phantoms_worst_share"]:
        log.info("left out what cameras cannot deny but no mask needs: at most %.1f %% of a visual hull", 100 * numbers["phantoms_worst_share"])
    canonical = config.dataset.canonical_frame
    if canonical is None:
        canonical = choose_canonical(measures)
    dataset = dataclasses.replace(
        partial, root=store.parent, canonical_frame=canonical, images=files["images"], heldout_images=files["heldout_images"], depth=files["depth"] or None
    )
    return dataset, {**numbers, "canonical_frame": canonical, "hull_surface": {str(t): m for t, m in measures.items()}}


def choose_canonical(surface: dict[int, int]) -> int:
    """Frame whose shape becomes the rest shape: the largest hull surface, and among nearly equal ones that nearest the middle of the clip.

    Limbs that touch or fold hide surface, so a large one means few self-contacts and much to see; the middle halves the way to the
    farthest frame. Being at the end of the clip costs `END_PENALTY` of the surface; the first frame pays nothing, because points that
    people follow from there would otherwise carry the error of two frames, that one's and the present one's.

    Args:
        surface: outer voxel faces of each frame's hull, by absolute frame.
    """
    frames = sorted(surface)
    half = max((len(frames) - 1) / 2, 0.5)
    scores = {t: surface[t] * (1 - END_PENALTY * abs(i - (len(frames) - 1) / 2) / half) for i, t in enumerate(frames)}
    scores[frames[0]] = surface[frames[0]]
    chosen = max(frames, key=lambda t: scores[t])
    log.info("canonical frame %d: hull surface %d voxel faces, %d to %d over the clip", chosen, surface[chosen], min(surface.values()), max(surface.values()))
    return chosen


def frame_files(plan: Plan, frame: int, store: Path, pool: ThreadPoolExecutor) -> dict[str, list]:
    """Where later stages find a frame's images; held-out images and depth maps are checked and converted here."""

    def heldout(camera: int) -> str | None:
        if plan.heldout.source(plan.heldout.cameras[camera], frame) is None:
            return None
        plan.heldout.read(camera, frame)
        return plan.heldout.location(camera, frame, store)

    result = {
        "images": [plan.train.location(c, frame, store) for c in range(len(plan.train))],
        "heldout_images": list(pool.map(heldout, range(len(plan.heldout)))),
    }
    if plan.depth_unit is not None:
        result["depth"] = list(pool.map(lambda c: plan.train.read_depth(c, frame, store), range(len(plan.train))))
    return result


def camera_set(images: Images) -> CameraSet:
    """Cameras of the images as later stages see them."""
    n = len(images)
    return CameraSet(
        tuple(c.name for c in images.cameras),
        np.array([c.c2w for c in images.cameras], np.float64).reshape(n, 4, 4),
        np.array([lens.K for lens in images.lenses], np.float64).reshape(n, 3, 3),
        np.array([lens.size for lens in images.lenses], np.int32).reshape(n, 2),
    )


# Files.


@contextlib.contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder within `folder` to work in, removed when the block ends; those of killed runs are removed too."""
    store = folder / f".partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".partial-*"):
            shutil.rmtree(old, ignore_errors=True)
        store.mkdir()
    except OSError as error:
        raise ContractError(f"{folder}: cannot be written ({error.strerror}). Free space or fix permissions, then run the same command again.") from None
    try:
        yield store
    finally:
        shutil.rmtree(store, ignore_errors=True)


def move_in(store: Path, folder: Path) -> None:
    """Replace hulls and converted images of an earlier run by those in `store`. The manifest goes first, so that none is left that lies."""
    (folder / "dataset.json").unlink(missing_ok=True)
    for name in ("hulls", "images", "images_test", "depth"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        if (store / name).is_dir():
            os.replace(store / name, folder / name)
