# Config, names and input functions shared by the rules; no rules here.
#
# A rule re-runs when its inputs, its `params` or its text change. `params.reads` holds exactly what the stage reads of the
# config (layout.STAGE_READS) and `params.version` its STAGE_VERSION; `params.config` is the same for the command line, cut
# down to what differs from the defaults. RUNTIME reaches the command line as a global, so that device, threads and log
# level re-run nothing.
import functools
import json
import sys
import time
from pathlib import Path

from snakemake.logging import logger

from instant_nk import config as schema
from instant_nk import entry, layout
from instant_nk.errors import ConfigError, InstantNKError
from instant_nk.io import capture as captures
from instant_nk.io import run_note


def stop(error):
    """End Snakemake with one clear message; a WorkflowError would bury it in lines of rule files."""
    logger.error(f"error: {type(error).__name__}: {error}")
    sys.exit(error.exit_code)


def or_stop(work):
    """The result of `work`, or the message of what the user has to mend."""
    try:
        return work()
    except InstantNKError as error:
        stop(error)


CONFIG = or_stop(lambda: schema.parse(config))
SEQUENCES = or_stop(lambda: schema.for_sequences(CONFIG, config))
or_stop(lambda: [schema.check_packages(settings) for settings in SEQUENCES.values()])
RESULTS = CONFIG.runtime.results
RUNTIME = json.dumps(schema.beyond_defaults({"runtime": schema.to_dict(CONFIG.runtime)}).get("runtime", {}))
STARTED = time.time()
SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
LOGS = f"{RESULTS}/{{sequence}}/logs"
CORES = workflow.cores or 8  # None when a cluster counts them

# Configs of the built-in captures this run needs, by the name of their folder.
SYNTHETIC = {captures.resolve_capture(c).name.removeprefix("synthetic-"): c for c in SEQUENCES.values() if c.capture == schema.SYNTHETIC}

# Paths with wildcards, for the rules' inputs and outputs.
AT = layout.Paths(Path(RESULTS) / "{sequence}")


wildcard_constraints:
    sequence=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    window=r"\d+-\d+",
    batch=r"\d+-\d+",
    span=r"\d+-\d+",
    digest="|".join(SYNTHETIC) or "none",  # one that an earlier run wrote is a capture like any other


def config_of(wildcards):
    """Config of a sequence of this run."""
    if wildcards.sequence not in SEQUENCES:
        stop(ConfigError(f"there is no sequence '{wildcards.sequence}' in this run; it has {', '.join(SEQUENCES)}. Name it with --config sequence=…"))
    return SEQUENCES[wildcards.sequence]


def reads(stage):
    """Input function for `params`: what `stage` reads of its sequence's config."""
    return lambda wildcards: json.dumps(layout.stage_values(config_of(wildcards), stage))


def command(stage):
    """Input function for `params`: the same as it stands on the command line."""
    return lambda wildcards: json.dumps(schema.beyond_defaults(layout.stage_values(config_of(wildcards), stage)))


def say_what_failed():
    """Repeat, after all of Snakemake's own lines, the error each failed job ended with."""
    for folder in [Path(RESULTS) / "logs", *(layout.paths_of(settings).logs for settings in SEQUENCES.values())]:
        for path in sorted(folder.glob("*.log")):
            if path.stat().st_mtime >= STARTED:
                lines = path.read_text(errors="replace").splitlines()
                if lines and lines[-1].startswith("error: "):
                    logger.error(f"{path}: {lines[-1]}")


def take_results():
    """Keep runs from other places out of the sequences' folders until this one ends."""
    run_note.take([layout.paths_of(settings).root for settings in SEQUENCES.values()], Path.cwd())


def say_what_changed_meanwhile():
    """Warn where a capture is no longer what this run began with: some of its jobs have read one thing, some another."""
    for sequence, settings in SEQUENCES.items():
        if (found := listing_of(sequence)) is None:
            continue
        try:
            changes = captures.describe_changes(found, captures.listing(settings.capture))
        except InstantNKError as error:
            changes = str(error)
        if changes:
            again = f"Run the same command again: sequence '{sequence}' is then computed anew."
            logger.warning(f"The capture {settings.capture} changed while it was used: {changes}. {again}")


