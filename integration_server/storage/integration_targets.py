"""The query for several integrations at once, each of a user, whose rows are bounded in bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    String,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
)

from integration_server.storage.bounded_pages import row_bytes
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.tables import integrations

_T = integrations.c

ANY_USER = ""
"""A target of any user: no user has this id."""


def find_many_queries(columns: Sequence[ColumnElement[Any]]) -> Mapping[str, DriverQuery]:
    """The query for each dialect: rows with these columns, and the ids of the targets.

    Its parameters are `max_bytes`, and the targets: `ids` and `user_ids`, or `targets` as a JSON array of pairs.
    """
    arrays = func.unnest(cast(bindparam("ids"), ARRAY(BigInteger)), cast(bindparam("user_ids"), ARRAY(String)))
    pairs = func.json_each(bindparam("targets", type_=String)).table_valued("value")
    json_targets = select(
        cast(func.json_extract(pairs.c.value, "$[0]"), Integer).label("integration_id"),
        func.json_extract(pairs.c.value, "$[1]").label("user_id"),
    ).subquery()
    return {
        "postgresql": _find_many(arrays.table_valued("integration_id", "user_id").render_derived(), columns),
        "sqlite": _find_many(json_targets, columns),
    }


def _find_many(targets: FromClause, columns: Sequence[ColumnElement[Any]]) -> DriverQuery:
    """The rows of targets with the columns `integration_id` and `user_id`; their values are NULL beyond `max_bytes`.

    The user is a condition of the join, so that another user's row is read no further than one that does not exist.
    """
    is_target = and_(
        _T.integration_id == targets.c.integration_id,
        or_(targets.c.user_id == ANY_USER, _T.user_id == targets.c.user_id),
    )
    size = row_bytes([_T.config, _T.encrypted_credentials, _T.name, _T.scopes, _T.missing_scopes]).label("size")
    sized = select(_T.integration_id.label("target_id"), size).select_from(targets).join(integrations, is_target)
    sized_rows = sized.subquery()
    total = func.sum(sized_rows.c.size).over(order_by=sized_rows.c.target_id, rows=(None, 0)).label("total")
    sums = select(sized_rows.c.target_id, sized_rows.c.size, total).subquery()
    fits = or_(sums.c.total <= bindparam("max_bytes"), sums.c.total == sums.c.size)
    found = sums.outerjoin(integrations, and_(_T.integration_id == sums.c.target_id, fits))
    return DriverQuery(select(*columns, sums.c.target_id).select_from(found))
