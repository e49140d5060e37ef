"""A minimal Django project with django-oauth-toolkit, an independent OAuth server.

Run as `python -m tests.end_to_end.dot.project DIRECTORY`; see `Options` for the environment. Prints its own URL when it
listens, and serves one request at a time until it is ended.
"""

import os
import sys
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, demo_app, make_server

from tests.end_to_end.dot.options import Options

LOGIN_PAGE = """\
<form method="post">{% csrf_token %}{{ form }}<input type="hidden" name="next" value="{{ next }}"></form>
"""


DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
DEVICE_INTERVAL = 1  # seconds


def configure(directory: Path, options: Options, base_url: str) -> None:
    """Django's settings, built in code; the database is a file in the directory."""
    from django.conf import settings

    settings.configure(
        SECRET_KEY=os.urandom(32).hex(),
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF="tests.end_to_end.dot.urls",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / "dot.sqlite3")}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "oauth2_provider",
        ],
        # Create the tables from the models, without the fifty migrations.
        MIGRATION_MODULES={"auth": None, "contenttypes": None, "sessions": None, "oauth2_provider": None},
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        ("django.template.loaders.locmem.Loader", {"registration/login.html": LOGIN_PAGE}),
                        "django.template.loaders.app_directories.Loader",
                    ]
                },
            }
        ],
        LOGIN_URL="/accounts/login/",
        # Secrets are random and valid for one test; Django's default hash takes a third of a second.
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        OAUTH2_PROVIDER={
            "SCOPES": {
                "read": "Read",
                "write": "Write",
                "offline_access": "Stay connected",
                "admin": "Everything",
            },
            "DEFAULT_SCOPES": ["read"],
            "PKCE_REQUIRED": True,
            "OAUTH2_VALIDATOR_CLASS": "tests.end_to_end.dot.device.DeviceValidator",
            "OAUTH_DEVICE_VERIFICATION_URI": f"{base_url}/o/device/",
            "OAUTH_DEVICE_VERIFICATION_URI_COMPLETE": f"{base_url}/o/device/?user_code={{user_code}}",
            "DEVICE_FLOW_INTERVAL": DEVICE_INTERVAL,
            "ROTATE_REFRESH_TOKEN": True,
            "REFRESH_TOKEN_REUSE_PROTECTION": True,
            "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": options.refresh_token_grace_period_seconds,
            "ACCESS_TOKEN_EXPIRE_SECONDS": options.access_token_expire_seconds,
            # RFC 9700, as strict as possible: S256 only, `iss` in the response, bearer tokens in headers only.
            "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
            "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
            "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
            "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
            "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
        },
    )


def fill(options: Options) -> None:
    """Create the schema, one user and one confidential application."""
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from oauth2_provider.models import get_application_model

    call_command("migrate", run_syncdb=True, verbosity=0)
    get_user_model().objects.create_user(options.username, options.email, options.password)
    get_application_model().objects.create(
        name="Integration Server",
        client_id=options.client_id,
        client_secret=options.client_secret,  # stored as a hash
        client_type="confidential",
        authorization_grant_type=options.grant_type,
        redirect_uris=options.redirect_uri,
    )


class QuietHandler(WSGIRequestHandler):
    """Logs no requests: their queries carry codes."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the name is the standard library's
        """Log nothing."""


def main() -> None:
    """Set up, listen, print the URL, serve."""
    options = Options.from_environment()
    with make_server("127.0.0.1", 0, demo_app, handler_class=QuietHandler) as server:
        base_url = f"http://127.0.0.1:{server.server_port}"
        configure(Path(sys.argv[1]), options, base_url)

        import django
        from django.core.wsgi import get_wsgi_application

        django.setup()
        fill(options)
        server.set_app(get_wsgi_application())
        print(base_url, flush=True)  # the parent process reads the port from it
        server.serve_forever()


if __name__ == "__main__":
    main()
