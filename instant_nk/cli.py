"""The `instant-nk` command: one stage, the config, a look at results. Heavy imports wait for the command that needs them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from instant_nk import __version__, entry, layout, log
from instant_nk import config as schema
from instant_nk.errors import ConfigError

STAGE_HELP = {
    "dataset": "validate a capture and write the dataset",
    "canonical": "reconstruct the canonical surface and colour",
    "graph": "place the deformation graph's nodes",
    "observation": "observe the live surface of a batch of frames (--part)",
    "registration": "estimate the nodes' motion over the sequence",
    "field": "fit the residual field of a window (--part)",
    "mesh": "carry the canonical vertices through a window (--part), or join the windows",
    "report": "measure, draw and write the report",
}


def overrides(pairs: list[str]) -> dict[str, object]:
    """`["field.steps=300"]` as a table; values are read as YAML, like Snakemake's `--config`."""
    import yaml

    result: dict[str, object] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise ConfigError(f"--set {pair}: wanted key=value, e.g. field.steps=300.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: not valid YAML ({str(error).splitlines()[0]}). Put quotes around text with special characters.") from None
        result = schema.merge(result, {name: value})
    return result


def read_values(args: argparse.Namespace) -> dict[str, object]:
    """What a command's `--config` file and `--set` pairs say, as plain values."""
    return schema.merge(schema.read(args.config) if args.config else {}, overrides(args.set))


def read_config(args: argparse.Namespace) -> schema.Config:
    """The config of a command: defaults, preset, `--config` file, `--set` pairs."""
    return schema.parse(read_values(args))


def run_stage(args: argparse.Namespace) -> None:
    values = read_values(args)
    for one in schema.for_sequences(schema.parse(values), values).values():
        log.setup(one.runtime.log_level)
        entry.run_stage(args.command, one, args.part)


def print_config(args: argparse.Namespace) -> None:
    if args.preset:
        args.set.append(f"preset={args.preset}")
    print(schema.template() if args.template else schema.to_yaml(read_config(args)), end="")


def check_capture(args: argparse.Namespace) -> None:
    from instant_nk.stages import check

    config = schema.parse(schema.merge(read_values(args), {"capture": args.path}))
    log.setup(config.runtime.log_level)
    print(check.run_check(config, Path(args.output)))


def export_ed(args: argparse.Namespace) -> None:
    from instant_nk.stages import exchange

    print(exchange.export_ed(layout.results_of(args.results), Path(args.output)))


def import_ed(args: argparse.Namespace) -> None:
    from instant_nk.stages import exchange

    print(exchange.import_ed(Path(args.path), Path(args.output), args.format, Path(args.transform) if args.transform else None))


def register(args: argparse.Namespace) -> None:
    config = read_config(args)
    log.setup(config.runtime.log_level)
    if bool(args.rgbd) == bool(args.source) or bool(args.source) != bool(args.target):
        raise ConfigError("register: wanted SOURCE and TARGET, or --rgbd COLOUR0 DEPTH0 COLOUR1 DEPTH1 --intrinsics FILE.")
    if args.rgbd and not args.intrinsics:
        raise ConfigError("register --rgbd: wanted --intrinsics FILE too: 3x3 or 4x4 numbers, or json.")
    if len(args.mask) > 2 or args.depth_scale <= 0:
        raise ConfigError(f"register --rgbd: wanted one or two masks and a --depth-scale above zero, got {len(args.mask)} and {args.depth_scale:g}.")
    if Path(args.output).suffix.lower() != ".ply":
        raise ConfigError(f"register: --output must be a .ply, got {args.output}.")
    import torch  # noqa: F401  before `prepare`, which prepares only what is loaded

    from instant_nk.stages import register as stage

    device = entry.prepare(config.runtime, None)
    pair = (
        stage.from_rgbd(args.rgbd, Path(args.intrinsics), args.mask, args.depth_scale) if args.rgbd else stage.from_files(Path(args.source), Path(args.target))
    )
    print(stage.run_register(*pair, Path(args.output), stage.settings_of(config, not args.no_colour, bool(args.rgbd)), device, config.runtime.seed))


def print_status(args: argparse.Namespace) -> None:
    from instant_nk.stages import status

    print(status.run_status(layout.results_of(args.results)))


def print_verify(args: argparse.Namespace) -> None:
    from instant_nk.stages import verify

    print(verify.run_verify(layout.results_of(args.results)))


def track_points(args: argparse.Namespace) -> None:
    from instant_nk.stages import track

    print(track.run_track(layout.results_of(args.results), Path(args.points), Path(args.output), args.frame))


def render_path(args: argparse.Namespace) -> None:
    config = read_config(args)
    log.setup(config.runtime.log_level)
    paths = layout.results_of(args.results)
    if args.side < 2:
        raise ConfigError(f"render: wanted --side of 2 pixels or more, got {args.side}.")
    import torch  # noqa: F401  before `prepare`, which prepares only what is loaded

    from instant_nk.stages import render

    job = layout.Job(config, paths, entry.prepare(config.runtime, None))
    print(render.run_render(job, args.path, Path(args.output or paths.root / "render"), args.side))


def view(args: argparse.Namespace) -> None:
    from instant_nk.viewer import live

    log.setup()
    live.serve(layout.results_of(args.results), args.host, args.port, args.watch)


def print_summary(args: argparse.Namespace) -> None:
    from instant_nk.viewer import summary

    print(summary.text(layout.results_of(args.results).root))


