"""The reference of `reads`: grpc.aio handlers that do the same work as the server's with nothing around it.

They read the same rows with SQLAlchemy Core and the same driver, fill the same messages, and call the provider with
httpx. They neither authenticate nor decrypt, and record nothing.
"""

import multiprocessing
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import psutil
import uvloop
from sqlalchemy import Row, bindparam, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine

from integration_server.storage.tables import integrations
from integrations.v1 import credentials_pb2, integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

if TYPE_CHECKING:
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

_T = integrations.c
_ONE = select(integrations).where(_T.integration_id == bindparam("integration_id"), _T.user_id == bindparam("user_id"))
_PAGE = (
    select(integrations)
    .where(_T.user_id == bindparam("user_id"))
    .order_by(_T.integration_id)
    .limit(bindparam("page_size"))
)
_TOKEN = "t" * 43  # as long as the sandbox's
_DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}

Handler = Callable[[Any, Any], Any]
_RequestAboutOne = pb.GetCredentialsRequest | pb.GetIntegrationRequest | pb.CallProviderRequest


@asynccontextmanager
async def running_bare_server(
    database_url: str, provider_url: str
) -> AsyncIterator[tuple["IntegrationServiceAsyncStub", psutil.Process]]:
    """Run the handlers in another process until the block ends; yields a client, and the process."""
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_run, args=(child_end, database_url, provider_url), name="bare", daemon=True)
    process.start()
    try:
        async with grpc.aio.insecure_channel(parent_end.recv(), options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield IntegrationServiceStub(channel), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


# --- in the process of the handlers --------------------------------------------------------------------------------


def _run(pipe: Connection, database_url: str, provider_url: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C and ends this process
    uvloop.run(_serve(pipe, database_url, provider_url))


async def _serve(pipe: Connection, database_url: str, provider_url: str) -> None:
    server = grpc.aio.server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            handler,
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name, handler in _handlers(database_url, provider_url).items()
    }
    generic = grpc.method_handlers_generic_handler("integrations.v1.IntegrationService", handlers)
    server.add_generic_rpc_handlers([generic])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def _handlers(database_url: str, provider_url: str) -> Mapping[str, Handler]:
    url = make_url(database_url)
    engine = create_async_engine(url.set(drivername=_DRIVERS[url.get_backend_name()]), pool_size=5)
    provider = httpx.AsyncClient(base_url=provider_url, trust_env=False)

    async def one(request: _RequestAboutOne) -> Row[Any]:
        parameters = {"integration_id": request.integration_id, "user_id": request.user_id}
        async with engine.connect() as connection:
            return (await connection.execute(_ONE, parameters)).one()

    async def get_credentials(request: pb.GetCredentialsRequest, _context: object) -> pb.GetCredentialsResponse:
        row = await one(request)
        credentials = credentials_pb2.Credentials(
            bearer_token=_TOKEN,
            expire_time=row.access_token_expire_time,
            scopes=row.scopes,
            headers={"Authorization": f"Bearer {_TOKEN}"},
        )
        return pb.GetCredentialsResponse(credentials=credentials)

    async def get_integration(request: pb.GetIntegrationRequest, _context: object) -> pb.GetIntegrationResponse:
        return pb.GetIntegrationResponse(integration=_message(await one(request)))

    async def list_integrations(request: pb.ListIntegrationsRequest, _context: object) -> pb.ListIntegrationsResponse:
        parameters = {"user_id": request.user_id, "page_size": request.page_size}
        async with engine.connect() as connection:
            rows = (await connection.execute(_PAGE, parameters)).all()
        return pb.ListIntegrationsResponse(integrations=[_message(row) for row in rows])

    async def call_provider(request: pb.CallProviderRequest, _context: object) -> pb.CallProviderResponse:
        await one(request)
        response = await provider.request(
            request.method, request.path, headers={"Authorization": f"Bearer {_TOKEN}"}, content=request.body
        )
        headers = [pb.HttpHeader(name=name, value=value) for name, value in response.headers.items()]
        return pb.CallProviderResponse(status_code=response.status_code, headers=headers, body=response.content)

    return {
        "GetCredentials": get_credentials,
        "GetIntegration": get_integration,
        "ListIntegrations": list_integrations,
        "CallProvider": call_provider,
    }


def _message(row: Row[Any]) -> integration_pb2.Integration:
    return integration_pb2.Integration(
        integration_id=row.integration_id,
        user_id=row.user_id,
        integration_type=row.integration_type,
        name=row.name,
        config=row.config or None,
        is_active=row.is_active,
        status=integration_pb2.STATUS_ACTIVE,
        auth_method=integration_pb2.AUTH_METHOD_OAUTH2,
        scopes=row.scopes,
        missing_scopes=row.missing_scopes,
        account_id=row.account_id,
        account_label=row.account_label,
        is_connected=row.connect_time is not None,
        error_count=row.error_count,
        last_health_check=row.last_health_check,
        access_token_expire_time=row.access_token_expire_time,
        refresh_token_expire_time=row.refresh_token_expire_time,
        create_time=row.create_time,
        update_time=row.update_time,
        connect_time=row.connect_time,
        oauth_client=row.oauth_client,
    )
