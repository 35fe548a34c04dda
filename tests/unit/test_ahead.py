"""Kernels are compiled at the same time, and launched one after the other."""

import importlib.util
import logging
import shutil
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import pytest
import torch

from instant_nk.kernels import _backend, ahead


class Function:
    """Stands for a JIT function: notes who compiles and who launches."""

    def __init__(self):
        self.seen, self.busy, self.most = [], 0, 0

    def warmup(self, *args, grid):
        self.busy += 1
        self.most = max(self.most, self.busy)
        time.sleep(0.05)
        self.busy -= 1
        self.seen.append(("compiled", grid, threading.current_thread() is threading.main_thread()))

    def __getitem__(self, grid):
        return lambda *args: self.seen.append(("launched", grid, threading.current_thread() is threading.main_thread()))


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(_backend, "describe", lambda device: "triton")
    return torch.device("cuda")


def test_calls_compile_in_threads_and_launch_afterwards_in_the_one_that_asked(gpu):
    pytest.importorskip("triton")
    from instant_nk.kernels._triton_memory import Kernel

    function = Function()
    kernel = Kernel(function)
    calls = [lambda n=n: kernel[(n,)](torch.zeros(1)) for n in range(3)]
    with ahead.compiling(calls, gpu):
        assert not ahead.compiles_only()
        kernel[(7,)]()
    kinds = [entry[0] for entry in function.seen]
    assert function.seen[0] == ("launched", (7,), True) and sorted(kinds[1:4]) == ["compiled"] * 3 and kinds[4:] == ["launched"] * 3
    assert all(main == (kind == "launched") for kind, _, main in function.seen)
    assert [grid for kind, grid, _ in function.seen if kind == "launched"][1:] == [(0,), (1,), (2,)]


def test_an_error_of_a_call_is_raised(gpu):
    def broken():
        raise RuntimeError("no room for registers")

    with pytest.raises(RuntimeError, match="no room for registers"):
        ahead.compile_side_by_side([broken], gpu)


def test_nothing_is_called_where_kernels_are_not_tritons():
    ahead.compile_side_by_side([lambda: 1 / 0], torch.device("cpu"))


def test_a_long_compilation_says_what_took_it(gpu, monkeypatch, caplog):
    monkeypatch.setattr(ahead, "WORTH_SAYING", 0.0)
    with caplog.at_level(logging.INFO):
        ahead.compile_side_by_side([lambda: None], gpu)
    assert "kernels=1 compiled_s=0.0 slowest=tests.unit.test_ahead" in caplog.text


def built(folder, number):
    """A compiled module whose `launch()` says a number, of the name that all launchers bear."""
    folder.mkdir()
    source = folder / "launcher.c"
    source.write_text(
        "#include <Python.h>\n"
        f"static PyObject *launch(PyObject *self, PyObject *arguments) {{ return PyLong_FromLong({number}); }}\n"
        'static PyMethodDef methods[] = {{"launch", launch, METH_VARARGS, ""}, {0}};\n'
        'static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "launcher_of_a_test", 0, -1, methods};\n'
        "PyMODINIT_FUNC PyInit_launcher_of_a_test(void) { return PyModule_Create(&module); }\n"
    )
    path = folder / "launcher.so"
    subprocess.run(["cc", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", str(source), "-o", str(path)], check=True)
    return str(path)


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_launcher_keeps_its_function_whatever_is_loaded_after_it(tmp_path):
    pytest.importorskip("triton")
    from instant_nk.kernels._triton_memory import apart

    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("needs Python's headers")
    first, second = built(tmp_path / "first", 1), built(tmp_path / "second", 2)
    safely = apart(load)
    safely("launcher_of_a_test", second)
    kept = safely("launcher_of_a_test", first)
    again = safely("launcher_of_a_test", second)  # met before: Python writes it into the module of `first`
    assert (kept.launch(), again.launch()) == (1, 2)


def test_tritons_loader_is_the_safe_one():
    build = pytest.importorskip("triton.runtime.build")
    from instant_nk.kernels import _triton_memory

    assert build._load_module_from_path.__qualname__.startswith(_triton_memory.apart.__name__)
