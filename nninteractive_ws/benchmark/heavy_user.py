"""A heavy user in a process of its own.

``python -m nninteractive_ws.benchmark.heavy_user SYSTEM PORT FOLDER``, with the workload saved in FOLDER.

The user opens the volume, prints an empty line, and prompts a large box again and again. At a line on its standard
input it prints the times of its results as JSON, and ends.
"""

import json
from pathlib import Path
import sys
import threading

from nninteractive_ws.benchmark.systems import system_named
from nninteractive_ws.benchmark.workload import Workload, large_prompt


def _wait_for_line(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def main() -> None:
    name, port, folder = sys.argv[1:]
    workload = Workload.load(Path(folder))
    prompt = large_prompt(workload.volume.shape)
    client = system_named(name).connect(int(port))
    client.open(workload.volume)
    client.wait_for_upload()
    stop = threading.Event()
    threading.Thread(target=_wait_for_line, args=(stop,), daemon=True).start()
    print(flush=True)
    results = []
    while not stop.is_set():
        client.reset()
        results.append(client.send_prompt(prompt).final)
    client.close()
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
