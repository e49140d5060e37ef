"""The client: integrations, accounts, and connections that have begun."""

# Generated from aio.py by `make blocking-client`.

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn, Self, TypeVar

from integration_server.client import operations, rpcs
from integration_server.client.adapters.account_adapters import AccountAdapters
from integration_server.client.configuration import ChannelOptions, Configuration, SecretText, Token
from integration_server.client.connection import UseGuard
from integration_server.client.connection_attempts import check_expiry, device_outcome, is_connected, merged, pauses
from integration_server.client.credentials import Credentials
from integration_server.client.errors import (
    AnswerTooLarge,
    CursorExpired,
    DeadlineExceeded,
    IntegrationNotFound,
    IntegrationsError,
    InvalidArgument,
    PermissionDenied,
    ReauthorizationRequired,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    is_broken_stream,
    is_temporary,
)
from integration_server.client.hooks import CallHook
from integration_server.client.operations import ApiCall, Config, ItemT, Listing, Operation, Pairs
from integration_server.client.store import CredentialStore, Entry, Key
from integration_server.client.transport import Caller, ResponseStream, Timeout, Transport
from integration_server.client.values import (
    ApiResponse,
    Attempt,
    CallbackResult,
    CursorStore,
    MemoryCursorStore,
    WebhookEvent,
    WebhookSecret,
)
from integration_server.client.watcher import Watcher, log_end, pause_before_events
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.event_pb2 import IntegrationEvent
from integrations.v1.integration_pb2 import HealthCheck, Integration, IntegrationTypeInfo, Status
from integrations.v1.operator_service_pb2 import AuditEntry, DueWork, IntegrationCount, Job

ResultT = TypeVar("ResultT")

_ACK_INTERVAL = 1.0  # seconds between two acknowledgements: one for each event would cost as much as its delivery


