"""The client of the Integration Server: credentials that stay fresh in the process, and the server's functions.

It needs grpcio, protobuf and googleapis-common-protos, and imports nothing of the server.
"""

from integration_server.client.credentials import AsyncCredentialSource, Credentials, CredentialSource
from integration_server.client.errors import IntegrationsError

__all__ = ["AsyncCredentialSource", "CredentialSource", "Credentials", "IntegrationsError"]
