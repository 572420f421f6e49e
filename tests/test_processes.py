"""Starting, ending and observing processes, which do not import files of the working folder."""

import ast
import asyncio
import os
from pathlib import Path
import subprocess
import sys

import pytest

import nninteractive_ws
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.processes import creation_flags, end_async_process, end_process, python_module

PACKAGE = Path(nninteractive_ws.__file__).parent
SLICER_MODULE = PACKAGE.parent / "slicer_module" / "NNInteractiveWS"
#: Modules that a server and its worker import, with some of the standard library.
IMPORTED = ("psutil", "numpy", "torch", "msgspec", "websockets", "json", "random", "logging", "nninteractive_ws")


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """A folder of modules that report their import, and then fail."""
    for name in IMPORTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n1 / 0\n")
    return tmp_path


def test_without_the_option_the_working_folder_comes_first(hostile_folder: Path) -> None:
    """Shows why the option is needed, and that the next test would detect an import."""
    command = [word for word in python_module("nninteractive_ws", "--help") if word != "-P"]
    done = subprocess.run(command, cwd=hostile_folder, capture_output=True, check=False)
    assert done.returncode != 0
    assert (hostile_folder / "imported").exists()


@pytest.mark.slow
def test_a_command_its_server_and_its_worker_import_nothing_from_the_working_folder(hostile_folder: Path) -> None:
    import SimpleITK as sitk

    image = make_phantom(5, (72, 64, 56), (4.0, 4.0, 4.0)).image
    sitk.WriteImage(sitk.GetImageFromArray(image.transpose()), hostile_folder / "ct.nii.gz")
    program = Path(sys.executable).with_name("nninteractive-ws")
    message = ["segment", "ct.nii.gz", "--point", "28,30,30", "-o", "out.nii.gz", "--model", "demo"]
    done = subprocess.run([program, *message], cwd=hostile_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (hostile_folder / "imported").exists(), (hostile_folder / "imported").read_text()
    assert (hostile_folder / "out.nii.gz").exists()


@pytest.mark.parametrize("folder", [PACKAGE, SLICER_MODULE], ids=lambda folder: folder.name)
def test_python_is_started_in_one_place(folder: Path) -> None:
    """Elsewhere, a command with ``-m`` could lack ``-P``. The installer runs alone, with ``-I``, which implies it."""
    for path in folder.rglob("*.py"):
        if path.name == "installServer.py":
            assert path.read_text().count('"-m"') == path.read_text().count('"-I", "-m"') > 0
            continue
        message = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        assert "-m" not in message or path == PACKAGE / "processes.py", path


# ---- the end of processes ---------------------------------------------------------------------------------

SLEEP = "import time; print(flush=True); time.sleep(100)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
READ = "import sys; print(flush=True); sys.stdin.read()"
needs_sigterm = pytest.mark.skipif(sys.platform == "win32", reason="Windows terminates a process at once")


def start(code: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, creationflags=creation_flags()
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@needs_sigterm
@pytest.mark.parametrize(("code", "timeout_s", "status"), [(SLEEP, 60, -15), (STUBBORN, 0.2, -9)])
def test_a_process_is_terminated_and_else_killed(code: str, timeout_s: float, status: int) -> None:
    process = start(code)
    end_process(process, timeout_s)
    assert process.returncode == status
    end_process(process, timeout_s)  # has no effect


@needs_sigterm
@pytest.mark.parametrize(("code", "timeout_s", "status"), [(SLEEP, 60, -15), (STUBBORN, 0.2, -9)])
def test_an_asyncio_process_is_terminated_and_else_killed(code: str, timeout_s: float, status: int) -> None:
    async def work() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
        await end_async_process(process, timeout_s)
        assert process.returncode == status
        await end_async_process(process, timeout_s)

    asyncio.run(work())


def test_a_process_may_end_with_its_standard_input() -> None:
    process = start(READ)
    end_process(process, 60, terminate=False)
    assert process.returncode == 0


# ---- standard input ---------------------------------------------------------------------------------------

ECHO = """
import asyncio, subprocess, sys
from nninteractive_ws.processes import stdin_stream
print(sys.stdin.readline().strip(), flush=True)
async def main():
    stream = stdin_stream()
    # It does not take the parent's bytes, nor wait for them.
    print(repr(subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read())"],
                              stdout=subprocess.PIPE, text=True).stdout), flush=True)
    while line := await stream.readline():
        print(line, flush=True)
asyncio.run(main())
print("the end", flush=True)
"""


def test_standard_input_is_a_stream_that_children_do_not_inherit() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for sent, printed in (("secret", "secret"), (None, repr("\n")), ("a", "b'a\\n'"), ("b", "b'b\\n'")):
            if sent is not None:
                process.stdin.write(f"{sent}\n")
                process.stdin.flush()
            assert process.stdout.readline().strip() == printed
        process.stdin.close()
        assert process.stdout.readline().strip() == "the end"
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="it needs a shell")
def test_a_process_without_standard_input_ends_at_once() -> None:
    code = "import asyncio; from nninteractive_ws.processes import wait_until_stdin_closes as w; asyncio.run(w())"
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, env=dict(os.environ), timeout=60, check=False).returncode == 0
