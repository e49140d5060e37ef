"""The refresh leases in SQL: implements the port `RefreshLeases`.

All times are on the database's clock at the time of the statement. A lease is a row, not a lock: it holds no connection
during the provider call, and works through a transaction pooler. The row stays after the refresh. A lease on an older
version than the integration's is void.

Leases differ from the claims of due work (`due_work.py`): a refresh also runs on demand, when nothing is due, and a
lease records whether the provider was called, because the refresh token may then be spent.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Select,
    String,
    UpdateBase,
    and_,
    bindparam,
    case,
    func,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.domain.credentials import RefreshCause
from integration_server.domain.errors import ProviderMisconfigured, ReauthorizationRequired
from integration_server.domain.integration import Integration
from integration_server.service.credentials.ports import Lease, LeaseState, RefreshOutcome
from integration_server.storage.driver_queries import DriverQuery, Values
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.integrations import PLAINTEXT_COLUMNS, integration_of
from integration_server.storage.tables import integrations, refresh_leases

_I = integrations.c
_L = refresh_leases.c
_IS_OF_INTEGRATION = _L.integration_id == bindparam("of_integration")
_NO_OWNER = ""
_IS_OWNER = _L.owner == bindparam("of_owner")
_IS_CALLER = _L.called_by == bindparam("of_owner")

_CALL_COLUMNS = _L.version, _L.call_time, _L.called_by, DatabaseTime().label("now")
_STATE = DriverQuery(select(*_CALL_COLUMNS, _L.expire_time, _L.claim_time, _L.failure).where(_IS_OF_INTEGRATION))
_EXPIRE = (
    update(refresh_leases).where(_IS_OF_INTEGRATION, _IS_OWNER).values(owner=_NO_OWNER, expire_time=DatabaseTime())
)
_RESOLVE = (
    update(refresh_leases)
    .where(_IS_OF_INTEGRATION, or_(_IS_OWNER, _IS_CALLER))
    .values(
        owner=case((_IS_OWNER, _NO_OWNER), else_=_L.owner),
        expire_time=case((_IS_OWNER, DatabaseTime()), else_=_L.expire_time),
        failure=case((_IS_OWNER, bindparam("of_failure", type_=String(64))), else_=_L.failure),
        # The owner that took the lease over may have called since then.
        call_time=case(
            (not_(_IS_CALLER), _L.call_time),
            (or_(_IS_OWNER, _L.owner == _NO_OWNER), None),
            else_=DatabaseTime(),
        ),
        called_by=case(
            (not_(_IS_CALLER), _L.called_by),
            (or_(_IS_OWNER, _L.owner == _NO_OWNER), None),
            else_=_L.owner,
        ),
    )
)
_LOSE = (
    update(refresh_leases)
    .where(_IS_OF_INTEGRATION, or_(_IS_OWNER, _IS_CALLER))
    .values(
        owner=case((_IS_OWNER, _NO_OWNER), else_=_L.owner),
        expire_time=case((_IS_OWNER, DatabaseTime()), else_=_L.expire_time),
        failure=case((_IS_OWNER, bindparam("of_failure", type_=String(64))), else_=_L.failure),
        called_by=case((_IS_OWNER, _NO_OWNER), else_=_L.owner),  # the owner that took the lease over may have called
    )
)

_REFUSED = (ReauthorizationRequired.reason, ProviderMisconfigured.reason)
"""The failures of a refresh with `invalid_grant`: the second one during a mass failure."""

_REFUSE = (
    update(refresh_leases)
    .where(_IS_OF_INTEGRATION, _IS_OWNER)
    .values(refusal_time=func.coalesce(_L.refusal_time, DatabaseTime()), failure=ReauthorizationRequired.reason)
)
_CLAIMS_PER_OUTCOME = 10
"""How many latest claims are read for each outcome that is wanted. The others have failed in another way: during an
outage almost all, hundreds of thousands in the minutes that count."""


class SqlRefreshLeases:
    """`RefreshLeases` in SQL. Each lease lasts for `duration`.

    `forced_interval` is the minimum time between the claim of any lease and the claim for a forced refresh.
    """

    def __init__(self, database: Database, duration: timedelta, forced_interval: timedelta) -> None:
        self._database = database
        self._forced_interval = forced_interval
        self._claims = _claims(duration, forced_interval)

    async def state(self, integration: Integration) -> LeaseState:
        """The state of the lease."""
        rows = await self._database.read(_STATE, of_integration=integration.integration_id)
        if not rows:
            return LeaseState()
        *call, expire_time, claim_time, failure = rows[0]
        version, _, _, now = call
        return LeaseState(
            is_free=version < integration.version or expire_time <= now,
            forced_wait=max(timedelta(0), claim_time + self._forced_interval - now),
            failure=failure if version == integration.version else None,
            **_previous_call(call, integration.version),
        )

    async def claim(
        self, integration: Integration, owner: str, cause: RefreshCause = RefreshCause.EXPIRY
    ) -> Lease | None:
        """Claim the lease of this version, if it is current. An expired lease is taken over with its recorded call."""
        rows = await self._database.run(
            self._claims[self._database.dialect_name],
            of_integration=integration.integration_id,
            of_version=integration.version,
            of_owner=owner,
            is_forced=cause.is_forced,
            has_ended=cause is RefreshCause.FORCE,
        )
        if not rows:
            return None
        *call, refusal_time = rows[0]
        _, _, called_by, now = call
        previous_call = {} if called_by == owner else _previous_call(call, integration.version)
        return Lease(
            integration.integration_id,
            integration.version,
            owner,
            **{"previous_call_age": None, **previous_call},
            refusal_age=None if refusal_time is None else now - refusal_time,
        )

    async def release(
        self, lease: Lease, *, outcome_known: bool, is_lost: bool = False, failure: str | None = None
    ) -> None:
        """Release the lease if it is still the owner's. `outcome_known` removes the record of the owner's call."""
        parameters: dict[str, Any] = {"of_integration": lease.integration_id, "of_owner": lease.owner}
        if outcome_known or is_lost:
            await self._database.write(_RESOLVE if outcome_known else _LOSE, {**parameters, "of_failure": failure})
        else:
            await self._database.write(_EXPIRE, parameters)

    async def record_refusal(self, lease: Lease) -> None:
        """Record that the provider responded `invalid_grant`."""
        await self._database.write(_REFUSE, {"of_integration": lease.integration_id, "of_owner": lease.owner})

    async def latest_outcomes(
        self, integration: Integration, within: timedelta, limit: int
    ) -> Sequence[RefreshOutcome]:
        """The outcomes of the latest refreshes of other integrations of the client, the newest first."""
        rows = await self._database.fetch(
            _outcomes(within, limit),
            {"of_client": integration.client_key, "of_integration": integration.integration_id},
        )
        return [RefreshOutcome(integration_of(row), bool(row.is_refused)) for row in rows]


def _outcomes(within: timedelta, limit: int) -> Select[Any]:
    """The outcomes among the latest claims, the newest first."""
    # Evaluated once: with a volatile function PostgreSQL would not use the index.
    begin = select(DatabaseTime(-within)).scalar_subquery()
    latest = (
        select(refresh_leases)
        .where(_L.client_key == bindparam("of_client"), _L.integration_id != bindparam("of_integration"))
        .where(_L.claim_time > begin)
        .order_by(_L.claim_time.desc())
        .limit(_CLAIMS_PER_OUTCOME * limit)
        .subquery()
    )
    lease = latest.c
    has_succeeded = lease.version < _I.version
    # Not a forced refresh of a grant that had ended before: users who force dead grants are no mass failure.
    is_new = or_(_I.reauthorization_required.is_(False), lease.refusal_time >= lease.claim_time)
    is_refused = and_(lease.failure.in_(_REFUSED), lease.refusal_time.is_not(None), is_new)
    return (
        select(*PLAINTEXT_COLUMNS, not_(has_succeeded).label("is_refused"))
        .join_from(latest, integrations, lease.integration_id == _I.integration_id)
        .where(or_(has_succeeded, is_refused))
        .order_by(lease.claim_time.desc())
        .limit(limit)
    )


def _previous_call(call: Values, version: int) -> dict[str, Any]:
    """The fields of a lease that describe an earlier call for this version, whose outcome is unknown."""
    leased_version, call_time, called_by, now = call
    if call_time is None or leased_version != version:
        return {}
    return {"previous_call_age": now - call_time, "previous_call_is_lost": called_by == _NO_OWNER}


@lru_cache(maxsize=8)
def _claims(duration: timedelta, forced_interval: timedelta) -> Mapping[str, DriverQuery]:
    """The claim statement of each dialect. Cached, because building one takes milliseconds."""
    return {
        "postgresql": _claim(postgresql.insert(refresh_leases), duration, forced_interval),
        "sqlite": _claim(sqlite.insert(refresh_leases), duration, forced_interval),
    }


def _claim(insert: Any, duration: timedelta, forced_interval: timedelta) -> DriverQuery:  # noqa: ANN401  # the inserts of the two dialects share no type
    """The claim statement, with the insert of a dialect."""
    owner = bindparam("of_owner", type_=String(255))
    columns = {
        "integration_id": _I.integration_id,
        "client_key": _I.client_key,
        "version": _I.version,
        "owner": owner,
        "expire_time": DatabaseTime(duration),
        "call_time": DatabaseTime(),
        "called_by": owner,
        "claim_time": DatabaseTime(),
    }
    claimable = (
        select(*columns.values())
        .where(_I.integration_id == bindparam("of_integration"), _I.version == bindparam("of_version"))
        .where(_I.is_active.is_(True), or_(_I.reauthorization_required.is_(False), _flag("has_ended")))
        # A concurrent removal either sees the lease, or leaves no row to claim.
        .with_for_update(read=True, key_share=True)
    )
    new = insert.from_select(list(columns), claimable)
    is_same_version = _L.version == new.excluded.version
    was_called = and_(is_same_version, _L.call_time.is_not(None))
    claim: UpdateBase = new.on_conflict_do_update(
        index_elements=[_L.integration_id],
        set_={
            **{name: new.excluded[name] for name in ("version", "owner", "expire_time", "claim_time")},
            "failure": null(),
            "refusal_time": case((is_same_version, _L.refusal_time)),
            "call_time": case((was_called, _L.call_time), else_=new.excluded.call_time),
            "called_by": case((was_called, _L.called_by), else_=new.excluded.called_by),
        },
        where=and_(
            or_(_L.version < new.excluded.version, and_(is_same_version, _L.expire_time <= DatabaseTime())),
            or_(not_(_flag("is_forced")), _L.claim_time <= DatabaseTime(-forced_interval)),
        ),
    ).returning(*_CALL_COLUMNS, _L.refusal_time)
    return DriverQuery(claim)


def _flag(name: str) -> ColumnElement[bool]:
    return bindparam(name, type_=Boolean)
