"""Builds the recorder of heads: to a file, or to a URL."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.http import ProviderHttp, origin_of
from integration_server.providers.outbound_connections import SsrfGuardedNetwork
from integration_server.service.audit.audit_heads import Head, HeadRecorder, HeadSink
from integration_server.service.common_types import Clock
from integration_server.setting_types import is_url
from integration_server.settings import Settings
from integration_server.storage.audit_head_file import HeadFile

_MAX_RESPONSE_BYTES = 64 * 1024  # of a response whose body nobody reads


class HeadUrl:
    """Sends lines to a URL by POST. The response 2xx means that they are recorded."""

    def __init__(self, http: ProviderHttp, url: str) -> None:
        self._http = http
        self._url = url

    async def append(self, lines: Sequence[bytes]) -> None:
        """Send lines. Raises `ProviderUnavailable`."""
        response = await self._http.request(
            "POST",
            self._url,
            allowed_origins=[origin_of(self._url)],
            headers={"Content-Type": "application/x-ndjson"},
            content=b"".join(lines),
            body_limit=_MAX_RESPONSE_BYTES,
        )
        if not response.is_success:
            raise ProviderUnavailable


@asynccontextmanager
async def open_head_recorder(
    settings: Settings, source: Callable[[], Sequence[Head]], clock: Clock
) -> AsyncIterator[HeadRecorder | None]:
    """The recorder of the heads of a source, where the settings name a file or a URL. The last are recorded on exit."""
    async with AsyncExitStack() as stack:
        sink: HeadSink
        if settings.audit_heads is None:
            yield None
            return
        if is_url(settings.audit_heads):
            # The operator configures the address, which is often internal.
            network = SsrfGuardedNetwork(lambda _address: True)
            http = await stack.enter_async_context(ProviderHttp(clock, dev_mode=settings.dev_mode, network=network))
            sink = HeadUrl(http, settings.audit_heads)
        else:
            sink = HeadFile(Path(settings.audit_heads))
        yield await stack.enter_async_context(HeadRecorder(source, sink, clock))
