"""A gRPC server and a sidecar with their libraries' defaults: the negative control of our limits.

It is a program, so that its open files can be limited.
"""

import json
import socket
from dataclasses import replace

import grpc.aio
import uvicorn
import uvloop
from grpc_health.v1 import health_pb2_grpc

from integration_server.rpc.health import ServerHealthServicer
from tests.fakes.limits import LIMITS
from tests.unit.sidecar.fakes import FakeServer


async def main() -> None:
    health = ServerHealthServicer([])
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    app = FakeServer().app(replace(LIMITS, body_bytes=1 << 40))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sidecar = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(json.dumps({"event": "serving", "grpc": f"127.0.0.1:{port}", "sidecar": sidecar}), flush=True)
        await uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None)).serve([listener])


if __name__ == "__main__":
    uvloop.run(main())
