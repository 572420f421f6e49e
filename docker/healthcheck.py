"""The HEALTHCHECK of the image: whether the server in this container can be used, with TLS or without.

Needs nothing but Python's own library. The exit status is 0 or 1; what was found is printed, for `docker inspect`.
"""

import http.client
import json
import ssl
import sys

TIMEOUT_S = 5


def main(port: int = 1528) -> int:
    # It is asked on loopback, where its certificate, which names the host, proves nothing.
    trusting_all = ssl._create_unverified_context()
    connections = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S),
        http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=trusting_all),
    )
    for connection in connections:
        try:
            health = _ask(connection)
        except (OSError, http.client.HTTPException, ValueError) as e:
            print(f"{type(connection).__name__}: {e!r}")
        else:
            print(json.dumps(health))
            # An idle server starts a worker when it is used.
            return 0 if health["status"] in ("ready", "idle") else 1
        finally:
            connection.close()
    return 1


def _ask(connection: http.client.HTTPConnection) -> dict[str, object]:
    connection.request("GET", "/healthz")
    found: dict[str, object] = json.load(connection.getresponse())
    return found


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