def with_config(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", metavar="FILE", help="configuration file; without it the defaults")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override one key, e.g. --set field.steps=300 (repeatable)")
    return parser


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instant-nk", description="Calibrated multi-view video in, one tracked animated mesh out. The whole pipeline: snakemake --cores N."
    )
    parser.add_argument("--version", action="version", version=f"instant-nk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for stage in layout.STAGES:
        command = with_config(commands.add_parser(stage, help=STAGE_HELP[stage], description=f"Stage '{stage}': {STAGE_HELP[stage]}."))
        command.add_argument("--part", metavar="FIRST-LAST", help="window or batch of frames, e.g. 000000-000009")
        command.set_defaults(run=run_stage)
    command = with_config(commands.add_parser("config", help="print the effective configuration in full, every key explained"))
    command.add_argument("--preset", choices=list(schema.PRESETS), help="short for --set preset=NAME")
    command.add_argument("--template", action="store_true", help="print config/config.yaml as shipped instead")
    command.set_defaults(run=print_config)
    command = with_config(commands.add_parser("check", help="say whether a capture is sound, and show it in one picture"))
    command.add_argument("path", metavar="CAPTURE", help="folder with transforms.json")
    command.add_argument("-o", "--output", metavar="PNG", default="check.png", help="where to write the picture (default: check.png)")
    command.set_defaults(run=check_capture)
    command = commands.add_parser("export-ed", help="write a sequence's motion as an ED folder: node.txt and accumAffine/")
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.add_argument("output", metavar="FOLDER", help="folder to write")
    command.set_defaults(run=export_ed)
    command = commands.add_parser("import-ed", help="turn another tracker's motion (.warpfield files, SVR-L0 rows) into an ED folder")
    command.add_argument(
        "path", metavar="PATH", help=".warpfield file or folder of them, named by frame; or a folder with node.txt and a file of SVR-L0 rows per frame"
    )
    command.add_argument("-o", "--output", metavar="FOLDER", required=True, help="folder to write: node.txt and accumAffine/")
    command.add_argument("--format", choices=["warpfield", "svr-l0"], help="what PATH holds (default: found from the files)")
    command.add_argument(
        "--transform", metavar="FILE", help="4x4 similarity as text: the capture's world from the tracker's space (default: they are the same)"
    )
    command.set_defaults(run=import_ed)
    command = with_config(
        commands.add_parser("register", help="move one mesh or oriented point cloud onto another, non-rigidly; or one depth frame onto another")
    )
    command.add_argument("source", metavar="SOURCE", nargs="?", help="mesh (.ply, .obj, .stl, .off, .glb) or .ply of points with normals, which is moved")
    command.add_argument("target", metavar="TARGET", nargs="?", help="the same, at rest; same unit as SOURCE")
    command.add_argument("-o", "--output", metavar="PLY", required=True, help="the moved source: its own vertices in their order, its own faces")
    command.add_argument(
        "--rgbd", metavar=("COLOUR0", "DEPTH0", "COLOUR1", "DEPTH1"), nargs=4, help="two frames of a depth camera instead; depth is 16-bit PNG"
    )
    command.add_argument("--intrinsics", metavar="FILE", help="of the depth camera: 3x3 or 4x4 numbers, or json")
    command.add_argument("--mask", metavar="MASK", nargs="+", default=[], help="subject in the first depth frame, and in the second where there is one")
    command.add_argument(
        "--depth-scale", metavar="N", type=float, default=1000.0, help="depth units per unit of the result (default: 1000, millimetres to metres)"
    )
    command.add_argument("--no-colour", action="store_true", help="leave colours out of the comparison; they count where both surfaces have them")
    command.set_defaults(run=register)
    command = commands.add_parser("track", help="follow given points through the animation and write their trajectories")
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.add_argument("--points", metavar="FILE", required=True, help=".ply, .obj, or text with x y z per line; world coordinates")
    command.add_argument("--frame", metavar="N", type=int, help="absolute frame the points belong to (default: the first)")
    command.add_argument("-o", "--output", metavar="FILE", default="tracks.npz", help=".npz or .csv to write (default: tracks.npz)")
    command.set_defaults(run=track_points)
    command = with_config(commands.add_parser("render", help="render the trained fields along a camera path: rgb, depth and normal videos and frames"))
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.add_argument(
        "--path", metavar="orbit|CAMERAS.json", default="orbit", help="around the subject, or cameras as in a capture's transforms.json (default: orbit)"
    )
    command.add_argument("--side", metavar="PIXELS", type=int, default=512, help="longer side of the orbit's pictures, at most the images' (default: 512)")
    command.add_argument("-o", "--output", metavar="FOLDER", help="folder to write (default: RESULTS/render)")
    command.set_defaults(run=render_path)
    command = commands.add_parser("view", help="show a sequence's results in a browser, live, also over ssh")
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.add_argument("--watch", action="store_true", help="follow a run that is writing them")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=8080, help="default: 8080, or the next free one")
    command.set_defaults(run=view)
    command = commands.add_parser("summary", help="print where a sequence's results are, and its metrics")
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.set_defaults(run=print_summary)
    command = commands.add_parser("status", help="print which jobs of a sequence are done, running, failed or waiting, and the time left")
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.set_defaults(run=print_status)
    command = commands.add_parser("verify", help="read every file of a sequence and compare what it was made from: finds truncated and mixed files")
    command.add_argument("results", metavar="RESULTS", help="folder of one sequence, e.g. results/demo")
    command.set_defaults(run=print_verify)
    return parser


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = make_parser().parse_args(argv)
        args.run(args)

    return entry.guarded(work)


if __name__ == "__main__":
    sys.exit(main())