def gpus(wildcards):
    """GPUs of a job that can use one: on `auto`, where this machine has one or a cluster will choose the machine."""
    device = CONFIG.runtime.device
    return int(device == "cuda" or (device == "auto" and (workflow.non_local_exec or entry.count_gpus() > 0)))


# What the capture and other inputs outside results/ are made of.


@functools.cache
def frames_of(sequence):
    """Absolute frame numbers of a sequence, from its capture and `frames`."""
    return or_stop(lambda: captures.frames_of(SEQUENCES[sequence]))


@functools.cache
def listing_of(sequence):
    """The capture's files as this run found them; None of the built-in one."""
    settings = SEQUENCES[sequence]
    return None if settings.capture == schema.SYNTHETIC else or_stop(lambda: captures.listing(settings.capture))


@functools.cache
def capture_digest_of(sequence):
    """Digest of the capture's listing; says what changed since the dataset was made, if anything did."""
    settings, found = SEQUENCES[sequence], listing_of(sequence)
    if found is None:
        return None
    if changes := captures.changes_since(layout.paths_of(settings).manifest, found):
        logger.warning(f"The capture {settings.capture} changed: {changes}. Sequence '{sequence}' is computed again from stage 'dataset' on.")
    return captures.digest(found)


def capture_digest(wildcards):
    return capture_digest_of(wildcards.sequence)


def capture_files(wildcards):
    """Input function: the capture's json files; its images are watched through `capture_digest`."""
    settings = config_of(wildcards)
    if settings.capture == schema.SYNTHETIC:
        return captures.resolve_capture(settings) / "transforms.json"
    return or_stop(lambda: captures.capture_inputs(settings.capture))


def existing(path, key):
    """`path`, which the user named with config key `key`."""
    if not Path(path).exists():
        stop(ConfigError(f"config key '{key}': {path} does not exist (relative paths start at {Path.cwd()})."))
    return Path(path)


def files_of(path):
    """A file, or every file below a folder."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def given_mesh(wildcards):
    """Input function: the canonical mesh the user brings, if any."""
    mesh = config_of(wildcards).canonical.mesh
    return existing(mesh, "canonical.mesh") if mesh else []


def given_meshes(wildcards):
    """Input function: the per-frame meshes the user brings, if any."""
    settings = config_of(wildcards).observation
    return files_of(existing(settings.folder, "observation.folder")) if settings.provider == "meshes" else []


def given_motion(wildcards):
    """Input function: the files of an external tracker's motion or of a rig, if one is used."""
    settings = config_of(wildcards).registration
    files = files_of(existing(settings.folder, "registration.folder")) if settings.source != "solver" else []
    extra = {"registration.rig_poses": settings.rig_poses, "registration.rig_transform": settings.rig_transform}
    return files + [existing(path, key) for key, path in extra.items() if path]


def given_nodes(wildcards):
    """Input function: the nodes of an external tracker, if its motion is used; the graph stands on them and reads nothing else of it."""
    tracked = config_of(wildcards).registration.source == "ed_folder"
    return [path for path in given_motion(wildcards) if path.name == "node.txt"] if tracked else []


# What a job needs, from the capture's size. A retry gets as much memory and time again as the first attempt had.


@functools.cache
def rig_of(sequence):
    """Number of training cameras and MiB of one frame's images as RGBA; of a capture that fails its checks later, a guess."""
    settings = SEQUENCES[sequence]
    if settings.capture == schema.SYNTHETIC:
        cameras, width, height = settings.synthetic.cameras, settings.synthetic.image_size, settings.synthetic.image_size
    else:
        found = or_stop(lambda: captures.read(settings.capture)).train.cameras
        cameras, (width, height) = len(found), next((camera.size for camera in found if camera.size), (2048, 2048))
    return cameras, cameras * width * height * 4 / 2**20


