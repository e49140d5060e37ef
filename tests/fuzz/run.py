"""Sends fuzzed cases to a server process, and judges the responses."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc.aio
import hypothesis
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.processes import ProcessSystem
from tests.end_to_end.system import APP_CALLBACK, BROWSER, RETURN_URL, query_of
from tests.fuzz import http
from tests.fuzz.http import HttpCase, http_cases
from tests.fuzz.messages import METHODS, PLANTED, KnownValues, RpcCase, choice_of, rpc_cases
from tests.loop_hold.meter import MAX_HOLD, Hold, LoopHolds

ROUND = 500
"""Cases in a round. Before each round, known values are created again; after it, memory is measured."""

BATCH = 5
"""Cases that are sent at once."""

SETTINGS = {
    "SIDECAR_HEADER_TIMEOUT_SECONDS": "0.2",
    "SIDECAR_BODY_TIMEOUT_SECONDS": "0.2",
    "SIDECAR_FAILURES_PER_SECOND": "1000000",
}
"""A short timeout for request bodies, because some cases never send one, and no end of failed requests."""

ALLOWED_GROWTH = 64 * 1024 * 1024
DEADLINE = 60.0  # seconds for a call, on a machine that may be busy

# Our handlers return none of these, for any request.
SERVER_FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Finding(AssertionError):
    """A response that violates a rule."""


@dataclass
class Report:
    """The result of a run. Memory is resident memory in bytes, after the first round and at the end.

    `longest_hold` is the longest time for which one callback held an event loop of the server, and `held_by` the cases
    that were sent at that time.
    """

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    memory_before: int = 0
    memory_after: int = 0
    longest_hold: Hold = field(default_factory=Hold)
    held_by: Sequence[RpcCase | HttpCase] = ()

    @property
    def growth(self) -> int:
        """The growth of the server's memory since its warm-up, in bytes."""
        return self.memory_after - self.memory_before


class IssuingSandbox(Sandbox):
    """A sandbox that records each token, code and key that it issues."""

    def __init__(self) -> None:
        self.issued: set[str] = set()
        super().__init__(token=self._new)

    def _new(self) -> str:
        token = secrets.token_urlsafe(24)
        self.issued.add(token)
        return token


