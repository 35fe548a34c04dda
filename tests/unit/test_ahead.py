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

    __name__ = "kernel"

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


def test_kernels_compile_in_threads_each_once_and_launch_afterwards_in_the_one_that_asked(gpu):
    pytest.importorskip("triton")
    from instant_nk.kernels._triton_memory import Kernel

    functions = [Function(), Function(), Function()]
    kernels = [Kernel(function) for function in functions]

    def launch(n):
        for kernel in kernels[: n + 1]:  # several kernels behind one call, and some behind several calls
            kernel[(n,)](torch.zeros(1), 3.0)

    with ahead.compiling([lambda n=n: launch(n) for n in range(3)], gpu):
        assert ahead.compilation() is None
        kernels[0][(7,)]()
    assert functions[0].seen[0] == ("launched", (7,), True)
    for k, function in enumerate(functions):
        seen = function.seen[1:] if k == 0 else function.seen
        assert [(kind, main) for kind, _, main in seen] == [("compiled", False)] + [("launched", True)] * (3 - k)
        assert [grid for kind, grid, _ in seen if kind == "launched"] == [(n,) for n in range(k, 3)]


def test_kernels_behind_one_call_compile_at_the_same_time(gpu):
    pytest.importorskip("triton")
    from instant_nk.kernels._triton_memory import Kernel

    together = threading.Barrier(2, timeout=20)

    class Waiting(Function):
        def warmup(self, *args, grid):
            together.wait()

    kernels = [Kernel(Waiting()), Kernel(Waiting())]
    ahead.compile_side_by_side([lambda: [kernel[(1,)](torch.zeros(1)) for kernel in kernels]], gpu)


def test_an_error_of_a_kernel_is_raised(gpu):
    pytest.importorskip("triton")
    from instant_nk.kernels._triton_memory import Kernel

    class Broken(Function):
        def warmup(self, *args, grid):
            raise RuntimeError("no room for registers")

    with pytest.raises(RuntimeError, match="no room for registers"):
        ahead.compile_side_by_side([lambda: Kernel(Broken())[(1,)](torch.zeros(1))], gpu)


def test_an_error_of_a_call_is_raised(gpu):
    def broken():
        raise RuntimeError("no room for registers")

    with pytest.raises(RuntimeError, match="no room for registers"):
        ahead.compile_side_by_side([broken], gpu)


def test_nothing_is_called_where_kernels_are_not_tritons():
    ahead.compile_side_by_side([lambda: 1 / 0], torch.device("cpu"))


def test_a_long_compilation_says_what_took_it(gpu, monkeypatch, caplog):
    pytest.importorskip("triton")
    from instant_nk.kernels._triton_memory import Kernel

    monkeypatch.setattr(ahead, "WORTH_SAYING", 0.0)
    with caplog.at_level(logging.INFO):
        ahead.compile_side_by_side([lambda: Kernel(Function())[(1,)](torch.zeros(1))], gpu)
    assert "kernels=1 compiled_s=0.1 slowest=tests.unit.test_ahead.kernel slowest_s=0.1" in caplog.text


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
