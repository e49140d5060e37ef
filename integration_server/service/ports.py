"""What the use cases need of the world, as small protocols; `bootstrap.py` says who fulfils them.

Every method that takes a `user_id` answers as if another user's rows did not exist. Stores raise `StoreUnavailable`
when the database is away.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NewType, Protocol

from integration_server.domain.audit import AuditEntry
from integration_server.domain.calls import ApiAnswer, ApiRequest, RateLimit
from integration_server.domain.credentials import AuthMethod, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.events import IntegrationEvent
from integration_server.domain.health import ErrorRate, HealthCheck
from integration_server.domain.integration import Failure, Integration, IntegrationId, UserId
from integration_server.domain.webhooks import ReceivedWebhook, WebhookRequest

Clock = Callable[[], datetime]
"""Now, in UTC and aware of it."""

RandomName = Callable[[], str]
"""A fresh unguessable name of 43 to 128 URL-safe characters, good as a PKCE verifier too (RFC 7636 §4.1)."""

Jitter = Callable[[], float]
"""A random number from 0 to 1."""


# --- sealing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value belongs. It opens nowhere else."""

    table: str
    column: str
    uid: str
    user_id: str = ""
    integration_type: str = ""


class Sealer(Protocol):
    """Encrypts values for their place."""

    async def seal(self, plaintext: bytes, place: Place) -> bytes:
        """`plaintext`, sealed with the newest key."""

    async def open(self, sealed: bytes, place: Place) -> bytes:
        """The plaintext. Raises `CredentialsUnreadable` when anything about value, key or place is not as sealed."""


# --- storing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredIntegration:
    """An integration with its sealed credentials; None while it is pending."""

    integration: Integration
    sealed_credentials: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewIntegration:
    """What is known of an integration when its connection begins."""

    uid: str
    user_id: UserId
    integration_type: str
    auth_method: AuthMethod
    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """An attempt to connect, about to be stored. `attempt_id` is the nonce that the state carries."""

    attempt_id: str
    user_id: UserId
    integration_type: str
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    sealed_verifier: bytes = field(repr=False)
    is_reconnection: bool
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """A stored attempt, taken by the one callback or confirmation that may finish it."""

    attempt_id: str
    integration_id: IntegrationId
    user_id: UserId
    integration_type: str
    redirect_uri: str
    return_url: str | None
    scopes: tuple[str, ...]
    sealed_verifier: bytes = field(repr=False)
    sealed_callback: bytes | None = field(repr=False)
    is_reconnection: bool
    expire_time: datetime


class AttemptStore(Protocol):
    """Attempts to connect. Each is begun, perhaps held for its confirmation, and taken once."""

    async def begin(self, attempt: NewAttempt, integration: NewIntegration) -> IntegrationId:
        """Store a pending integration together with the attempt that may finish it."""

    async def begin_again(self, attempt: NewAttempt, integration_id: IntegrationId) -> None:
        """Store an attempt to reconnect; the integration stays as it is. Raises `IntegrationNotFound`."""

    async def hold(self, attempt_id: str, sealed_callback: bytes, now: datetime) -> Attempt | None:
        """Keep the callback until it is confirmed. None if the attempt is not in its beginning, or over."""

    async def take(self, attempt_id: str, now: datetime) -> Attempt | None:
        """Take a begun attempt, to be finished by this caller alone. None if it is taken, held or over."""

    async def take_held(self, attempt_id: str, now: datetime) -> Attempt | None:
        """Take a held attempt, to be finished by this caller alone. None if it is not held, or over."""

    async def give_up(self, attempt: Attempt) -> None:
        """Remove what a taken attempt leaves behind: its pending integration, if it is pending."""

    async def remove_expired(self, before: datetime) -> int:
        """Remove attempts that ended before then, with the integrations still pending on them; how many there were."""


@dataclass(frozen=True, slots=True)
class NewCredentials:
    """Sealed credentials and what is told of them in the open."""

    sealed_credentials: bytes = field(repr=False)
    scopes: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()
    lacks_required_scope: bool = False
    is_renewable: bool = False
    access_token_expire_time: datetime | None = None
    refresh_token_expire_time: datetime | None = None
    refresh_due_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewAccount:
    """The account that credentials turned out to open; None where the provider does not tell."""

    account_id: str | None
    account_label: str | None


