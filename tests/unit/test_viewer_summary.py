"""What `make demo` prints at its end: paths that exist, by the names they are asked for, and every number with its unit."""

import pytest

from instant_nk.errors import ContractError
from instant_nk.io import artifact, metrics
from instant_nk.layout import Paths
from instant_nk.viewer import summary


def test_report_glb_and_preview_video_are_named_where_they_lie(tmp_path):
    paths = Paths(tmp_path / "demo")
    header = artifact.make_header("metrics", metrics.FORMAT, "report")
    metrics.save(paths.metrics, header, {"chamfer_pct": 0.0618, "mesh_open_edges": 0}, {}, [], {})
    written = {
        "report": paths.report_page, "all sequences": tmp_path / "index.html", "animated mesh": paths.animation_glb, "preview video": paths.report / "turntable.mp4",
    }  # fmt: skip
    for path in written.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    told = [line for line in summary.text(paths.root).splitlines() if line]
    assert [line.rsplit(None, 1) for line in told[:4]] == [[name, str(path)] for name, path in written.items()]
    assert not any(line.startswith(("texture ", "rendering ")) for line in told)  # are not there
    numbers = {line.split()[0]: line.split()[1:] for line in told}
    assert numbers["chamfer_pct"][0] == "0.0618" and numbers["mesh_open_edges"] == ["0", "edges"] and numbers["wall_s"] == ["-"]


def test_a_sequence_without_a_report_is_named(tmp_path):
    with pytest.raises(ContractError, match="metrics.json"):
        summary.text(tmp_path / "none")
