"""A pretend OAuth 2 provider for development and tests, spoken to over loopback HTTP.

It keeps the protocol's rules strictly and shares no code with the rest of the server, so that no mistake is
made on both sides alike. Everything is in memory and gone when the process ends: not fit for real users.
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
from integration_server.sandbox.model import SAMPLE_SCOPES, Account, ApiKey, Client, Grant, TokenCall, fingerprint
from integration_server.sandbox.server import run_sandbox, serving
from integration_server.sandbox.state import Clock, Sandbox, TokenFactory

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
    "ApiKey",
    "Behaviour",
    "Client",
    "Clock",
    "Endpoint",
    "Fault",
    "Grant",
    "Handler",
    "Hang",
    "OversizedBody",
    "Reset",
    "ResetMidway",
    "Sandbox",
    "SlowBody",
    "TokenCall",
    "TokenFactory",
    "create_app",
    "decide",
    "fingerprint",
    "run_sandbox",
    "serving",
]
