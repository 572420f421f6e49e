"""A client in a process of its own.

``python -m nninteractive_ws.benchmark.client SYSTEM PORT FOLDER PROMPTS``, with the workload saved in FOLDER.

The client opens the volume, prompts once, and prints an empty line when it is ready. At a line on its standard input it
sends its prompts, and prints the measured times as JSON. Then it prompts another object at each further line. It ends
with its standard input.
"""

import json
import os
from pathlib import Path
import sys
import time

from nninteractive_ws.benchmark.systems import OwnClient, peak_bytes, system_named
from nninteractive_ws.benchmark.workload import Workload


def main() -> None:
    name, port, folder, prompts = sys.argv[1:]
    workload = Workload.load(Path(folder))
    prompt = workload.prompts["point", True]
    loaded = peak_bytes(os.getpid())
    client = system_named(name).connect(int(port))
    client.open(workload.volume)
    client.wait_for_upload()
    client.send_prompt(prompt)
    print(flush=True)
    sys.stdin.readline()
    results = []
    for _ in range(int(prompts)):
        client.reset()
        sent = time.monotonic()
        times = client.send_prompt(prompt)
        results.append((sent, times.first, times.final))
    print(json.dumps({"answers": results, "added": peak_bytes(os.getpid()) - loaded}), flush=True)
    for line in sys.stdin:
        assert isinstance(client, OwnClient)
        client.segment(line)
        client.send_prompt(prompt)
        print(flush=True)
    client.close()


if __name__ == "__main__":
    main()
