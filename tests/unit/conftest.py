"""Fixtures shared by the unit tests: a small animation, and the Khronos validator where it is installed."""

import json
import shutil
import subprocess
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import trimesh

from instant_nk.geometry.texture import Texture
from instant_nk.io.mesh import Animation

ROOT = Path(__file__).parents[2]


def bending_body(frames: int = 4, subdivisions: int = 2, offset=(0.0, 0.0, 0.0), scale: float = 1.0) -> Animation:
    """A stretched sphere that bends about the z axis; frame numbers start at 3."""
    sphere = trimesh.creation.icosphere(subdivisions)
    rest = sphere.vertices * [0.3, 1.0, 0.3]
    rng = np.random.default_rng(0)
    n, v = frames, len(rest)
    angle = np.linspace(0, 0.8, n)[:, None] * rest[:, 1]  # radians, grows along the body
    x, y = rest[:, 0] * np.cos(angle) - rest[:, 1] * np.sin(angle), rest[:, 0] * np.sin(angle) + rest[:, 1] * np.cos(angle)
    vertices = np.stack([x, y, np.broadcast_to(rest[:, 2], x.shape)], -1) * scale + np.asarray(offset)
    return Animation(
        frames=np.arange(3, 3 + n, dtype=np.int32),
        vertices=vertices.astype(np.float32),
        faces=sphere.faces.astype(np.int32),
        colours=rng.random((v, 3)).astype(np.float32),
        sdf_residual=rng.random((n, v)).astype(np.float32),
        cycle_error=rng.random((n, v)).astype(np.float32),
        n_views=rng.integers(0, 24, (n, v)).astype(np.int32),
    )


def checker_texture(animation) -> Texture:
    """Every triangle of the mesh in a chart of its own."""
    t = len(animation.faces)
    uv = np.tile(np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]], np.float32), (t, 1))
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2, ::2] = [200, 40, 10]
    return Texture(uv, animation.faces.ravel(), np.arange(3 * t, dtype=np.int32).reshape(t, 3), image)


@pytest.fixture(scope="session")
def make_texture():
    return checker_texture


@pytest.fixture
def animation() -> Animation:
    return bending_body()


@pytest.fixture(scope="session")
def make_animation():
    return bending_body


@pytest.fixture(scope="session")
def khronos_issues():
    """Function: every error and warning the Khronos glTF validator has about a file."""
    folder = ROOT / ".cache" / "node"
    if shutil.which("node") is None or not (folder / "node_modules" / "gltf-validator").is_dir():
        pytest.skip("the Khronos validator is not installed: npm install --prefix .cache/node gltf-validator")
    script = (
        "require('gltf-validator').validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[1]))).then(r=>console.log(JSON.stringify(r.issues)))"
    )

    def run(path: Path) -> list[dict]:
        done = subprocess.run(["node", "-e", script, str(path)], cwd=folder, capture_output=True, text=True, check=True)
        issues = json.loads(done.stdout)
        return [m for m in issues["messages"] if m["severity"] <= 1]

    return run


@pytest.fixture
def full_disk(monkeypatch):
    """Every file opened for writing raises "no space left" after the first 1000 bytes."""
    import builtins
    import errno

    real = builtins.open

    class Full:
        def __init__(self, handle):
            self.handle, self.left = handle, 1000

        def write(self, data):
            self.left -= len(data) if isinstance(data, (bytes, str)) else memoryview(data).nbytes
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.handle.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.handle.close()

        def __getattr__(self, name):
            return getattr(self.handle, name)

    def limited(file, mode="r", *args, **kwargs):
        handle = real(file, mode, *args, **kwargs)
        return Full(handle) if "w" in mode else handle

    monkeypatch.setattr(builtins, "open", limited)


@pytest.fixture(scope="session")
def photograph(tmp_path_factory):
    """Function: what headless Chromium shows of an HTML file, u8 [H, W, 3]; `address` is appended to its path. Network is cut off."""
    browser = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)
    if browser is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")

    def shoot(page: Path, address: str = "", size: tuple[int, int] = (800, 700)) -> np.ndarray:
        target = tmp_path_factory.mktemp("screenshot") / "page.png"
        flags = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars", "--virtual-time-budget=8000"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={target.parent}/profile", f"--window-size={size[0]},{size[1]}"]
        subprocess.run([browser, *flags, f"--screenshot={target}", f"file://{page}{address}"], capture_output=True, timeout=120, check=True)
        return iio.imread(target)[..., :3]

    return shoot
