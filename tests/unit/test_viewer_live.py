"""The live viewer: what it finds in a results folder, stage by stage, and that its server follows a run."""

import os
import sys
import urllib.request

import imageio.v3 as iio
import numpy as np
import pytest
from scipy.spatial import cKDTree

from instant_nk.errors import BackendError, ContractError
from instant_nk.io import artifact
from instant_nk.io import dataset as dataset_io
from instant_nk.io import graph as graph_io
from instant_nk.io import mesh as mesh_io
from instant_nk.io import motion as motion_io
from instant_nk.io import observation as observation_io
from instant_nk.layout import Paths
from instant_nk.viewer import live
from instant_nk.viewer.live_results import LiveResults, heat, shade

SCALE = 0.5  # scene units per world unit
WORLD_CENTRE = np.array([10.0, -4, 2])


class Run:
    """A run whose stages write one after the other, with a body that moves along x by 0.1 scene units a frame."""

    def __init__(self, root, body):
        self.paths, self.body, self.count = Paths(root), body, len(body.frames)
        self.rest = body.vertices[0]  # taken as scene units

    def header(self, name, form, stage):
        return artifact.make_header(name, form, stage)

    def dataset(self):
        c2w = np.tile(np.eye(4), (2, 1, 1))
        c2w[:, :3, 3] = WORLD_CENTRE + np.array([[0, 0, -6], [1, 0, -6]])
        c2w[:, :3, 1] = [0, -1, 0]
        c2w[:, :3, 0] = [-1, 0, 0]
        K = np.tile(np.array([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]), (2, 1, 1))
        rig = dataset_io.CameraSet(("a.png", "b.png"), c2w, K, np.full((2, 2), 16, np.int32))
        self.paths.root.mkdir(parents=True)
        iio.imwrite(self.paths.root / "a.png", np.full((16, 16, 4), 120, np.uint8))
        scene_from_world = np.eye(4) * SCALE
        scene_from_world[3, 3] = 1
        scene_from_world[:3, 3] = -SCALE * WORLD_CENTRE
        images = {str(f): ["../a.png", "../a.png"] for f in self.body.frames}
        data = dataset_io.Dataset(
            self.paths.dataset,
            self.paths.dataset,
            tuple(self.body.frames.tolist()),
            3,
            rig,
            rig,
            scene_from_world,
            np.array([[-1.0] * 3, [1.0] * 3]),
            images,
            images,
        )
        dataset_io.save(data, self.header("dataset", dataset_io.FORMAT, "dataset"))

    def canonical(self):
        mesh = mesh_io.Mesh(self.rest, self.body.faces, self.rest.copy(), self.body.colours)
        mesh_io.save(self.paths.canonical_mesh, mesh, self.header("mesh", mesh_io.MESH_FORMAT, "canonical"))

    def graph(self):
        nodes = self.rest[::20].copy()
        d, index = cKDTree(nodes).query(self.rest, k=4)
        weights = 1 / (d + 0.1)
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        edges = np.stack([np.arange(len(nodes) - 1), np.arange(1, len(nodes))], 1).astype(np.int32)
        graph = graph_io.Graph(nodes, np.ones(len(nodes), np.float32), edges, np.ones(len(edges), np.float32), index.astype(np.int32), weights)
        self.nodes = nodes
        graph_io.save(self.paths.graph, graph, self.header("graph", graph_io.FORMAT, "graph"))

    def observation(self, frame):
        points = self.rest[::3].copy()
        n = len(points)
        seen = observation_io.Observation(points, points, self.body.colours[::3].copy(), np.ones(n, np.float32), np.ones(n, np.int32), np.zeros(n, bool))
        observation_io.save(self.paths.observation(frame), seen, self.header("observation", observation_io.FORMAT, "observation"))

    def motion(self, frames, path=None):
        f, m = frames, len(self.nodes)
        shift = np.zeros((f, m, 3), np.float32)
        shift[..., 0] = 0.1 * np.arange(f)[:, None]
        numbers = [np.zeros(f, np.float32)] * 4
        motion = motion_io.Motion(self.body.frames[:f].copy(), np.tile(np.eye(3, dtype=np.float32), (f, m, 1, 1)), shift, np.ones(f, bool), *numbers)
        motion_io.save(path or self.paths.motion, motion, self.header("motion", motion_io.FORMAT, "registration"))

    def mesh(self, path, rows):
        body = self.body
        world = np.stack([(self.rest + [0, 0.2 * i, 0]) / SCALE + WORLD_CENTRE for i in rows]).astype(np.float32)
        part = mesh_io.Animation(body.frames[rows], world, body.faces, body.colours, body.sdf_residual[rows], body.cycle_error[rows], body.n_views[rows])
        mesh_io.save_animation(path, part, self.header("animation", mesh_io.ANIMATION_FORMAT, "mesh"))


@pytest.fixture
def run(tmp_path, animation):
    return Run(tmp_path / "results" / "demo", animation)