class Fuzzer:
    """Fuzzes one server. With `holds`, it also measures the server's event loops."""

    def __init__(self, system: ProcessSystem, sandbox: IssuingSandbox, holds: LoopHolds | None = None) -> None:
        self._holds = holds
        self._system = system
        self._sandbox = sandbox
        self._report = Report()
        self._calls = {method.full_name: self._call_of(method) for method in METHODS}

    def _call_of(self, method: Any) -> Any:
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = self._system.channel.unary_stream if method.server_streaming else self._system.channel.unary_unary
        return kind(path)

    async def run(self, cases: int, seed: int, progress: Callable[[Report], None] = lambda _: None) -> Report:
        """Run this many cases; the seed determines them except for values from the server. Raises `Finding`."""
        loop = asyncio.get_running_loop()
        report = self._report
        while report.cases < cases:
            known = await self.create_known_values()
            if self._holds:
                self._holds.take()  # none of the cases
            due = min(ROUND, cases - report.cases)
            await asyncio.to_thread(self._round, loop, known, due, seed + report.cases)
            await self._check_alive()
            report.memory_after = sum(resident(self._system.command.pid(name)) for name in ("server", "sidecar"))
            report.memory_before = report.memory_before or report.memory_after
            progress(report)
        return report

    def _round(self, loop: asyncio.AbstractEventLoop, known: KnownValues, cases: int, seed: int) -> None:
        rpcs, requests = rpc_cases(known), http_cases(known)
        findings: list[Exception] = []
        case = choice_of([rpcs, rpcs, rpcs, requests])

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=-(-cases // BATCH),
            database=None,
            deadline=None,
            phases=[Phase.generate],  # a finding contains its case; shrinking a batch would not help
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(st.lists(case, min_size=BATCH, max_size=BATCH))
        def send(batch: list[RpcCase | HttpCase]) -> None:
            # Hidden from Hypothesis, which would repeat the case on a server in another state.
            if not findings:
                try:
                    asyncio.run_coroutine_threadsafe(self._send(batch), loop).result()
                except Exception as finding:  # re-raised below
                    findings.append(finding)

        send()
        for finding in findings:
            raise finding

    async def _send(self, batch: list[RpcCase | HttpCase]) -> None:
        self._report.cases += len(batch)
        outcomes = await asyncio.gather(*(self.judge(case) for case in batch), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            self._report.outcomes[outcome] += 1
        self.judge_hold(batch)

    def judge_hold(self, batch: Sequence[RpcCase | HttpCase]) -> None:
        """Judge for how long the cases, which were just sent, held the loop. Raises `Finding`."""
        hold = self._holds.take() if self._holds else Hold()
        if hold > self._report.longest_hold:
            self._report.longest_hold, self._report.held_by = hold, batch
        if hold.seconds > MAX_HOLD:
            raise Finding(f"{hold} for one of {batch}")

    async def judge(self, case: RpcCase | HttpCase) -> str:
        """Send the case; the name of its outcome. Raises `Finding`."""
        return await (self._judge_rpc(case) if isinstance(case, RpcCase) else self._judge_http(case))

    # --- gRPC --------------------------------------------------------------------------------------------------

    async def _judge_rpc(self, case: RpcCase) -> str:
        try:
            response = await self._call(case)
        except grpc.aio.AioRpcError as error:
            self._judge_error(case, error)
            return error.code().name
        if case.method.name not in ("GetCredentials", "BatchGetCredentials", "WatchCredentials"):
            self._check_no_secret(case, response)
        return "OK"

    async def _call(self, case: RpcCase) -> bytes:
        call = self._calls[case.method.full_name]
        if not case.method.server_streaming:
            response: bytes = await call(case.request, timeout=DEADLINE)
            return response
        stream = call(case.request, timeout=DEADLINE)
        try:
            with suppress(TimeoutError):  # the stream waits for an event
                async with asyncio.timeout(0.1):
                    return b"".join([part async for part in stream])
            return b""
        finally:
            stream.cancel()

    def _judge_error(self, case: RpcCase, error: grpc.aio.AioRpcError) -> None:
        said = f"{error.details()} {error.trailing_metadata()}".encode()
        self._check_no_secret(case, said)
        if not case.is_message and b"DecodeError" in said:
            return  # gRPC's own error, before any handler of ours
        if error.code() in SERVER_FAULTS:
            raise Finding(f"{error.code()} for {case!r}: {error.details()}")
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # made for `grpc.Call`, of which it uses three methods
        info = error_details_pb2.ErrorInfo()
        if status is None or not any(detail.Unpack(info) for detail in status.details):
            raise Finding(f"{error.code()} without ErrorInfo for {case!r}: {error.details()}")

    # --- HTTP --------------------------------------------------------------------------------------------------

    async def _judge_http(self, case: HttpCase) -> str:
        address = urlsplit(self._system.sidecar_url)
        try:
            response = await http.send(address.hostname or "", address.port or 0, case)
        except TimeoutError:
            raise Finding(f"no end of the response to {case!r}") from None
        if response.status >= 500 and response.status != 503:
            raise Finding(f"HTTP {response.status} for {case!r}: {response.raw[:300]!r}")
        self._check_no_secret(case, response.raw)
        is_ours = response.status and b"Invalid HTTP request received" not in response.raw
        if is_ours and b"default-src 'none'" not in response.raw:
            raise Finding(f"no policy for {case!r}: {response.raw[:300]!r}")
        return f"HTTP {response.status}"

    # --- both --------------------------------------------------------------------------------------------------

    def _check_no_secret(self, case: RpcCase | HttpCase, response: bytes) -> None:
        for secret in (PLANTED, self._system.client_secret, *self._sandbox.issued):
            if secret.encode() in response:
                raise Finding(f"a secret in the response to {case!r}")

    async def _check_alive(self) -> None:
        if self._system.command.process.poll() is not None:
            raise Finding(f"the server ended:\n{self._system.command.output[-3000:]}")
        if (await self._system.browser.get(f"{self._system.sidecar_url}/healthz")).status_code != 200:
            raise Finding("the sidecar is not alive")
        if '"event": "unhandled_exception"' in self._system.command.output:
            raise Finding("a fault is in the log")

    async def create_known_values(self) -> KnownValues:
        """Create two users with integrations, and one value of each opaque kind, again after each round."""
        system = self._system
        self._sandbox.revoke_grants("linus")
        ids = [
            await system.connect(user, account=account)
            for user, account in (("ada", "ada"), ("ada", "grace"), ("grace", "linus"))
        ]
        key = pb.ConnectWithApiKeyRequest(
            user_id="ada", integration_type="sandbox_api_key", api_key=system.sandbox.api_key.key
        )
        ids.append((await system.service.ConnectWithApiKey(key)).integration.integration_id)
        connect_response = await system.begin()
        arrived = query_of(await system.decide(connect_response))
        await system.follow(await system.decide(await system.begin(), account="ada"), BROWSER)
        page = await system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada", page_size=1))
        types = await system.service.ListIntegrationTypes(pb.ListIntegrationTypesRequest())
        return KnownValues(
            {
                "integration_id": [*ids, connect_response.integration_id],
                "integration_ids": ids,
                "consumer": ["mail"],
                "endpoint": ["app"],
                "method": ["GET", "POST"],
                "url": ["https://x.example/api/v1/webhooks/sandbox/app"],
                "calendar_id": ["primary"],
                "event_id": ["event0"],
                "email": ["grace@example.com"],
                "date": ["2026-11-23"],
                "time_zone": ["Europe/Berlin"],
                "recurrence": ["RRULE:FREQ=DAILY"],
                "user_id": ["ada", "ada", "ada", "grace", "mallory"],
                "integration_type": [
                    "sandbox",
                    "sandbox_api_key",
                    *(info.integration_type for info in types.integration_types),
                ],
                "state": [connect_response.state, (await system.begin("grace")).state],
                "code": [arrived["code"]],
                "iss": [arrived["iss"]],
                "confirmation_token": [connect_response.state, page.next_page_token],
                "page_token": [page.next_page_token],
                "scopes": ["read", "write"],
                "required_scopes": ["read", "write"],
                "api_key": [system.sandbox.api_key.key],
                "error": ["access_denied"],
                "redirect_uri": [APP_CALLBACK],
                "return_url": [RETURN_URL],
                "name": ["Work"],
                "path": ["/userinfo"],
                "query": ["realmId=1"],
                "page_size": [0, 1, 200],
            }
        )


def resident(pid: int) -> int:
    """A process's resident memory in bytes; 0 without `/proc`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
