"""The sources of the web page in ``web/``, bundled and run by Node.js."""

from pathlib import Path
import shutil
import subprocess

WEB = Path(__file__).parents[2] / "web"
_ESBUILD = WEB / "node_modules" / ".bin" / "esbuild"
_TIMEOUT_S = 120


def missing_program() -> str | None:
    """Return why the sources cannot be bundled and run, or None."""
    if shutil.which("node") is None:
        return "Node.js is not installed"
    return None if _ESBUILD.exists() else "web/node_modules is missing: run npm ci --ignore-scripts in web/"


def bundle(source: str, folder: Path) -> Path:
    """Bundle a program below ``web/`` into a folder, for Node.js. Return its path."""
    program = (folder / Path(source).name).with_suffix(".js")
    options = ["--bundle", "--format=cjs", "--platform=node", "--target=es2022", "--loader:.wasm=binary"]
    command = [str(_ESBUILD), source, *options, "--log-level=warning", f"--outfile={program}"]
    subprocess.run(command, cwd=WEB, check=True, timeout=_TIMEOUT_S)
    return program
