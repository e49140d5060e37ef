"""The code of users has no type errors: every documented snippet, and what adapters return, with mypy and pyright."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.client_adapters.test_documented_snippets import snippets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HEADER = """
from datetime import timedelta

import azure.core.credentials
import azure.core.credentials_async
import google.auth.credentials
import httpx
import requests.auth
import slack_sdk
import stripe

from integration_server.client.adapters.account_adapters import AccountAdapters, AsyncAccountAdapters


def returned(account: AccountAdapters) -> None:
    httpx_auth: httpx.Auth = account.httpx()
    requests_auth: requests.auth.AuthBase = account.requests()
    google_credentials: google.auth.credentials.Credentials = account.google()
    azure_credential: azure.core.credentials.TokenCredential = account.azure()
    azure_token_info: azure.core.credentials.SupportsTokenInfo = account.azure()
    slack_client: slack_sdk.WebClient = account.slack(timeout=5)
    stripe_client: stripe.StripeClient = account.stripe(stripe_account="acct_1")
    token: str = account.credentials(min_ttl=timedelta(minutes=5)).access_token
    print(httpx_auth, requests_auth, google_credentials, azure_credential, azure_token_info, slack_client)
    print(stripe_client, len(token))


async def returned_for_asyncio(account: AsyncAccountAdapters) -> None:
    httpx_auth: httpx.Auth = account.httpx()
    azure_credential: azure.core.credentials_async.AsyncTokenCredential = account.azure()
    azure_token_info: azure.core.credentials_async.AsyncSupportsTokenInfo = account.azure()
    token: str = (await account.credentials()).access_token
    print(httpx_auth, azure_credential, azure_token_info, len(token))
"""
WRONG = """

def wrong(account: AccountAdapters) -> None:
    number: int = account.credentials().access_token
    print(number, account.slack().no_such_method)
"""


def _program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


def _documented() -> str:
    functions = []
    for title, snippet in snippets():
        body = "".join(f"    {line}\n" if line else "\n" for line in snippet.splitlines())
        functions.append(f"\n\ndef snippet_{re.sub(r'[^a-z]', '_', title)}(account: AccountAdapters) -> None:\n{body}")
    return HEADER + "".join(functions)


def _mypy(path: Path) -> str:
    environment = {**os.environ, "MYPYPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"}
    # As in a project of a user, who has no stubs for libraries without types.
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", "--explicit-package-bases"]
    cache = f"--cache-dir={path.parent / 'mypy'}"
    command = [sys.executable, "-m", "mypy", *options, cache, str(path)]
    return subprocess.run(
        command, check=False, cwd=path.parent, env=environment, capture_output=True, text=True, timeout=300
    ).stdout


def _pyright(path: Path) -> str:
    settings = {
        "typeCheckingMode": "standard",
        "include": [path.name],
        "extraPaths": [str(ROOT), str(ROOT / "generated")],
        "reportMissingModuleSource": False,
    }
    (path.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--level", "error"]
    return subprocess.run(command, check=False, cwd=path.parent, capture_output=True, text=True, timeout=300).stdout


def test_mypy_strict_finds_no_error(tmp_path: Path) -> None:
    assert "Success: no issues found" in _mypy(_program(tmp_path, _documented()))


def test_pyright_finds_no_error(tmp_path: Path) -> None:
    assert "0 errors" in _pyright(_program(tmp_path, _documented()))


def test_negative_control_both_find_a_wrong_type_and_a_wrong_name(tmp_path: Path) -> None:
    path = _program(tmp_path, HEADER + WRONG)
    assert "Found 2 errors" in _mypy(path)
    assert "2 errors" in _pyright(path)
