"""The sandbox: an OAuth 2 provider for development and tests, over loopback HTTP.

It follows the protocol strictly and shares no code with the rest of the server, so that an error is not made on both
sides. All state is in memory. It is not secure enough for real users.
"""

from integration_server.sandbox.app import create_app
from integration_server.sandbox.behaviour import OMIT, Behaviour, Endpoint, Fault, Handler
from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.calendar import QUOTA_BODY
from integration_server.sandbox.faults import (
    BAD_GATEWAY,
    BAD_JSON,
    EMPTY,
    HTML,
    JSON_ARRAY,
    REDIRECT,
    Hang,
    OversizedBody,
    Reset,
    ResetMidway,
    SlowBody,
)
from integration_server.sandbox.model import SAMPLE_SCOPES, Account, Client, fingerprint
from integration_server.sandbox.server import run_sandbox, serving
from integration_server.sandbox.state import Sandbox

__all__ = [
    "BAD_GATEWAY",
    "BAD_JSON",
    "EMPTY",
    "HTML",
    "JSON_ARRAY",
    "OMIT",
    "QUOTA_BODY",
    "REDIRECT",
    "SAMPLE_SCOPES",
    "Account",
    "Behaviour",
    "Client",
    "Endpoint",
    "Fault",
    "Handler",
    "Hang",
    "OversizedBody",
    "Reset",
    "ResetMidway",
    "Sandbox",
    "SlowBody",
    "create_app",
    "decide",
    "fingerprint",
    "run_sandbox",
    "serving",
]
