"""A client in a process of its own: opens a volume, waits for the others, gives prompts.

``python -m nninteractive_ws.benchmark.client SIDE PORT FOLDER PROMPTS``, with the work that is kept in FOLDER. It
prints a line once it is ready; with a line of its standard input it goes on, and prints what it measured as JSON; then
it prompts another object for every further line, and ends with its standard input.
"""

import json
import os
from pathlib import Path
import sys
import time

from nninteractive_ws.benchmark.sides import SIDES, OwnClient, peak_bytes
from nninteractive_ws.benchmark.work import Work


def main() -> None:
    name, port, folder, prompts = sys.argv[1:]
    work = Work.load(Path(folder))
    click = work.prompts["point", True]
    loaded = peak_bytes(os.getpid())
    client = next(side for side in SIDES if side.name == name).connect(int(port))
    client.open(work.volume)
    client.whole_image_at()
    client.give(click)
    print(flush=True)
    sys.stdin.readline()
    answers = []
    for _ in range(int(prompts)):
        client.reset()
        given = time.monotonic()
        answer = client.give(click)
        answers.append((given, answer.first, answer.final))
    print(json.dumps({"answers": answers, "added": peak_bytes(os.getpid()) - loaded}), flush=True)
    for line in sys.stdin:
        assert isinstance(client, OwnClient)
        client.segment(line)
        client.give(click)
        print(flush=True)
    client.close()


if __name__ == "__main__":
    main()
