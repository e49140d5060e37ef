"""Adapters: the credentials of an account, in the form that a provider's library takes.

Each module adapts one library, and is installed with the extra of its name. They share these rules:

- A request gets the credentials of the time when it is sent.
- If the provider responds with 401, the credentials are renewed once and the request is sent once more. A second 401 is
  returned. A body that cannot be sent twice is not: the 401 is returned, and the next request has the new credentials.
- Only the origin that a request was made for gets the credentials, not the target of a redirect to another one.
- No `repr` has a secret.

They see an account only as a source of credentials, `CredentialSource` or `AsyncCredentialSource`.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """While a library is imported: say how to install one that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = f"pip install 'integration-server[{extra}]'"
        message = f"this adapter needs {error.name}, which is not installed: {hint}"
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
