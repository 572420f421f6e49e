"""nnInteractive's own HTTP server in a child process: the reference for clients of its API.

Its masks are equal to ours bit for bit, because it is patched as in ``end_to_end/test_parity.py``: it normalizes images
with our statistics, which are sums in float64, and draws each refinement plan from the same seed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
import os
from pathlib import Path
import socket
import subprocess
import sys
from typing import Any

from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnInteractive.inference.server.app import make_app
import numpy as np
import torch
import uvicorn

from nninteractive_ws.client import image_source


@contextmanager
def official_server(model: Path) -> Iterator[str]:
    """A server on a free port of loopback, with the model of a folder. Gives its URL."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "helpers.official_server", str(model)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://")
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _patch_session() -> None:
    set_image: Callable[..., None] = nnInteractiveInferenceSession.set_image
    plan: Callable[..., Any] = nnInteractiveInferenceSession._plan_refinement_bboxes

    def set_image_with_our_statistics(self: Any, image: Any, properties: Any = None) -> None:
        set_image(self, image, properties)
        self._finish_preprocessing_and_initialize_interactions()
        ours = image_source.statistics(image[0])
        normalized = (image[0].astype(np.float32) - np.float32(ours.mean)) / np.float32(ours.std)
        self.preprocessed_image = torch.from_numpy(normalized)[None]

    def seeded_plan(self: Any, *arguments: Any, **options: Any) -> Any:
        np.random.seed(0)
        return plan(self, *arguments, **options)

    nnInteractiveInferenceSession.set_image = set_image_with_our_statistics
    nnInteractiveInferenceSession._plan_refinement_bboxes = seeded_plan


def main() -> None:
    (model,) = sys.argv[1:]
    _patch_session()
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):  # sessions print much
        loading = nnInteractiveInferenceSession(device=torch.device("cpu"), torch_n_threads=os.cpu_count())
        artifacts = loading._load_model_artifacts_from_disk(model)
        app = make_app(artifacts, torch.device("cpu"), max_sessions=8, torch_n_threads=os.cpu_count() or 1)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=sys.__stdout__, flush=True)
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