class Integrations:
    """A client of the server. Threads share it.

    The parameters of the connection are those of `Configuration`. `hooks` observe the calls. `watch`: keep the
    credentials of used accounts fresh with a stream; without it they are asked for again after five minutes. At most
    `max_accounts` of them are kept in memory, and none that was not used for `idle`.
    """

    def __init__(
        self,
        address: str,
        *,
        token: Token | None = None,
        token_file: str | Path | None = None,
        tls: bool | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        server_name: str | None = None,
        channel_options: ChannelOptions = (),
        hooks: Sequence[CallHook] = (),
        watch: bool = True,
        max_accounts: int = 10_000,
        idle: timedelta = timedelta(hours=1),
        caller: Caller | None = None,
    ) -> None:
        def path(name: str | Path | None) -> Path | None:
            return None if name is None else Path(name)

        token = SecretText(token) if isinstance(token, str) else token  # some reporters of errors print local variables
        configuration = Configuration(
            address=address,
            token=token,
            token_file=path(token_file),
            tls=tls,
            ca_file=path(ca_file),
            cert_file=path(cert_file),
            key_file=path(key_file),
            server_name=server_name,
            channel_options=channel_options,
        )
        self._use_guard = UseGuard()
        self._caller: Caller = Transport(configuration, hooks, self._use_guard) if caller is None else caller
        self._store = CredentialStore(threading.Lock, max_accounts=max_accounts, idle=idle, use_guard=self._use_guard)
        self._watcher = Watcher(self._caller, self._store) if watch else None
        if self._watcher is not None:
            self._watcher.end_with(self)

    @classmethod
    def from_env(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        channel_options: ChannelOptions = (),
        hooks: Sequence[CallHook] = (),
        watch: bool = True,
        max_accounts: int = 10_000,
        idle: timedelta = timedelta(hours=1),
    ) -> Self:
        """Return a client that the environment variables `INTEGRATIONS_*` configure: docs/client.md lists them."""
        try:
            configuration = Configuration.from_env(environment)
        finally:
            del environment  # some reporters of errors print local variables
        return cls(
            configuration.address,
            token=configuration.token,
            token_file=configuration.token_file,
            tls=configuration.tls,
            ca_file=configuration.ca_file,
            cert_file=configuration.cert_file,
            key_file=configuration.key_file,
            server_name=configuration.server_name,
            channel_options=channel_options,
            hooks=hooks,
            watch=watch,
            max_accounts=max_accounts,
            idle=idle,
        )

    def close(self) -> None:
        """End the streams and the calls, which raise `ClientClosed`, and close the channel."""
        self._use_guard.is_closed = True
        if self._watcher is not None:
            self._watcher.close()
        self._caller.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: a copy would share the channel, and a pickle hold the token."""
        raise TypeError(
            "a client cannot be copied or pickled: pass the user and the type, and create one where it is used"
        )

    # --- Accounts ---------------------------------------------------------------------------------------------------

    def account(self, *, user: str, type: str = "", integration_id: int | None = None) -> "Account":  # noqa: A002
        """Return an account of a user, by its type or by its number. Calls nothing; the first use finds the account.

        If the user has several accounts of the type, the first use raises `SeveralAccounts`, which lists them.
        """
        if not type and integration_id is None:
            raise ValueError("account: needs a type or an integration_id")
        return Account(self, user, type, integration_id)

    def list(self, *, user: str, type: str = "", timeout: Timeout = None) -> Iterator[Integration]:  # noqa: A002
        """Iterate over the user's integrations, the oldest first."""
        return self.iterate(operations.list_integrations(user, type), timeout)

    def types(self, *, timeout: Timeout = None) -> Iterator[IntegrationTypeInfo]:
        """Iterate over the integration types of the server."""
        return self.iterate(operations.list_types(), timeout)

    def check_health(self, *, user: str, timeout: Timeout = None) -> Iterator[HealthCheck]:
        """Check the user's integrations, a page at a time."""
        return self.iterate(operations.check_all_health(user), timeout)

    # --- Connecting -------------------------------------------------------------------------------------------------

    def connect(
        self,
        *,
        user: str,
        type: str,  # noqa: A002
        scopes: Sequence[str] = (),
        redirect_uri: str = "",
        return_url: str = "",
        name: str = "",
        config: Config | None = None,
        integration_id: int | None = None,
        oauth_client: str = "",
        timeout: Timeout = None,
    ) -> "Connection":
        """Begin a connection: send the user to its `authorization_url`, and `wait` for it.

        A device authorization also has a `user_code`. `integration_id` reconnects an integration.
        """
        before = None
        if integration_id is not None:
            before = self.run(operations.get_integration(Key(user, integration_id)), timeout)
        attempt = self.run(
            operations.connect(
                user=user,
                integration_type=type,
                scopes=scopes,
                redirect_uri=redirect_uri,
                return_url=return_url,
                name=name,
                config=config,
                integration_id=integration_id or 0,
                oauth_client=oauth_client,
            ),
            timeout,
        )
        if before is None:
            before = self.run(operations.get_integration(Key(user, attempt.integration_id)), timeout)
        return Connection(self, attempt, before)

    def connect_with_api_key(
        self,
        *,
        user: str,
        type: str,  # noqa: A002
        api_key: str = "",
        api_secret: str = "",
        secret_fields: Mapping[str, str] | None = None,
        webhook_secret: str = "",
        name: str = "",
        config: Config | None = None,
        integration_id: int | None = None,
        timeout: Timeout = None,
    ) -> "Connection":
        """Connect an account with secrets that its user has copied. `wait` returns at once."""
        try:
            operation = operations.connect_with_api_key(
                user=user,
                integration_type=type,
                api_key=api_key,
                api_secret=api_secret,
                secret_fields=secret_fields,
                webhook_secret=webhook_secret,
                name=name,
                config=config,
                integration_id=integration_id or 0,
            )
        finally:
            del api_key, api_secret, secret_fields, webhook_secret  # some reporters of errors print local variables
        integration = self.run(operation, timeout)
        attempt = Attempt(
            integration_id=integration.integration_id, user=user, integration_type=integration.integration_type
        )
        return Connection(self, attempt, None)

    def handle_callback(
        self,
        *,
        state: str,
        code: str = "",
        error: str = "",
        iss: str = "",
        query: str = "",
        type: str = "",  # noqa: A002
        user: str = "",
        timeout: Timeout = None,
    ) -> CallbackResult:
        """Complete a connection whose redirect has come to the caller instead of the sidecar."""
        try:
            operation = operations.handle_callback(
                state=state, code=code, error=error, iss=iss, query=query, integration_type=type, user=user
            )
        finally:
            del state, code, query  # some reporters of errors print local variables
        return self.run(operation, timeout)

    def confirm(self, *, user: str, confirmation_token: str, timeout: Timeout = None) -> CallbackResult:
        """Complete a connection whose callback did not name the user."""
        try:
            operation = operations.confirm(user, confirmation_token)
        finally:
            del confirmation_token  # some reporters of errors print local variables
        return self.run(operation, timeout)

    # --- Events -----------------------------------------------------------------------------------------------------

    def events(
        self,
        *,
        user: str = "",
        type: str = "",  # noqa: A002
        cursor_store: CursorStore | None = None,
        on_gap: Callable[[], None] | None = None,
    ) -> Generator[IntegrationEvent, None, None]:
        """Iterate over events without end: of one user or of all, of one type or of all. Reconnects by itself.

        The cursor of an event is saved when the next one is asked for: after a crash the last event comes again.
        `on_gap` is called after events were lost because the cursor has expired, for the caller to list the
        integrations; without it `CursorExpired` is raised.
        """
        store: CursorStore = MemoryCursorStore() if cursor_store is None else cursor_store
        cursor, failures, has_gap = store.load(), 0, False
        is_accepted = False
        while True:
            try:
                stream = self._caller.stream(
                    rpcs.WATCH_INTEGRATIONS,
                    pb.WatchIntegrationsRequest(user_id=user, integration_type=type, cursor=cursor),
                )
                try:
                    for response in stream:
                        failures = 0
                        if has_gap and on_gap is not None:
                            on_gap()
                            has_gap = False
                        is_accepted = True  # not before `on_gap`, whose own calls may be rejected for good
                        if response.HasField("event"):
                            yield response.event
                        cursor = response.cursor
                        store.save(cursor)
                finally:
                    stream.cancel()  # also if nobody asks for the next event, or the store fails
            except CursorExpired:
                if on_gap is None or has_gap:
                    raise
                cursor, has_gap = "", True
                store.save("")
            except Unauthenticated:
                if not is_accepted:
                    raise
                is_accepted = False  # the token has expired while the stream ran: the next one has a newer token
            except IntegrationsError as error:
                if not is_temporary(error):
                    if not is_accepted or not is_broken_stream(error):
                        raise
                    is_accepted = False  # or a server with a defect would be asked without end
                failures += 1
                delay = pause_before_events(failures, error)
                log_end("events", error, delay)
                time.sleep(delay)

    # --- For operators ----------------------------------------------------------------------------------------------

    def find_integrations(
        self,
        *,
        type: str = "",  # noqa: A002
        status: "Status | str" = Status.STATUS_UNSPECIFIED,
        account_id: str = "",
        timeout: Timeout = None,
    ) -> Iterator[Integration]:
        """Iterate over the integrations of all users, or those that meet the conditions, the oldest first.

        `status` can also be a name, such as "STATUS_ERROR".
        """
        return self.iterate(operations.find_integrations(type, status, account_id), timeout)

    def count_integrations(
        self,
        *,
        type: str = "",  # noqa: A002
        status: "Status | str" = Status.STATUS_UNSPECIFIED,
        account_id: str = "",
        timeout: Timeout = None,
    ) -> Sequence[IntegrationCount]:
        """Return how many integrations `find_integrations` finds, by type and status. `timeout` is of each page."""
        pages = self.iterate(operations.count_integrations(type, status, account_id), timeout)
        return operations.sum_of_counts(list(pages))

    def due_work(
        self,
        *,
        type: str = "",  # noqa: A002
        job: "Job | str" = Job.JOB_UNSPECIFIED,
        oldest_only: bool = False,
        timeout: Timeout = None,
    ) -> Iterator[DueWork]:
        """Iterate over the background work that is due, by job and OAuth client, the longest due first.

        `oldest_only`: only the longest due of each job and client, with their number.
        """
        return self.iterate(operations.list_due_work(type, job, oldest_only=oldest_only), timeout)

    def audit_entries(
        self,
        *,
        user: str = "",
        integration_id: int | None = None,
        caller: str = "",
        action: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        timeout: Timeout = None,
    ) -> Iterator[AuditEntry]:
        """Iterate over the entries of the audit log, or those that meet the conditions, the newest first."""
        listing = operations.list_audit_entries(
            user=user,
            integration_id=integration_id or 0,
            caller=caller,
            action=action,
            start_time=start_time,
            end_time=end_time,
        )
        return self.iterate(listing, timeout)

    # --- For accounts -----------------------------------------------------------------------------------------------

    def run(self, operation: Operation[ResultT], timeout: Timeout = None) -> ResultT:
        """Run an operation of `operations`."""
        try:
            response = self._caller.call(operation.rpc, operation.request, timeout)
        except IntegrationsError as error:
            # The frames of the call hold its request, and some reporters of errors print local variables.
            raise error.with_traceback(None)  # noqa: B904 - it is the error itself
        return operation.decode(response)

    def iterate(self, listing: Listing[ItemT], timeout: Timeout = None) -> Iterator[ItemT]:
        """Iterate over the items of all pages. `timeout` is of each page."""
        token = ""
        while True:
            page = self.run(listing(token), timeout)
            yield from page.items
            token = page.next_token
            if not token:
                return

    def stream_provider(
        self, requests: Iterable[pb.StreamProviderRequest], timeout: Timeout
    ) -> ResponseStream[pb.StreamProviderResponse]:
        """Begin a streamed call to a provider."""
        return self._caller.stream(rpcs.STREAM_PROVIDER, requests, timeout)

    def resolve(self, user: str, integration_type: str) -> int:
        """Return the number of the user's account of a type."""
        known = self._store.resolved(user, integration_type)
        if known is not None:
            return known
        rows = list(self.list(user=user, type=integration_type))
        integration_id = operations.the_only_account(user, integration_type, rows)
        self._store.set_resolved(user, integration_type, integration_id)
        return integration_id

    def credentials(self, key: Key, integration_type: str, min_ttl: timedelta | None) -> Credentials:
        """Return the credentials of an account."""
        entry = self._store.entry(key, integration_type)
        found = self._store.fresh(entry, min_ttl)
        if found is not None:
            return found
        since = self._store.monotonic()
        with entry.lock:
            found = self._store.shared_outcome(entry, since, min_ttl)
            return found if found is not None else self._fetch(entry, min_ttl)

    def credentials_of(
        self, accounts: Sequence["Account"], min_ttl: timedelta | None = None
    ) -> Sequence[Credentials | IntegrationsError]:
        """Return the credentials of each account, or why there are none.

        Those that are not in memory are read with one RPC for each thousand accounts, and kept fresh from then on.
        """
        targets: list[tuple[Key, str] | IntegrationsError] = []
        for account in accounts:
            try:
                targets.append(account.target())
            except IntegrationsError as error:
                targets.append(error)
        entries = [self._store.entry(*target) for target in targets if not isinstance(target, IntegrationsError)]
        found: dict[Key, Credentials | IntegrationsError] = {}
        stale = self._store.stale(entries, min_ttl)
        for begin in range(0, len(stale), operations.MAX_BATCH):
            found |= self._fetch_many(stale[begin : begin + operations.MAX_BATCH], min_ttl)
        results: list[Credentials | IntegrationsError] = []
        for target in targets:
            if isinstance(target, IntegrationsError):
                results.append(target)
                continue
            result = found.get(target[0])
            try:
                results.append(result or self.credentials(*target, min_ttl))
            except IntegrationsError as error:
                results.append(error)
        return results

    def _fetch_many(
        self, entries: Sequence[Entry[threading.Lock]], min_ttl: timedelta | None
    ) -> dict[Key, Credentials | IntegrationsError]:
        """Read credentials with one RPC. What it has no result for is left out, and read by itself."""
        if len(entries) < 2:  # one has its own RPC
            return {}
        fetches = [self._store.begin_fetch(entry) for entry in entries]
        operation = operations.batch_get_credentials([entry.key for entry in entries], min_ttl)
        try:
            results = self.run(operation, self._store.read_timeout(entries, min_ttl))
        except (Unimplemented, PermissionDenied, InvalidArgument):
            return {}  # an older server, or one account of many is at fault
        except IntegrationsError as error:
            results = [error] * len(entries)
        found: dict[Key, Credentials | IntegrationsError] = {}
        streams = []
        for entry, fetch, result in zip(entries, fetches, results, strict=True):
            if isinstance(result, AnswerTooLarge):
                continue
            if isinstance(result, IntegrationsError):
                found[entry.key] = self._store.record_failure(entry, result, min_ttl) or result
                continue
            read = Credentials.decode(result, entry.key.integration_id, entry.integration_type)
            recorded = self._store.record(entry, fetch, read)
            streams.append(self._store.watch(entry, fetch))
            if recorded is not None:
                found[entry.key] = recorded
        for stream in dict.fromkeys(streams):
            if stream is not None and self._watcher is not None:
                self._watcher.start(stream)
        return found

    def renew(self, key: Key, integration_type: str, rejected: Credentials) -> Credentials:
        """Return newer credentials than those that the provider has rejected."""
        entry = self._store.entry(key, integration_type)
        found = self._store.newer(entry, rejected)
        if found is not None:
            return found
        with entry.lock:
            found = self._store.newer(entry, rejected)
            if found is not None:
                return found
            try:
                found = self._fetch(entry, None)  # another process may have renewed them
                if found.has_same_secret(rejected):
                    try:
                        self.run(operations.refresh(key, force=True))
                    except (ReauthorizationRequired, DeadlineExceeded):
                        raise
                    except IntegrationsError:
                        pass  # keys cannot be refreshed, and the policy may not allow it: a new one may have come
                    found = self._fetch(entry, None)
            except (Unavailable, DeadlineExceeded, ResourceExhausted):
                found = rejected
            if found.has_same_secret(rejected):
                self._store.record_not_renewed(entry, rejected)
                return rejected
            return found

    def discard(self, key: Key) -> None:
        """Forget the credentials of an account, because this client has replaced or deleted them."""
        self._store.discard(key)

    def _fetch(self, entry: Entry[threading.Lock], min_ttl: timedelta | None) -> Credentials:
        while True:
            fetch = self._store.begin_fetch(entry)
            try:
                operation = operations.get_credentials(entry.key, min_ttl)
                message = self.run(operation, self._store.read_timeout([entry], min_ttl))
            except IntegrationsError as error:
                usable = self._store.record_failure(entry, error, min_ttl)
                if usable is None:
                    raise
                return usable
            read = Credentials.decode(message, entry.key.integration_id, entry.integration_type)
            found = self._store.record(entry, fetch, read)
            stream = self._store.watch(entry, fetch)
            if stream is not None and self._watcher is not None:
                self._watcher.start(stream)
            if found is not None:
                return found