def memory_mb(base, images_of=lambda settings: 0, per_frame=lambda settings: 0):
    """Input function for `resources`.

    `base` MB, the pixels of `images_of(config)` frames held at once, and `per_frame(config)` MB for every frame of the sequence.
    """

    def mb(wildcards, attempt):
        settings, sequence = config_of(wildcards), wildcards.sequence
        held = images_of(settings) * rig_of(sequence)[1] * 1.5 if images_of(settings) else 0
        return int(attempt * (base + held + per_frame(settings) * len(frames_of(sequence))))

    return mb


def minutes(base, per_frame=0.0, per_image=0.0):
    """Input function for `resources`: minutes, growing with the frames and images of the sequence."""

    def count(wildcards, attempt):
        frames = len(frames_of(wildcards.sequence))
        images = frames * rig_of(wildcards.sequence)[0] if per_image else 0
        return int(attempt * (base + per_frame * frames + per_image * images))

    return count


def baking_minutes(wildcards, attempt):
    """Input function for `resources`: minutes of joining windows; where every frame gets its own texture, all images are looked at twice."""
    own = config_of(wildcards).mesh.texture == "per_frame"
    return minutes(30, per_frame=0.1, per_image=0.02 if own else 0)(wildcards, attempt)


def animation_mb(settings):
    """MB of one frame of the animated mesh and its quality, as it is joined and drawn."""
    return (settings.canonical.target_faces or 200000) / 2 * 24 * 3 / 1e6


def joining_mb(wildcards, attempt):
    """Input function for `resources`: MB of joining windows: the animation, and the texture with what is summed up under every pixel."""
    settings = config_of(wildcards)
    baked = 0 if settings.mesh.texture == "vertex" else 220 * settings.mesh.texture_size**2 / 1e6
    return memory_mb(2500 + baked, per_frame=animation_mb)(wildcards, attempt)


# What the parallel stages are cut into; known before anything runs.


def batches_of(sequence):
    """Batches of frames observed by one job each."""
    return layout.batches(frames_of(sequence), SEQUENCES[sequence].observation.frames_per_job)


@functools.cache
def windows_of(sequence):
    """Windows of frames fitted by one job each."""
    field = SEQUENCES[sequence].field
    return layout.windows(frames_of(sequence), field.window_frames, field.overlap)


def every_sequence(path):
    """`path` (with wildcards) for all sequences of this run."""
    return expand(str(path), sequence=SEQUENCES)


def every_batch(sequence):
    """The observation of all frames of a sequence."""
    return expand(str(AT.observation_batch("{batch}")), sequence=sequence, batch=batches_of(sequence))


@functools.cache
def spans_of(sequence):
    """Windows of a long capture gathered for one job each; empty where every window is a job of its own."""
    return layout.spans(windows_of(sequence))


def every_window(path, span_path, sequence):
    """What says that all windows of a sequence are done: `path` per window, or in a long capture `span_path` per span (both with wildcards)."""
    if spans_of(sequence):
        return expand(str(span_path), sequence=sequence, span=spans_of(sequence))
    return expand(str(path), sequence=sequence, window=windows_of(sequence))


def every_field(sequence):
    """The residual fields of all windows of a sequence."""
    return every_window(AT.field("{window}"), AT.field_span("{span}"), sequence)


def every_carried(sequence):
    """The vertices of all windows of a sequence."""
    return every_window(AT.mesh_window("{window}"), AT.mesh_span("{span}"), sequence)


def mesh_of(sequence):
    """What says that the mesh stage of a sequence is done: its animation, or in a mode that does not track the list of its surfaces."""
    tracked = SEQUENCES[sequence].field.dyna_mode == "deform"
    return str(AT.animation if tracked else AT.surfaces).format(sequence=sequence)


def span_minutes(base):
    """Input function for `resources`: `base` minutes for each window of a span."""
    return lambda wildcards, attempt: attempt * base * len(spans_of(wildcards.sequence)[wildcards.span])


def windows_in(wildcards):
    """Input function for `params`: the windows of a span, for the command line."""
    return " ".join(spans_of(wildcards.sequence)[wildcards.span])


def registration_evidence(wildcards):
    """Input function: observations, unless the motion is taken from elsewhere as it is."""
    settings = config_of(wildcards).registration
    return every_batch(wildcards.sequence) if settings.source == "solver" or (settings.source == "rig" and settings.rig_refine) else []
