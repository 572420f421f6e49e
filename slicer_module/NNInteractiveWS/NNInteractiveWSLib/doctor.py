"""``python doctor.py ADDRESS [CA]``: can a server be used from here. A program of its own, as it waits for things.

Writes a line with a JSON object for each finding as it comes, and for what is being done meanwhile: what
``nninteractive-ws doctor`` says. The token is in the environment variable NNINTERACTIVE_WS_TOKEN.
"""

import asyncio
import json
import os
from pathlib import Path
import sys

from nninteractive_ws.client.checkup import Checkup


async def examine(address, ca=None):
    token = os.environ.get("NNINTERACTIVE_WS_TOKEN")
    checkup = Checkup(address, token=token, ca=ca and Path(ca), say=lambda words: tell(doing=words))
    async for finding in checkup.run():
        tell(step=finding.step, status=finding.status, code=finding.code, found=finding.found)


def tell(**what):
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(examine(*sys.argv[1:]))
