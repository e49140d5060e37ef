"""The client library in a few lines: an account's credentials on a request, without an RPC for each.

make run                                                  # in another terminal; it connects an account of ada
.venv/bin/python examples/client_quick_start.py
"""

import argparse
import sys

from integration_server.client import Integrations, IntegrationsError


def main() -> None:
    """List the accounts, and call the provider of one of them in two ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:50051", help="the address of the server")
    parser.add_argument("--user", default="ada", help="the user of the accounts")
    options = parser.parse_args()
    with Integrations(options.server) as integrations:
        for integration in integrations.list(user=options.user):
            print("Connected:", integration.integration_type, integration.account_label)
        account = integrations.account(user=options.user, type="sandbox")
        print("Put on a request:", sorted(account.credentials().headers))  # the names; the values are secret
        print("Through the server:", account.call("GET", "/userinfo").status_code)


if __name__ == "__main__":
    try:
        main()
    except IntegrationsError as error:
        sys.exit(f"{error.reason or error.code.name}: {error}")
