"""Parsing of the responses of a device authorization (RFC 8628), including the deviations of real providers.

The response that begins one (§3.2) needs a device code, a user code and a verification URI. What a person is shown is
checked before: the URI is https, and the code a short line of visible characters. A `verification_uri_complete` that
fails the check counts as absent; the other two make the response unusable. `verification_url` is Google's name for the
URI. The lifetime is ten minutes if the response has none, and 30 minutes at most. The interval is five seconds if it
has none; one that is longer than half of the lifetime would leave no time to ask, and is that half.

A response to a request for the tokens (§3.5) leaves the decision pending with the code `authorization_pending`, with
any status below 500: GitHub sends 200, Google 428, most others 400. Other 4xx without an error code prove nothing
either. `slow_down` may come with 400, 403 or 429, and with the new interval.
"""

import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from integration_server.domain.credentials import DecisionPending, DeviceAuthorization
from integration_server.domain.lenient_values import UNREADABLE, bounded, field_at, seconds_until
from integration_server.domain.token_response import lifetime_in
from integration_server.providers.declaration_tables import DeviceResponse
from integration_server.providers.http import HttpResponse, url_problem

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"

_DEFAULT_INTERVAL = timedelta(seconds=5)  # RFC 8628 §3.2
_SHORTEST_INTERVAL = timedelta(seconds=1)  # the worker looks for due polls once a second
_DEFAULT_LIFETIME = timedelta(minutes=10)  # that of other authorization attempts
_LONGEST_LIFETIME = timedelta(minutes=30)  # the longest that providers document, and the example of RFC 8628 §3.2
_LONGEST_SLOW_DOWN = timedelta(minutes=5)  # what a response can add to the interval at once

_DEVICE_CODE = re.compile(r"[\x20-\x7e]{1,4096}")  # RFC 8628 §3.2 states no length; signed ones have a kilobyte
_MAX_USER_CODE = 64  # characters: a person types it; RFC 8628 §6.1 advises eight
_MAX_NUMBER = 10**18  # of a code that JSON has as a number
_MAX_URI = 2048  # characters: the length of other URLs in the contract
_FRAGMENT = re.compile(r"(?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")  # RFC 3986 §3.5

_URI_NAMES = ("verification_uri", "verification_url")
_COMPLETE_URI_NAMES = ("verification_uri_complete", "verification_url_complete")


def parse_device_authorization(
    fields: Mapping[str, Any], paths: DeviceResponse, now: datetime, *, dev_mode: bool, checks_uris: bool = True
) -> DeviceAuthorization | None:
    """The device authorization in the fields of a response; None if it has none that can be used.

    `checks_uris` is off only in negative controls: then a person is sent to any URI.
    """
    device_code, user_code = _text_at(fields, paths.device_code), _text_at(fields, paths.user_code)
    uris = (
        next((text for name in names if (text := _text_at(fields, name))), "")
        for names in (
            [paths.verification_uri] if paths.verification_uri else _URI_NAMES,
            [paths.verification_uri_complete] if paths.verification_uri_complete else _COMPLETE_URI_NAMES,
        )
    )
    uri, complete = (text if is_showable_uri(text, dev_mode=dev_mode) or not checks_uris else "" for text in uris)
    if not (_DEVICE_CODE.fullmatch(device_code) and _is_showable_code(user_code) and uri):
        return None
    lifetimes = fields if paths.expires_in is None else {"expires_in": field_at(fields, paths.expires_in)}
    lifetime = min(lifetime_in(lifetimes, now) or _DEFAULT_LIFETIME, _LONGEST_LIFETIME)
    interval = _interval_at(fields, paths.interval, now, lifetime) or _DEFAULT_INTERVAL
    return DeviceAuthorization(
        device_code,
        user_code.strip(),
        uri,
        complete,
        lifetime,
        min(max(interval, _SHORTEST_INTERVAL), max(lifetime / 2, _SHORTEST_INTERVAL)),
    )


def decision_pending(
    response: HttpResponse,
    fields: Mapping[str, Any],
    code: str | None,
    wait_status: Collection[int],
    now: datetime,
) -> DecisionPending | None:
    """What a response to a request for the tokens says about the decision; None if the user has decided.

    `code` is the error code of `fields`. None also for a failure of the provider or of our client.
    """
    if response.status >= 500:
        return None
    if response.status == 429 or response.status in wait_status or code in {"slow_down", "temporarily_unavailable"}:
        interval = _interval_at(fields, "interval", now, _LONGEST_SLOW_DOWN) or timedelta(0)
        return DecisionPending(True, interval, response.retry_after or timedelta(0))
    is_open = code is None and response.is_refusal and response.status != 401
    return DecisionPending() if is_open or code == "authorization_pending" else None


def is_showable_uri(uri: str, *, dev_mode: bool) -> bool:
    """Whether a person can be sent to a URI: https, without a user name; plain http to loopback in dev mode.

    Pages may have a fragment, which endpoints have not.
    """
    base, _, fragment = uri.partition("#")
    is_valid = url_problem(base, dev_mode=dev_mode) is None and _FRAGMENT.fullmatch(fragment)
    return bool(is_valid) and len(uri) <= _MAX_URI


def _is_showable_code(code: str) -> bool:
    # Neither control characters nor invisible ones, such as those that reverse the direction of writing.
    return 0 < len(code.strip()) <= _MAX_USER_CODE and code.isprintable() and UNREADABLE not in code


def _text_at(fields: Mapping[str, Any], path: str) -> str:
    value = field_at(fields, path)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER:
        value = str(value)
    return value if isinstance(value, str) and value.isprintable() else ""


def _interval_at(fields: Mapping[str, Any], path: str, now: datetime, longest: timedelta) -> timedelta | None:
    seconds = seconds_until(field_at(fields, path), now)
    return bounded(seconds, longest) if seconds is not None and seconds > 0 else None
