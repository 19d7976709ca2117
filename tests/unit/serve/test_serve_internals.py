"""The parts of Ray Serve that kray changes are where it changes them, in the installed Ray. No cluster is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from kray.serve.deploy import HEAD_DEADLINE, PROXY_CALLBACK

TESTS = Path(__file__).parents[2]

REPLICA = """
import asyncio, os
import grpc
from ray.serve._private import replica
from listening_sockets import open_to_others
from kray.serve.replica_server import stay_local

async def main():
    stay_local()
    server = grpc.aio.server()
    assert replica.add_port_to_grpc_server(server, "[::]:0") > 0
    await server.start()
    assert open_to_others([os.getpid()]) == [], open_to_others([os.getpid()])
    await server.stop(0)

asyncio.run(main())
"""

PROXY = """
import asyncio, sys
from ray.serve._private.http_util import configure_http_middlewares, start_asgi_http_server
from ray.serve.config import HTTPOptions
from kray.serve import head_deadline

head_deadline.HeadDeadline.head_timeout_s = 0.3

async def app(scope, receive, send):
    raise AssertionError("no request is complete")

async def main():
    options = configure_http_middlewares(HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    await start_asgi_http_server(app, options, event_loop=asyncio.get_running_loop())
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
            break
        except OSError:
            await asyncio.sleep(0.1)
    writer.write(b"GET / HTTP/1.1\\r\\nhost: x\\r\\n")
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.startswith(b"HTTP/1.1 408 "), answer

asyncio.run(main())
"""


def run(program: str, *arguments: str) -> None:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": paths, PROXY_CALLBACK: HEAD_DEADLINE}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_server_of_a_replica_stays_local():
    run(REPLICA)


def test_proxy_gives_heads_a_deadline():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run(PROXY, str(port))
