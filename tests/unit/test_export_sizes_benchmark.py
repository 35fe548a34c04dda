"""The benchmark of export sizes writes every format."""

import re
import sys

from benchmarks import export_sizes


def test_every_format_is_written_and_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["export_sizes", "--voxel", "0.08", "--frames", "3", "--keep", str(tmp_path)])
    export_sizes.main()
    told = capsys.readouterr().out
    assert re.match(r"\d+ vertices, \d+ faces, 3 frames\n", told)
    names = ("npz", "ply", "glb", "skinned glb", "usd", "obj", "pc2", "player")
    assert [line[:12].strip() for line in told.splitlines()[1:]] == list(names)
    assert all(export_sizes.size(tmp_path / name.replace(" ", "_")) > 1000 for name in names)
    assert len(list((tmp_path / "ply").rglob("*.ply"))) == 3
