"""Test of the connection to a server, as a separate program because it blocks: ``python doctor.py ADDRESS [CA]``.

It runs the checks of ``nninteractive-ws doctor``, and prints one JSON object per line for each result and for each step
in progress. The token is read from the environment variable NNINTERACTIVE_WS_TOKEN, and the environment of ssh, as a
JSON object, from NNINTERACTIVE_WS_SSH_ENVIRONMENT.
"""

import asyncio
import json
import os
from pathlib import Path
import sys

from nninteractive_ws.doctor.checks import Doctor


async def runChecks(address, ca=None):
    token = os.environ.get("NNINTERACTIVE_WS_TOKEN")
    sshEnvironment = json.loads(os.environ.get("NNINTERACTIVE_WS_SSH_ENVIRONMENT", "null"))
    doctor = Doctor(
        address,
        token=token,
        ca=ca and Path(ca),
        on_status=lambda message: printLine(doing=message),
        ssh_environment=sshEnvironment,
    )
    async for result in doctor.run():
        printLine(step=result.step, status=result.status, code=result.code, found=result.found)


def printLine(**fields):
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    asyncio.run(runChecks(*sys.argv[1:]))