@dataclass(frozen=True, slots=True)
class OrphanedGrant:
    """Credentials that no integration has (any more), sealed for the place of the one that they were for."""

    uid: str
    user_id: UserId
    integration_type: str
    account_id: str | None
    sealed_credentials: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A grant that is to be revoked, claimed by whoever has this.

    `attempts` counts the claims, this one included: who is not the last to have claimed may not put it off. `age` is
    how long it had been in the outbox by then.
    """

    revocation_id: int
    grant: OrphanedGrant
    attempts: int
    age: timedelta


@dataclass(frozen=True, slots=True)
class Removed:
    """An integration that is gone, and what is left to do about it.

    `revocation` is claimed by the remover; None if the integration was pending. `is_refreshing`: its refresh token
    was used, and what came of that is not known yet.
    """

    integration: Integration
    revocation: Revocation | None
    is_refreshing: bool


class IntegrationLookup(Protocol):
    """Where to find an integration as it is, or was within the last second."""

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""


ChangePlace = NewType("ChangePlace", str)
"""How far somebody has looked at the changes. Means something to the store only."""


@dataclass(frozen=True, slots=True)
class News:
    """Which integrations changed, or are gone, and from where to look the next time."""

    place: ChangePlace
    integration_ids: frozenset[IntegrationId]


class Changes(Protocol):
    """What all processes and replicas changed of what a backend is given for an integration."""

    async def since(self, place: ChangePlace | None) -> News:
        """What became visible since `place` was got, and perhaps a little more; with None, only where to begin."""


class IntegrationStore(Protocol):
    """Integrations and their sealed credentials."""

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """The user's integration."""

    async def find_account(self, user_id: UserId, integration_type: str, account_id: str) -> Integration | None:
        """The user's connected integration of that account."""

    async def list(
        self, user_id: UserId, integration_types: Collection[str] | None, after: IntegrationId, limit: int
    ) -> Sequence[Integration]:
        """The user's integrations of these types (None: all) with an id above `after`, in the order of their ids."""

    async def list_connected(self, user_id: UserId) -> Sequence[StoredIntegration]:
        """The user's integrations that are not pending, in the order of their ids."""

    async def shares_grant(self, grant: OrphanedGrant, integration_types: Iterable[str]) -> bool:
        """Whether a connected integration would die if the grant were revoked for the whole account.

        That is one of `integration_types` with the same account, whoever's; or the same user's, where it may be the
        same account: it is of another of these types, which may name it differently, or either account is unknown.
        """

    async def list_ending(self, before: datetime, limit: int) -> Sequence[Integration]:
        """Everybody's integrations that end before then (see `Integration.end_time`), the soonest first.

        Those that are switched off or dead are not among them.
        """

    async def add_connected(
        self,
        integration: NewIntegration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
    ) -> Integration | None:
        """Store an integration that is connected from the start. None if the user's account has a row by now."""

    async def commit_connection(
        self,
        integration: Integration,
        account: NewAccount,
        credentials: NewCredentials,
        now: datetime,
        *,
        check_due_time: datetime | None = None,
        instead_of: IntegrationId | None = None,
    ) -> Integration | None:
        """Give a pending or reconnected integration its credentials, switch it on and clear its errors.

        In the same commit `instead_of`, a pending integration that turned out to be the same account, goes. None,
        and nothing changed, if the integration is gone, its version is another by now, or its account has another
        row: look again.
        """

    async def commit_refresh(
        self, integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        """Replace the credentials of `integration.version`, and clear its errors and its lease.

        None, and nothing changed, if the version is another: whoever holds a lease, or held one that has lapsed, may
        commit, and the first one does.
        """

    async def record_failure(
        self,
        integration: Integration,
        failure: Failure,
        *,
        reauthorization_required: bool = False,
        retry_time: datetime | None = None,
        refusals: int = 0,
        refresh_due_time: datetime | None = None,
    ) -> None:
        """Set what came of a failed refresh, unless the credentials were replaced since `integration` was read.

        The last error is counted; until `retry_time` the provider should not be asked again; `refusals` is how often
        in a row it has refused without saying why. At `refresh_due_time` the server tries again by itself, if it
        refreshes this one by itself at all.
        """

    async def record_call(self, integration: Integration, failure: Failure | None) -> None:
        """Count and set the last error after a call, or clear it, unless the credentials were replaced since."""

    async def update(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        now: datetime,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_active: bool | None = None,
    ) -> Integration | None:
        """Set what is not None. None if there is no such integration."""

    async def remove(
        self, integration_id: IntegrationId, user_id: UserId, *, claim_for: timedelta = timedelta(0)
    ) -> Removed | None:
        """Delete the integration with all that hangs on it, and put its credentials into the outbox in the same commit.

        The revocation is the caller's alone for `claim_for`. None if there is no such integration.
        """

    async def ping(self) -> None:
        """Return if the database answers and its schema is there."""


# --- webhooks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredWebhookSecrets:
    """What an integration's own webhooks are signed with, sealed; and what they were signed with before, until when."""

    sealed_secret: bytes = field(repr=False)
    set_time: datetime
    sealed_former_secret: bytes | None = field(default=None, repr=False)
    former_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """An integration as its own webhook address finds it."""

    stored: StoredIntegration
    secrets: StoredWebhookSecrets | None


class WebhookEndpoints(Protocol):
    """Integrations' own webhook addresses, whose last part is the integration's `uid`, and their secrets."""

    async def find(self, integration_type: str, uid: str) -> WebhookEndpoint | None:
        """The connected integration of this type with this address, whoever's."""

    async def find_of(self, integration_id: IntegrationId, user_id: UserId) -> WebhookEndpoint | None:
        """The user's integration, pending or not."""

    async def set_secrets(
        self, integration: Integration, before: StoredWebhookSecrets | None, secrets: StoredWebhookSecrets
    ) -> bool:
        """Put secrets in the place of those before. False, and nothing changed, if others are there by now."""


@dataclass(frozen=True, slots=True)
class NewWebhookEvent:
    """An event about to be stored for an integration. `uid` is what its payload is sealed for."""

    integration: Integration
    uid: str
    event_id: str
    event_type: str
    sealed_payload: bytes = field(repr=False)
    ends_grant: Failure | None = None


@dataclass(frozen=True, slots=True)
class KeptWebhookEvent:
    """An event as it is stored."""

    number: int
    uid: str
    event_id: str
    event_type: str
    receive_time: datetime
    sealed_payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookPage:
    """Events in their order, and whether more follow."""

    events: Sequence[KeptWebhookEvent]
    is_last: bool


class WebhookInbox(Protocol):
    """What webhooks have brought, kept until it is too old, and how far each consumer has got.

    An integration's events are numbered from 1 on, without gaps, in the order in which they became visible.
    """

    async def addressees(self, integration_type: str, account_ids: Collection[str]) -> Sequence[Integration]:
        """The connected integrations of these accounts, whoever's."""

    async def known(
        self, integration_ids: Collection[IntegrationId], event_ids: Collection[str]
    ) -> Collection[tuple[IntegrationId, str]]:
        """Which of these events these integrations have already. Only reads: a repeated delivery costs no more."""

    async def add(self, events: Sequence[NewWebhookEvent], now: datetime) -> Sequence[NewWebhookEvent]:
        """Store those that are not known, all or none; which they were.

        One that ends the grant sets that failure with it, unless the integration was connected again since `now`.
        An integration that is gone by now gets nothing.
        """

    async def list(self, integration: Integration, after: int, limit: int, most_bytes: int) -> WebhookPage:
        """An integration's events above a number: at most `limit`, and of at most so many bytes, but for the first."""

    async def place(self, integration: Integration, consumer: str) -> int:
        """The number that the consumer has acknowledged last; 0 for none."""

    async def acknowledge(self, integration: Integration, consumer: str, number: int) -> int | None:
        """Move the consumer's place there, unless it is further; where it is. None if there is no such event yet."""

    async def prune(self, before: datetime) -> int:
        """Forget some of everybody's events that came before then; how many there were. 0: none is left."""


# --- watching ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventBatch:
    """What became visible between two looks: numbers that mean something to the store only. `low` belongs to it,
    `high` does not; it is that of the next batch."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event and its number, by which the events of a batch are ordered."""

    number: int
    event: IntegrationEvent


@dataclass(frozen=True, slots=True)
class Glance:
    """A batch that ends now, with the first of its events, and the store's own time."""

    batch: EventBatch
    time: datetime
    events: Sequence[LoggedEvent]


@dataclass(frozen=True, slots=True)
class EventWish:
    """Whose events, and of which types; None means all."""

    user_id: UserId | None = None
    integration_types: frozenset[str] | None = None

    def covers(self, event: IntegrationEvent) -> bool:
        """Whether an event is among them."""
        return self.user_id in {None, event.user_id} and (
            self.integration_types is None or event.integration_type in self.integration_types
        )


class EventLog(Protocol):
    """What happened to integrations, in the order in which it became visible; kept for some time.

    A batch that was ended by a look never changes afterwards, and nothing appears before its end.
    """

    async def end(self) -> tuple[int, datetime]:
        """Where a batch that ends now has its end, and the store's own time."""

    async def glance(self, low: int, limit: int) -> Glance:
        """The batch from there up to now, for the one who looks all the time."""

    async def read(self, batch: EventBatch, after: int, wish: EventWish, limit: int) -> Sequence[LoggedEvent]:
        """Events of a batch with a number above `after`."""

    async def prune(self, keep: timedelta) -> int:
        """Forget some of what is older, on the store's own clock; how much it was. 0: nothing is left."""


class Work(Enum):
    """What the server does by itself."""

    REFRESH = "refresh"
    CHECK = "check"


class Agenda(Protocol):
    """What is due, for integrations that are switched on and not dead."""

    async def due_types(self, work: Work, now: datetime) -> Sequence[str]:
        """The integration types with due work. Only reads, so that many may look."""

    async def claim(
        self, work: Work, integration_type: str, now: datetime, due_again: datetime, limit: int
    ) -> Sequence[StoredIntegration]:
        """At most `limit` of what is due, to be done by this caller: what has waited longest first.

        It is due again at `due_again`, unless what comes of the work sets another time.
        """


@dataclass(frozen=True, slots=True)
class KeptCheck:
    """A check of the history, and its number there, by which it is ordered."""

    health_check_id: int
    check: HealthCheck


class HealthHistory(Protocol):
    """The checks that were made."""

    async def record(self, check: HealthCheck, check_due_time: datetime | None) -> None:
        """Keep a check, set or clear the integration's last error after it, and when to check next.

        The error stays as it is if the credentials were replaced since they were checked, and what failed since the
        check began is not counted again; nothing is kept if the integration was removed meanwhile.
        """

    async def list(self, integration: Integration, before: int | None, limit: int) -> Sequence[KeptCheck]:
        """An integration's checks with a number below `before`, newest first."""

    async def error_rates(
        self, integration: Integration, windows: Sequence[timedelta], now: datetime
    ) -> Sequence[ErrorRate]:
        """How an integration's checks went in each window up to now."""

    async def prune(self, before: datetime) -> int:
        """Forget some of everybody's checks made before then; how many there were. 0: none is left."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to refresh one version of an integration's tokens, until it lapses on the database's clock.

    `called_ago` is how long ago an earlier holder called the provider with this version's refresh token and has not
    come back since: the token may be spent. None if nobody has.
    """

    integration_id: IntegrationId
    version: int
    owner: str
    called_ago: timedelta | None


class RefreshLeases(Protocol):
    """One refresh at a time of each integration, over all processes and replicas that share the database."""

    async def is_free(self, integration: Integration) -> bool:
        """Whether `claim` has a chance. Only reads, so that many may wait."""

    async def claim(self, integration: Integration, owner: str) -> Lease | None:
        """A lease on this version for `owner`. None while another's lasts, or if the integration is gone."""

    async def mark_called(self, lease: Lease) -> bool:
        """Note that the refresh token may be spent from now on. False if the lease is not the owner's any more."""

    async def release(self, lease: Lease, *, settled: bool) -> None:
        """Let others claim. Unless it is `settled` what became of the call, they learn that there was one."""


class Revocations(Protocol):
    """The outbox of grants to be revoked, shared by all processes and replicas.

    A claim is its holder's alone for a while on the database's clock. Then it is due again: the work of one who
    crashed is not lost.
    """

    async def add(self, grant: OrphanedGrant) -> None:
        """Put a grant in, due at once."""

    async def due_types(self) -> Sequence[str]:
        """The types of which something is due. Only reads."""

    async def claim_due(self, integration_type: str, limit: int, *, claim_for: timedelta) -> Sequence[Revocation]:
        """Claim what is due of a type, longest due first."""

    async def put_off(self, revocation: Revocation, pause: timedelta) -> None:
        """Give up the claim; it is due again after the pause. Does nothing if another has claimed it by now."""

    async def remove(self, revocation: Revocation) -> None:
        """Take it out: there is nothing more to be done."""


@dataclass(frozen=True, slots=True)
class SpilledRefresh:
    """A refresh that the provider has answered and that could not be committed.

    The last three say what to revoke if the integration is gone by then; a former version did not note them.
    """

    integration_id: IntegrationId
    user_id: UserId
    version: int
    credentials: NewCredentials
    uid: str | None = None
    integration_type: str | None = None
    account_id: str | None = None


class Spill(Protocol):
    """Where answers are kept, on this machine's disk, until the database is back."""

    async def keep(self, refresh: SpilledRefresh) -> None:
        """Keep it durably: on return it survives a crash of process and machine."""

    async def kept(self) -> Sequence[SpilledRefresh]:
        """All that is kept, also from before a restart."""

    async def drop(self, refresh: SpilledRefresh) -> None:
        """Forget one that has been committed, or overtaken."""


class AuditLog(Protocol):
    """Where the audit trail is kept: only ever added to."""

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Keep entries, all or none, in this order. One call at a time. Raises `StoreUnavailable`."""


# --- providers ---------------------------------------------------------------------------------------------------


class Provider(Protocol):
    """What the use cases ask of a provider. Its calls raise `ProviderError` and nothing else."""

    @property
    def integration_type(self) -> str:
        """The name of the kind, such as "google_calendar"."""

    @property
    def aliases(self) -> Sequence[str]:
        """Other names that callers may use for the kind."""

    @property
    def display_name(self) -> str:
        """The name for people."""

    @property
    def auth_method(self) -> AuthMethod:
        """How it lets us in."""

    @property
    def required_scopes(self) -> Sequence[str]:
        """Scopes that are always asked for and must be granted."""

    @property
    def required_fields(self) -> Sequence[str]:
        """Fields that a connection by key must have: "api_key", "api_secret"."""

    @property
    def missing_settings(self) -> Sequence[str]:
        """Settings that must be set before it can be used, by name."""

    @property
    def issuer(self) -> str | None:
        """The authorization server's name; a callback must then carry it as `iss` (RFC 9207)."""

    @property
    def shares_grants_with(self) -> Sequence[str]:
        """Types that die with this one's grant: its own and others of the same client, where a revocation ends all
        that the client holds of an account; empty where it ends one grant only."""

    @property
    def refresh_token_grace(self) -> timedelta:
        """For how long after a refresh the refresh token that it spent still works, as the provider documents it.

        Zero where it is dead at once or nothing is documented; `timedelta.max` where a refresh spends nothing.
        """

    def at(self, config: Mapping[str, Any]) -> "Provider":
        """The provider as an integration with this config sees it: some have a host for each account.

        Raises `InvalidField` for a config that is not right for this type.
        """

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """Where to send the browser (RFC 6749 §4.1.1, RFC 7636 §4.3 with S256)."""

    def missing_scopes(self, asked: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """Which of the scopes that were asked for the answer did not grant."""

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """What else of a callback's query belongs to the account, kept with its credentials."""

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Trade a code (RFC 6749 §4.1.3)."""

    async def renew(self, tokens: OAuthTokens) -> OAuthTokens:
        """New tokens for these (RFC 6749 §6); what the answer leaves out stays as it was."""

    @property
    def takes_webhooks(self) -> bool:
        """Whether it is known how its webhooks are verified."""

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """What it signs with: for our app (None), by our settings; or for the integration with these credentials."""

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """What a request brings, if one of the secrets shows it to be the provider's. Raises `WebhookForged`."""

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Ask the provider whether it takes the credentials, and whose they are."""

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """End the credentials at the provider. False where it has no way to."""

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """What lets a request to its API in."""

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        """What it documents of how often its API may be called; calls stay within all of them."""

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiAnswer:
        """Send a request to its API, let in by the credentials; whatever is answered is an answer.

        Raises `ApiNotDeclared`; `AnswerTooLarge` over `body_limit` bytes; `ProviderUnavailable` where no answer comes.
        """


class Providers(Protocol):
    """The providers that this server knows."""

    def get(self, integration_type: str) -> Provider:
        """The provider of a type, by its name or an alias. Raises `UnknownIntegrationType`."""

    def all(self) -> Sequence[Provider]:
        """All of them, by name."""
