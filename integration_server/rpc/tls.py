"""The TLS credentials of the gRPC server, reloaded while it runs.

gRPC reads them for each new connection. An open connection keeps the identity of the certificate that it started with
until the server closes it at its maximum age.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

from integration_server.hot_reload import Contents, InvalidFile, ReloadedFile
from integration_server.pem_validation import certificate_problems, pair_problems, validity_period


class ReloadingServerCredentials(ReloadedFile[grpc.ServerCertificateConfiguration]):
    """Server credentials that each `poll` updates from their files. The constructor raises `InvalidFile`.

    With `client_authorities`, every client must present a certificate that one of them has signed. A certificate
    that is not valid now, as it is read, is used, and logged: each client refuses it by its own clock.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_authorities: Path | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._certificate, self._key, self._authorities, self._clock = certificate, key, client_authorities, clock
        paths = [certificate, key] if client_authorities is None else [certificate, key, client_authorities]
        super().__init__("certificates", paths, self._read_configuration)

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials for a secure port."""
        return grpc.dynamic_ssl_server_credentials(
            self.value, lambda: self.value, require_client_authentication=self._authorities is not None
        )

    def validity_periods(self) -> Mapping[str, tuple[datetime, datetime]]:
        """Return begin and end of the validity of the certificates in use, by their role."""
        return self._validity_periods(self.contents_in_use)

    def _validity_periods(self, contents: Contents) -> Mapping[str, tuple[datetime, datetime]]:
        files = {"server": self._certificate, "client_ca": self._authorities}
        return {name: validity_period(contents[path]) for name, path in files.items() if path is not None}

    def _read_configuration(self, contents: Contents) -> grpc.ServerCertificateConfiguration:
        """Return the configuration. Raises `InvalidFile` if the pair does not match, which gRPC does not check."""
        problems = list(pair_problems(self._certificate, contents[self._certificate], self._key, contents[self._key]))
        authorities = None
        if self._authorities is not None:
            authorities = contents[self._authorities]
            problems += certificate_problems(self._authorities, authorities)
        if problems:
            raise InvalidFile(*problems)
        now = self._clock()
        for role, (begin, end) in self._validity_periods(contents).items():
            if not begin <= now < end:
                structlog.get_logger(__name__).error(
                    "certificate_not_valid", role=role, begin=begin.isoformat(), end=end.isoformat()
                )
        return grpc.ssl_server_certificate_configuration(
            [(contents[self._key], contents[self._certificate])],
            root_certificates=authorities,
        )