class Account(AccountAdapters):
    """An account of a user: a source of credentials, and what the server does with the account.

    It may be kept, or made anew for each use. Its credentials are in the client's memory.
    """

    __slots__ = ("_client", "_integration_id", "_type", "_user")

    def __init__(self, client: Integrations, user: str, type: str, integration_id: int | None) -> None:  # noqa: A002
        self._client = client
        self._user = user
        self._type = type
        self._integration_id = integration_id

    def __repr__(self) -> str:
        """The user, and the type or the number."""
        return f"Account(user={self._user!r}, type={self._type!r}, integration_id={self._integration_id!r})"

    def __eq__(self, other: object) -> bool:
        """Whether the other names the account in the same way, at the same client."""
        return isinstance(other, Account) and self._names() == other._names()

    def __hash__(self) -> int:
        """Equal accounts have equal hashes."""
        return hash(self._names())

    def _names(self) -> tuple[object, ...]:
        return self._client, self._user, self._type, self._integration_id

    def integration_id(self) -> int:
        """Return the number of the account, looked up the first time."""
        if self._integration_id is not None:
            return self._integration_id
        return self._client.resolve(self._user, self._type)

    def target(self) -> tuple[Key, str]:
        """Return the user and the number, which is looked up the first time, and the type, if it is known."""
        return self._key(), self._type

    def _key(self) -> Key:
        return Key(self._user, self.integration_id())

    # --- Credentials ------------------------------------------------------------------------------------------------

    def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """Return valid credentials, from memory while they are fresh. `min_ttl`: their minimum remaining lifetime."""
        key = self._key()
        try:
            return self._client.credentials(key, self._type, min_ttl)
        except IntegrationNotFound:
            if self._integration_id is not None:
                raise
            return self._client.credentials(self._key(), self._type, min_ttl)  # connected anew

    def renew(self, rejected: Credentials) -> Credentials:
        """Return newer credentials than those that the provider has rejected; `rejected` itself if there are none."""
        return self._client.renew(self._key(), self._type, rejected)

    def refresh(self, *, force: bool = False, timeout: Timeout = None) -> pb.RefreshTokenResponse:
        """Refresh the access token if it is about to expire, or with `force`."""
        key = self._key()
        response = self._client.run(operations.refresh(key, force=force), timeout)
        if response.refreshed:
            self._client.discard(key)
        return response

    # --- The integration --------------------------------------------------------------------------------------------

    def get(self, *, timeout: Timeout = None) -> Integration:
        """Return the integration."""
        return self._client.run(operations.get_integration(self._key()), timeout)

    def update(
        self,
        *,
        name: str | None = None,
        config: Config | None = None,
        is_active: bool | None = None,
        timeout: Timeout = None,
    ) -> Integration:
        """Change what is not None. Returns the integration."""
        operation = operations.update_integration(self._key(), name, config, is_active)
        return self._client.run(operation, timeout)

    def disconnect(self, *, timeout: Timeout = None) -> pb.DisconnectIntegrationResponse:
        """Delete the integration, and revoke its credentials at the provider."""
        key = self._key()
        response = self._client.run(operations.disconnect(key), timeout)
        self._client.discard(key)
        return response

    def health(self, *, timeout: Timeout = None) -> HealthCheck:
        """Check the integration."""
        return self._client.run(operations.check_health(self._key()), timeout)

    def health_checks(self, *, timeout: Timeout = None) -> Iterator[HealthCheck]:
        """Iterate over the last checks, the newest first."""
        yield from self._client.iterate(operations.list_health_checks(self._key()), timeout)

    # --- API proxy --------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Pairs | None = None,
        headers: Pairs | None = None,
        json: object = None,
        body: bytes = b"",
        idempotency_key: str = "",
        api: str = "",
        sub_account: str = "",
        timeout: Timeout = None,
    ) -> ApiResponse:
        """Call the provider's API through the server, which adds the credentials. Any HTTP status is a response."""
        call = ApiCall(method, path, query, headers, json, body, idempotency_key, api, sub_account)
        return self._client.run(operations.call_provider(self._key(), call), timeout)

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Pairs | None = None,
        headers: Pairs | None = None,
        content: Iterable[bytes] | None = None,
        content_length: int | None = None,
        idempotency_key: str = "",
        api: str = "",
        sub_account: str = "",
        timeout: Timeout = None,
    ) -> "StreamedResponse":
        """Call the provider's API with bodies of any size. Returns when the response's status and headers are there."""
        call = ApiCall(method, path, query, headers, None, b"", idempotency_key, api, sub_account)
        head = operations.first_part(self._key(), call, content_length)

        def requests() -> Iterator[pb.StreamProviderRequest]:
            yield head
            if content is not None:
                for chunk in content:
                    yield from operations.parts(chunk)

        stream = self._client.stream_provider(requests(), timeout)
        responses = iter(stream)
        return StreamedResponse(stream, responses, operations.api_response(next(responses)))

    # --- Webhooks ---------------------------------------------------------------------------------------------------

    def webhook_events(
        self, consumer: str, *, poll_interval: float | None = None, timeout: Timeout = None
    ) -> Generator[WebhookEvent, None, None]:
        """Iterate over webhook events, and acknowledge each that was processed, which is when the next is asked for.

        Those that are processed within a second are acknowledged together: after a crash they come again. Ends after
        the last event; with `poll_interval`, in seconds, it waits for further ones. `timeout` is of each call.
        """
        key = self._key()
        while True:
            events = self._client.run(operations.list_webhook_events(key, consumer), timeout)
            processed, ack_time = 0, time.monotonic() + _ACK_INTERVAL
            try:
                for event in events:
                    yield event
                    processed = event.number
                    if time.monotonic() >= ack_time:
                        self._client.run(operations.ack_webhook_events(key, consumer, processed), timeout)
                        processed, ack_time = 0, time.monotonic() + _ACK_INTERVAL
            except GeneratorExit:  # nobody asks for the next one any longer
                if processed:
                    with suppress(IntegrationsError):  # what is not acknowledged comes again
                        self._client.run(operations.ack_webhook_events(key, consumer, processed), timeout)
                raise
            if processed:
                self._client.run(operations.ack_webhook_events(key, consumer, processed), timeout)
            if not events:
                if poll_interval is None:
                    return
                time.sleep(poll_interval)

    def webhook_endpoint(self, *, timeout: Timeout = None) -> pb.GetWebhookEndpointResponse:
        """Return the integration's own webhook URL."""
        return self._client.run(operations.get_webhook_endpoint(self._key()), timeout)

    def set_webhook_secret(
        self, webhook_secret: str = "", *, previous_ttl: timedelta | None = None, timeout: Timeout = None
    ) -> WebhookSecret:
        """Set the secret of the webhook URL; the server generates one if none is given."""
        try:
            operation = operations.set_webhook_secret(self._key(), webhook_secret, previous_ttl)
        finally:
            del webhook_secret  # some reporters of errors print local variables
        return self._client.run(operation, timeout)


