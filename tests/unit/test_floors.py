"""The house's floors (docs/conventions.md): imports run downwards only, and what must stay light stays light."""

import ast
import subprocess
import sys

import pytest

FLOORS = [
    {"errors", "config", "layout", "log"},
    {"kernels"},
    {"geometry"},
    {"io"},
    {"models"},
    {"fitting"},
    {"viewer"},
    {"stages"},
    {"entry", "cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
HEAVY = ("open3d", "trimesh", "snakemake", "matplotlib", "viser", "pxr", "xatlas", "imageio", "skimage", "tinycudann", "triton")
TORCH_AND_NUMPY_ALONE = ("kernels", "geometry", "models", "fitting")


def sources(repository):
    for path in sorted((repository / "instant_nk").rglob("*.py")):
        parts = path.relative_to(repository / "instant_nk").with_suffix("").parts
        yield path, parts[0], ast.parse(path.read_text())


def imports(tree):
    """Modules named by every import statement of a file, at any depth: (line, dotted name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_imports_point_down_only(repository):
    upward = []
    for path, floor, tree in sources(repository):
        if floor == "__init__":
            continue
        for line, name in imports(tree):
            parts = name.split(".")
            if parts[0] == "instant_nk" and len(parts) > 1 and parts[1] in LEVEL and LEVEL[parts[1]] > LEVEL[floor]:
                upward.append(f"{path.relative_to(repository)}:{line} imports {name}")
    assert not upward, "\n".join(upward)


def test_every_module_stands_on_a_floor(repository):
    assert {floor for _, floor, _ in sources(repository)} - {"__init__"} <= set(LEVEL)


def test_desktop_libraries_are_imported_where_they_serve(repository):
    """Not when a module is loaded: the GPU stages need torch and numpy alone."""
    early = []
    for path, floor, tree in sources(repository):
        if floor not in TORCH_AND_NUMPY_ALONE and floor not in ("config", "layout", "errors", "log", "entry", "cli"):
            continue
        top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        early += [
            f"{path.relative_to(repository)}:{line} imports {name}" for line, name in imports(top) if name.split(".")[0] in HEAVY and "triton" not in path.stem
        ]
    assert not early, "\n".join(early)


def loaded_after(code):
    """Names of the modules a fresh interpreter holds after running `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_config_layout_and_capture_listing_load_without_torch():
    loaded = loaded_after("import instant_nk.config, instant_nk.layout, instant_nk.entry, instant_nk.cli, instant_nk.io.capture")
    assert not loaded & {"torch", "scipy", "skimage", "trimesh", "matplotlib"}


@pytest.mark.parametrize("stage", ["dataset", "graph", "check", "status", "verify", "exchange"])
def test_stages_that_train_nothing_load_without_torch(stage):
    assert "torch" not in loaded_after(f"import instant_nk.stages.{stage}")


def test_config_and_layout_load_in_well_under_a_second():
    code = "import time; start = time.perf_counter(); import instant_nk.config, instant_nk.layout; print(time.perf_counter() - start)"
    seconds = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))
    assert seconds < 0.5


@pytest.mark.parametrize("package", ["kernels", "models", "fitting"])
def test_importing_the_package_loads_neither_triton_nor_tinycudann(package, repository):
    modules = [
        ".".join(path.relative_to(repository).with_suffix("").parts)
        for path in sorted((repository / "instant_nk" / package).rglob("*.py"))
        if "triton" not in path.stem and "tcnn" not in path.stem and path.stem != "__init__"
    ]
    code = f"import instant_nk.{package}\n" + "\n".join(f"import {name}" for name in modules)
    loaded = loaded_after(code)
    assert "tinycudann" not in loaded
    assert not [name for name in loaded if name == "triton" or name.startswith("triton.")]


def test_no_file_names_a_path_of_somebodys_machine(repository):
    listed = subprocess.run(["git", "-C", str(repository), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = ("/home" + "/", "/root" + "/", "/Users" + "/")
    guilty = []
    for name in listed.stdout.split("\n"):
        path = repository / name
        if path.suffix in (".py", ".smk", ".yaml", ".toml", ".md", ".txt", "") and path.is_file():
            text = path.read_text(errors="ignore")
            guilty += [f"{name}: {place}" for place in places if place in text]
    assert not guilty, guilty
