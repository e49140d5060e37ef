"""Writes what compose.yaml needs and no repository may contain: passwords, keys, certificates, and a token for a trial.

    python -m tools.compose_secrets [FOLDER]      default: data/compose; what exists is kept, certificates are renewed

Only this user can enter the folder. The files in it that containers mount are readable for everybody, because the users
in containers have other numbers.
"""

import base64
import json
import os
import secrets
import sys
import time
from functools import partial
from pathlib import Path

from cryptography import x509
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from tools import certificates

FOLDER = Path("data/compose")
SERVER_NAMES = (*certificates.SERVER, *(x509.DNSName(name) for name in ("servers", "server-1", "server-2")))
ISSUER, AUDIENCE = "https://users.example", "integrations"
TRIAL_DAYS = 30

_MOUNTED, _PRIVATE = 0o444, 0o600
_SERVER_ENV = """\
# Secrets and settings of the servers; .env.example lists all of them. `docker compose up --detach` applies changes.

# Wraps the keys that encrypt credentials. Keep a copy elsewhere: without it nothing can be decrypted.
ENCRYPTION_KEY={encryption_key}

# The issuer of your users' tokens. This one has issued a single token, {folder}/ada.jwt, and its key is gone.
USER_JWT_JWKS=/run/secrets/users.json
USER_JWT_ISSUER={issuer}
USER_JWT_AUDIENCE={audience}

# The OAuth clients of your providers.
# GOOGLE_CALENDAR_CLIENT_ID=
# GOOGLE_CALENDAR_CLIENT_SECRET=
"""


def write(folder: Path) -> None:
    """Write the files that are missing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    certificates.write(folder, server_names=SERVER_NAMES, replace_file=partial(certificates.replace, mode=_MOUNTED))
    if not (folder / "database.env").exists():
        password = secrets.token_urlsafe(32)
        certificates.replace(folder / "postgres-password", password.encode(), _MOUNTED)
        url = f"postgresql://integrations:{password}@postgres:5432/integrations"
        certificates.replace(folder / "database.env", f"DATABASE_URL={url}\n".encode(), _PRIVATE)
    if not (folder / "server.env").exists():
        _issue_trial_token(folder)
        key = base64.b64encode(os.urandom(32)).decode()
        text = _SERVER_ENV.format(encryption_key=key, folder=folder, issuer=ISSUER, audience=AUDIENCE)
        certificates.replace(folder / "server.env", text.encode(), _PRIVATE)


def _issue_trial_token(folder: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "trial", "use": "sig", "alg": "ES256"})
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + TRIAL_DAYS * 24 * 3600}
    token = jwt.encode({"alg": "ES256", "kid": "trial"}, claims, key)
    jwks = json.dumps(KeySet([key]).as_dict(private=False))
    certificates.replace(folder / "users.json", jwks.encode(), _MOUNTED)
    certificates.replace(folder / "ada.jwt", token.encode(), _PRIVATE)


def main() -> None:
    """Write the files into the folder of the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    write(folder)
    print(f"{folder}: server.env (settings), database.env, certificates, and ada.jwt, a token of the user ada")


if __name__ == "__main__":
    main()