class Connection:
    """A connection that has begun. `attempt` has what its user needs."""

    def __init__(self, client: Integrations, attempt: Attempt, before: Integration | None) -> None:
        self._client = client
        self._before = before
        self.attempt = attempt

    def __repr__(self) -> str:
        """The attempt, without its secrets."""
        return f"Connection({self.attempt!r})"

    @property
    def authorization_url(self) -> str:
        """The URL to send the user's browser to; empty if the connection is complete."""
        return self.attempt.authorization_url

    @property
    def user_code(self) -> str:
        """The code that the user enters in a device authorization; empty without one."""
        return self.attempt.user_code

    @property
    def integration_id(self) -> int:
        """The number of the integration: `wait` may return another one, if the account was connected before."""
        return self.attempt.integration_id

    def wait(self, timeout: float | timedelta | None = None) -> Account:
        """Wait until the user has connected the account, and return it. The server may be away meanwhile.

        Raises `TimeoutError` after `timeout` seconds, `StateExpired` when nobody can complete the connection any
        longer, and the reason if the provider rejects a device authorization. It can be called again after a timeout.

        A user who refuses can go back and allow, which does not end it. The browser comes to the `return_url` with
        `success=false` and the `reason`: what serves that page can end the wait, if the user is not to try again.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = None if seconds is None else time.monotonic() + seconds
        for pause in pauses():
            try:
                integration_id = self._poll()
            except (Unavailable, DeadlineExceeded, ResourceExhausted):
                integration_id = None  # the user may connect meanwhile: look again until the attempt expires
            if integration_id is not None:
                attempt = self.attempt
                return self._client.account(
                    user=attempt.user, type=attempt.integration_type, integration_id=integration_id
                )
            check_expiry(self.attempt)
            remaining = pause if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("the user has not connected the account yet")
            time.sleep(min(pause, remaining))
        raise AssertionError("pauses do not end")

    def _poll(self) -> int | None:
        if self._before is None:
            return self.attempt.integration_id
        attempt = self.attempt
        try:
            if attempt.user_code:
                result = self._client.handle_callback(state=attempt.state, user=attempt.user)
                return device_outcome(result)
        except PermissionDenied:
            pass  # the policy does not grant callbacks: look at the integration instead
        try:
            integration = self._client.run(operations.get_integration(Key(attempt.user, attempt.integration_id)))
        except IntegrationNotFound:
            rows = list(self._client.list(user=attempt.user, type=attempt.integration_type))
            return merged(rows, self._before)
        return integration.integration_id if is_connected(integration, self._before) else None


class StreamedResponse:
    """A streamed response of a provider. Iterate over it for its body, or close it."""

    def __init__(
        self,
        stream: ResponseStream[pb.StreamProviderResponse],
        responses: Iterator[pb.StreamProviderResponse],
        head: ApiResponse,
    ) -> None:
        self._stream = stream
        self._responses = responses
        self._head = head
        self.status_code = head.status_code
        self.headers = head.headers

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the body. Raises `IntegrationsError` if the response does not arrive completely."""
        if self._head.body:
            yield self._head.body
        for response in self._responses:
            if response.body:
                yield response.body

    def close(self) -> None:
        """End the call."""
        self._stream.cancel()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the call."""
        self.close()