def test_it_shows_the_best_that_is_known_of_every_frame_as_stages_finish(run):
    run.dataset()
    results = LiveResults(run.paths)
    assert results.scan() and not results.scan()
    assert results.live(3) is None and results.nodes(3) is None and results.frames == (3, 4, 5, 6)
    run.canonical()
    run.graph()
    assert results.scan()
    assert np.array_equal(results.nodes(4), run.nodes) and results.live(4) is None
    run.motion(2, run.paths.registration / "motion.partial.npz")
    assert results.scan()
    vertices, _, _, source = results.live(4)
    assert source == "registration" and np.abs(vertices - (run.rest + [0.1, 0, 0])).max() < 1e-6
    assert results.live(5) is None and np.allclose(results.nodes(4), run.nodes + [0.1, 0, 0])
    run.mesh(run.paths.mesh_window("000003-000004"), [0, 1])
    assert results.scan()
    vertices, _, _, source = results.live(4)
    assert source == "mesh" and np.abs(vertices - (run.rest + [0, 0.2, 0])).max() < 1e-5
    run.mesh(run.paths.animation, [0, 1, 2, 3])
    assert results.scan() and results.live(6)[3] == "mesh"
    assert np.allclose(results.quality(5, "cycle_error"), run.body.cycle_error[2])


def test_the_status_counts_frames_and_repeats_the_newest_log(run):
    run.dataset()
    run.observation(4)
    run.paths.logs.mkdir()
    (run.paths.logs / "2_canonical.log").write_text("first\ncanonical step=300/700 psnr_db=27.1\n")
    results = LiveResults(run.paths)
    results.scan()
    status = results.status()
    assert "observed frames: 1 of 4" in status and "meshed frames: 0 of 4" in status
    assert status.endswith("2_canonical: canonical step=300/700 psnr_db=27.1")
    assert len(results.observation(4).points) == 54 and results.observation(3) is None


def test_an_artifact_of_another_version_is_named_and_the_rest_is_shown(run):
    run.dataset()
    run.canonical()
    header = {**run.header("graph", graph_io.FORMAT + 1, "graph"), "package_version": "9.9"}
    artifact.save_npz(run.paths.graph, header, nothing=np.zeros(1))
    results = LiveResults(run.paths)
    results.scan()
    assert results.graph is None and results.canonical is not None
    assert "wanted format" in results.status() and "9.9" in results.status()


def test_a_folder_without_results_is_one_clear_error(tmp_path):
    with pytest.raises(ContractError, match=r"no results of a sequence here.*Give a folder such as results/demo"):
        LiveResults(Paths(tmp_path)).scan()


def test_heat_goes_from_blue_to_red_and_shadings_are_colours(run):
    colours = heat(np.array([0.0, 1.0, 5.0]), 1.0)
    assert colours[0, 2] > 0.6 and (colours[1] == colours[2]).all() and colours[1, 0] > 0.7
    run.dataset()
    run.mesh(run.paths.animation, [0, 1, 2, 3])
    results = LiveResults(run.paths)
    results.scan()
    vertices, faces, plain, _ = results.live(3)
    for shading in live.SHADINGS:
        values = shade(results, 3, vertices, faces, plain, shading)
        assert values.shape == vertices.shape and 0 <= values.min() and values.max() <= 1, shading


@pytest.fixture
def viewer(run):
    pytest.importorskip("viser", reason="viser is not installed: pip install viser")
    run.dataset()
    made = live.LiveViewer(run.paths, port=18080, watch=True)
    yield made
    made.server.stop()


def test_the_server_answers_and_follows_a_run(run, viewer, monkeypatch):
    viewer.step()
    assert urllib.request.urlopen(viewer.address, timeout=10).status == 200
    assert viewer.shown["live mesh"] == [] and len(viewer.shown["cameras False"]) == 2
    monkeypatch.setattr(live, "SCAN_S", 0.0)
    run.canonical()
    run.graph()
    run.observation(3)
    run.mesh(run.paths.animation, [0, 1, 2, 3])
    for name in ("wireframe", "canonical mesh", "graph", "observation"):
        viewer.layers[name].value = True
    viewer.dirty = True
    viewer.step()
    assert {name: len(handles) for name, handles in viewer.shown.items()} == {
        "live mesh": 1, "wireframe": 1, "canonical mesh": 1, "graph": 2, "observation": 1, "cameras False": 2,
    }  # fmt: skip
    assert "meshed frames: 4 of 4" in viewer.status.content


def test_playing_walks_through_the_frames_and_images_follow(run, viewer, monkeypatch):
    run.mesh(run.paths.animation, [0, 1, 2, 3])
    viewer.results.scan()
    viewer.layers["images"].value = True
    viewer.playing.value = True
    seen = []
    for _ in range(5):
        viewer.last_step = 0.0
        viewer.step()
        seen.append(viewer.frame)
    assert seen == [4, 5, 6, 3, 4]
    assert "cameras 4" in viewer.shown and viewer.shown["cameras 4"][0].image is not None
    viewer.layers["cameras"].value = False
    viewer.draw()
    assert not [name for name in viewer.shown if name.startswith("cameras")]


def test_without_viser_the_message_says_what_to_install(run, monkeypatch):
    run.dataset()
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(BackendError, match=r"pip install viser, or open 8_report/index\.html"):
        live.LiveViewer(run.paths)


def test_a_changed_file_is_read_again(run):
    run.dataset()
    run.canonical()
    results = LiveResults(run.paths)
    results.scan()
    run.rest = run.rest * np.float32(2)
    run.canonical()
    os.utime(run.paths.canonical_mesh, ns=(1, 1))
    assert results.scan() and np.array_equal(results.canonical.vertices, run.rest)
