"""Settings: parsing of environment variables, and the rules over them."""

import base64
import json
import random
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from integration_server.entropy import is_weak_key
from integration_server.setting_types import Address, parse_address
from integration_server.settings import RULES, SERVER_RULES, Rule, Settings, SettingsError, name_files, read_environment
from integration_server.sidecar_settings import SidecarSettings

KEY = "+/Pz3dP6tdBUG8YwuTlWg4Zk1TjaGYX0N+CbVF0/j1s="  # with both characters in which the two alphabets differ
KEY_BYTES = base64.b64decode(KEY)
PRODUCTION = {"ENCRYPTION_KEY": KEY}
DEV = {"DEV_MODE": "true"}
PROJECT = Path(__file__).parents[2]


class Files:
    """Empty files for settings that take a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> str:
        path = self.folder / name
        path.touch()
        return str(path)

    @property
    def certificates(self) -> dict[str, str]:
        """The settings of mutual TLS."""
        names = ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE", "POLICY_FILE")
        sidecar = ("SIDECAR_TLS_CA_FILE", "SIDECAR_TLS_CERT_FILE", "SIDECAR_TLS_KEY_FILE")
        return PRODUCTION | {name: self(name) for name in (*names, *sidecar)}

    @property
    def tokens(self) -> dict[str, str]:
        """The settings of token authentication."""
        issuer = {"JWT_JWKS": self("jwks.json"), "JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "us"}
        return PRODUCTION | issuer | {name: self(name) for name in ("POLICY_FILE", "SIDECAR_TOKEN_FILE")}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def problems_of(environment: Mapping[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment(environment)
    return error.value.problems


def names_of(problems: list[str]) -> list[str]:
    return [problem.partition(":")[0] for problem in problems]


# --- all settings --------------------------------------------------------------------------------------------------


def test_production_requires_only_a_key() -> None:
    settings = Settings.from_environment(PRODUCTION)
    assert settings.encryption_key == KEY_BYTES
    assert not settings.dev_mode
    assert settings.skip_confirmation is False
    assert settings.grpc_address == Address("127.0.0.1", 50051)
    assert settings.public_url == "http://127.0.0.1:8080"
    assert settings.refresh_buffer == timedelta(minutes=5)
    assert settings.revocation_give_up == timedelta(hours=72)
    assert settings.provider_timeout == timedelta(seconds=10)
    assert settings.health_check_timeout == timedelta(seconds=10)
    assert settings.shutdown_grace == timedelta(seconds=20)
    assert settings.drain == timedelta(seconds=5)
    assert settings.database_pool_size == 5
    assert settings.credentials_cache_size == 24 * 2**20


def test_sizes_are_bounded() -> None:
    assert names_of(problems_of({**PRODUCTION, "DATABASE_POOL_SIZE": "0", "CREDENTIALS_CACHE_SIZE": "-1"})) == [
        "DATABASE_POOL_SIZE",
        "CREDENTIALS_CACHE_SIZE",
    ]
    for size in (0, 2**20, 2**30):
        settings = Settings.from_environment({**PRODUCTION, "CREDENTIALS_CACHE_SIZE": str(size)})
        assert settings.credentials_cache_size == size


@pytest.mark.parametrize("count", [1, 10_000, 1_000_000])
def test_a_cache_size_that_counts_integrations_is_refused(count: int) -> None:
    (problem,) = problems_of({**PRODUCTION, "CREDENTIALS_CACHE_SIZE": str(count)})
    assert "CREDENTIALS_CACHE_SIZE" in problem
    assert "bytes" in problem


def test_dev_mode_requires_no_setting() -> None:
    settings = Settings.from_environment(DEV)
    assert settings.encryption_key is None
    assert settings.skip_confirmation is True
    assert settings.drain == timedelta(0)  # it stops at once


@pytest.mark.parametrize("dev_mode", ["true", "false"])
@pytest.mark.parametrize("skip", [True, False])
def test_skip_confirmation_overrides_the_default_of_dev_mode(dev_mode: str, skip: bool) -> None:
    environment = {**PRODUCTION, "DEV_MODE": dev_mode, "SKIP_CONFIRMATION": str(skip)}
    assert Settings.from_environment(environment).skip_confirmation is skip


def test_all_problems_are_reported_at_once() -> None:
    problems = problems_of(
        {
            "DEV_MODE": "perhaps",
            "DATABASE_URL": "mysql://localhost/db",
            "ENCRYPTION_KEY": "short",
            "GRPC_ADDRESS": "0.0.0.0:50051",
            "SIDECAR_ADDRESS": "nowhere",
            "ALLOWED_REDIRECT_URIS": "https://app.example/ok, /relative",
            "ALLOWED_RETURN_URLS": "http://app.example",
            "PROVIDERS_DIR": "not/a/directory",
            "SKIP_CONFIRMATION": "perhaps",
            "LOG_LEVEL": "LOUD",
            "REFRESH_BUFFER_SECONDS": "-1",
            "REVOCATION_GIVE_UP_HOURS": "0",
            "PROVIDER_TIMEOUT_SECONDS": "0",
            "HEALTH_CHECK_TIMEOUT_SECONDS": "0",
            "DRAIN_SECONDS": "301",
            "SHUTDOWN_GRACE_SECONDS": "soon",
            "CALLER_MAX_CONCURRENCY": "0",
            "GRPC_MAX_CONNECTIONS": "many",
            "SIDECAR_BODY_TIMEOUT_SECONDS": "0",
        }
    )
    assert names_of(problems) == [
        "LOG_LEVEL",
        "SIDECAR_ADDRESS",
        "SIDECAR_BODY_TIMEOUT_SECONDS",
        "DEV_MODE",
        "DATABASE_URL",
        "ENCRYPTION_KEY",
        "GRPC_ADDRESS",
        "ALLOWED_REDIRECT_URIS[1]",
        "ALLOWED_RETURN_URLS[0]",
        "PROVIDERS_DIR",
        "SKIP_CONFIRMATION",
        "REFRESH_BUFFER_SECONDS",
        "PROVIDER_TIMEOUT_SECONDS",
        "REVOCATION_GIVE_UP_HOURS",
        "HEALTH_CHECK_TIMEOUT_SECONDS",
        "DRAIN_SECONDS",
        "SHUTDOWN_GRACE_SECONDS",
        "CALLER_MAX_CONCURRENCY",
        "GRPC_MAX_CONNECTIONS",
    ]


def test_the_error_text_has_one_line_for_each_problem() -> None:
    error = SettingsError(["A: is wrong", "B: is wrong"])
    assert str(error).splitlines() == error.problems


def test_an_empty_variable_counts_as_not_set() -> None:
    fields = [name.upper() for name in Settings.model_fields if name != "metrics_address"]
    nothing = dict.fromkeys(fields, "")
    assert Settings.from_environment({**nothing, **PRODUCTION}) == Settings.from_environment(PRODUCTION)


def test_an_empty_address_switches_the_metrics_off() -> None:
    assert str(Settings.from_environment(PRODUCTION).metrics_address) == "127.0.0.1:9464"
    assert Settings.from_environment(PRODUCTION).metrics_may_move
    assert not Settings.from_environment({**PRODUCTION, "METRICS_ADDRESS": "127.0.0.1:9464"}).metrics_may_move
    assert Settings.from_environment({**PRODUCTION, "METRICS_ADDRESS": ""}).metrics_address is None
    everywhere = Settings.from_environment(
        {**PRODUCTION, "METRICS_ADDRESS": "[::]:9464"}
    )  # for another machine's scrapes
    assert str(everywhere.metrics_address) == "[::]:9464"


@pytest.mark.parametrize(
    "address", ["off", "9464", ":9464", " ", "http://127.0.0.1:9464", "127.0.0.1:99999", "::1:9464"]
)
def test_an_invalid_metrics_address_is_named(address: str) -> None:
    assert names_of(problems_of({**PRODUCTION, "METRICS_ADDRESS": address})) == ["METRICS_ADDRESS"]


@pytest.mark.parametrize("number", ["0", "abc", "-1", "1.5", "65", "two", "1e3", " ", "auto"])
def test_an_invalid_number_of_workers_is_named(number: str) -> None:
    (problem,) = problems_of({**PRODUCTION, "WORKERS": number})
    assert problem.startswith("WORKERS: ")


@pytest.mark.parametrize(("number", "expected"), [("1", 1), ("64", 64), (" 2 ", 2), ("", None)])
def test_a_number_of_workers_is_accepted(number: str, expected: int | None) -> None:
    assert Settings.from_environment({**PRODUCTION, "WORKERS": number}).workers == expected


def test_unknown_variables_are_ignored() -> None:
    theirs = {"PATH": "/bin", "STRIPE_CLIENT_ID": "x"}
    assert Settings.from_environment({**PRODUCTION, **theirs}) == Settings.from_environment(PRODUCTION)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.from_environment(PRODUCTION).dev_mode = True  # type: ignore[misc]


class ReadRecorder:
    """Settings that record which fields are read."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> object:
        if name in Settings.model_fields:
            self.read.add(name)
            return getattr(self.settings, name)
        return getattr(Settings, name).fget(self)


@pytest.mark.parametrize("rule", [*RULES, *SERVER_RULES])
def test_a_rule_lists_the_settings_that_it_reads(rule: Rule) -> None:
    recorder = ReadRecorder()
    rule.is_broken(cast("Settings", recorder))
    assert recorder.read
    assert recorder.read <= {variable.lower() for variable in rule.variables}


# --- secrets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, KEY.rstrip("="), KEY.replace("+", "-").replace("/", "_"), f" {KEY} "])
def test_a_key_is_parsed_in_both_base64_alphabets(key: str) -> None:
    assert "/" in KEY
    assert "+" in KEY
    settings = Settings.from_environment({"ENCRYPTION_KEY": key, "ENCRYPTION_KEYS_RETIRED": f"{key},,{key} "})
    assert settings.encryption_key == KEY_BYTES
    assert settings.encryption_keys_retired == (KEY_BYTES, KEY_BYTES)


def test_a_missing_key_is_reported_with_the_command_that_generates_one() -> None:
    (problem,) = problems_of({})
    assert problem.startswith("ENCRYPTION_KEY: is not set")
    assert "openssl rand -base64 32" in problem


KMS_KEY = "arn:aws:kms:eu-central-1:123456789012:key/37647652-1d65-439a-a584-9100724de72b"


@pytest.mark.parametrize(
    "key_id",
    [
        KMS_KEY,
        "arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/integrations",
        "37647652-1d65-439a-a584-9100724de72b",
        "mrk-1234abcd12ab34cd56ef1234567890ab",
        "alias/team/integrations_1",
    ],
)
def test_a_kms_key_replaces_the_local_key(key_id: str) -> None:
    settings = Settings.from_environment({"KMS_KEY_ID": key_id, "KMS_KEY_IDS_RETIRED": f"{KMS_KEY}, alias/previous"})
    assert settings.kms_key_id == key_id
    assert settings.kms_key_ids_retired == (KMS_KEY, "alias/previous")
    assert settings.encryption_key is None


@pytest.mark.parametrize(
    "key_id",
    [
        "arn:aws:s3:::bucket",
        "alias/",
        "two words",
        "a,b",
        "alias/with space",
        "openbao:integrations",
        "openbao:/integrations",
        "openbao:transit/",
        "openbao:transit//integrations",
        "openbao:transit/../sys/integrations",
        "openbao:./integrations",
        "openbao:transit/a?b",
        "openbao:transit/a#b",
        "openbao:transit/a%2e",
        "openbao:transit/schlüssel",
        "openbao:transit/" + "a" * 240,
        "openbao:transit/a\n",
        "OPENBAO:transit/a",
    ],
)
def test_an_invalid_kms_key_id_is_rejected(key_id: str) -> None:
    (problem,) = problems_of({**PRODUCTION, "KMS_KEY_ID": key_id})
    assert problem.startswith("KMS_KEY_ID: ")


OPENBAO = {"KMS_KEY_ID": "openbao:teams/transit/integrations", "OPENBAO_ADDRESS": "https://openbao.internal:8200"}


def test_a_key_in_openbao_needs_an_address_and_one_way_to_authenticate(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    by_file, by_role = {"OPENBAO_TOKEN_FILE": str(token)}, {"OPENBAO_LOGIN_ROLE": "integration-server"}
    for authentication in (by_file, by_role):
        settings = Settings.from_environment({**OPENBAO, **authentication})
        assert settings.kms_key_id == OPENBAO["KMS_KEY_ID"]
        assert settings.encryption_key is None
    for environment, setting in (
        (OPENBAO, "OPENBAO_TOKEN_FILE"),
        ({**OPENBAO, **by_file, **by_role}, "OPENBAO_TOKEN_FILE"),
        ({**OPENBAO, **by_file, "OPENBAO_ADDRESS": ""}, "OPENBAO_ADDRESS"),
        ({**PRODUCTION, "KMS_KEY_IDS_RETIRED": OPENBAO["KMS_KEY_ID"], **by_file}, "OPENBAO_ADDRESS"),
        ({**OPENBAO, "OPENBAO_TOKEN_FILE": str(tmp_path / "none")}, "OPENBAO_TOKEN_FILE"),
        ({**OPENBAO, **by_file, "OPENBAO_CA_FILE": str(tmp_path / "none")}, "OPENBAO_CA_FILE"),
        ({**OPENBAO, **by_file, "OPENBAO_NAMESPACE": "a/../b"}, "OPENBAO_NAMESPACE"),
        ({**OPENBAO, **by_file, "OPENBAO_NAMESPACE": "a\nb"}, "OPENBAO_NAMESPACE"),
        ({**OPENBAO, **by_role, "OPENBAO_LOGIN_MOUNT": "../sys"}, "OPENBAO_LOGIN_MOUNT"),
    ):
        assert names_of(problems_of(environment)) == [setting]


@pytest.mark.parametrize(
    "address",
    ["http://openbao.internal:8200", "openbao.internal:8200", "https://user@openbao", "https://a?b", "ftp://a"],
)
def test_the_address_of_openbao_is_encrypted_except_on_loopback(address: str) -> None:
    role = {"OPENBAO_LOGIN_ROLE": "integration-server"}
    assert names_of(problems_of({**OPENBAO, **role, "OPENBAO_ADDRESS": address})) == ["OPENBAO_ADDRESS"]
    for allowed in ("http://127.0.0.1:8200", "http://localhost:8200", "https://openbao.internal/behind/a/path"):
        Settings.from_environment({**OPENBAO, **role, "OPENBAO_ADDRESS": allowed})


def test_a_maximum_age_of_zero_disables_data_key_rotation() -> None:
    assert Settings.from_environment(PRODUCTION).data_key_max_age == timedelta(days=90)
    assert Settings.from_environment({**PRODUCTION, "DATA_KEY_MAX_AGE_DAYS": "0"}).data_key_max_age == timedelta(0)
    assert Settings.from_environment(PRODUCTION).data_key_activation == timedelta(seconds=30)
    problems = problems_of({**PRODUCTION, "DATA_KEY_MAX_AGE_DAYS": "-1", "DATA_KEY_ACTIVATION_SECONDS": "0"})
    assert names_of(problems) == ["DATA_KEY_MAX_AGE_DAYS", "DATA_KEY_ACTIVATION_SECONDS"]


def test_a_command_that_does_not_decrypt_requires_no_key() -> None:
    assert Settings.from_environment({}, needs_key=False).encryption_key is None


@pytest.mark.parametrize("key", [KEY[:-4], KEY + "AAAA", "hushhush", "not base64 hush!", "hüsh"])
@pytest.mark.parametrize("name", ["ENCRYPTION_KEY", "ENCRYPTION_KEYS_RETIRED"])
def test_an_invalid_key_is_rejected_and_not_quoted(name: str, key: str) -> None:
    (problem,) = problems_of({**PRODUCTION, name: key})
    assert problem.startswith(name)
    assert key not in problem
    assert "32 bytes" in problem


def test_the_invalid_one_of_several_retired_keys_is_named() -> None:
    (problem,) = problems_of({**PRODUCTION, "ENCRYPTION_KEYS_RETIRED": f"{KEY}, hushhush"})
    assert problem.startswith("ENCRYPTION_KEYS_RETIRED[1]: ")


@pytest.mark.parametrize(
    "url", ["postgres://user:hush-hush@host/db?bad=1", "mysql://user:hush-hush@host/db", "hush-hush", "://hush-hush"]
)
def test_an_invalid_database_url_is_rejected_and_not_quoted(url: str) -> None:
    (problem,) = problems_of({**PRODUCTION, "DATABASE_URL": url})
    assert problem.startswith("DATABASE_URL: ")
    assert "hush" not in problem


def test_repr_contains_no_secret() -> None:
    settings = Settings.from_environment(
        {**PRODUCTION, "ENCRYPTION_KEYS_RETIRED": KEY, "DATABASE_URL": "postgresql://user:hush-hush@host/db"}
    )
    for shown in (repr(settings), str(settings)):
        assert "hush" not in shown
        assert repr(KEY_BYTES) not in shown


# --- weak keys -----------------------------------------------------------------------------------------------------

WEAK_KEYS = {
    "zeros": bytes(32),
    "one byte": b"\xff" * 32,
    "one bit": bytes(31) + b"\x01",
    "counting": bytes(range(32)),
    "counting down from a high byte": bytes(range(0xFF, 0xDF, -1)),
    "steps of seven": bytes((7 * i + 3) % 256 for i in range(32)),
    "squares": bytes(i * i % 256 for i in range(32)),
    "a counter of 16 bits": b"".join(i.to_bytes(2, "big") for i in range(16)),
    "a pattern": bytes.fromhex("deadbeef") * 8,
    "half a key, twice": KEY_BYTES[:16] * 2,
    "24 bytes, continued": KEY_BYTES[:24] + KEY_BYTES[:8],
    "half a key, padded": KEY_BYTES[:16] + bytes(16),
    "a word": b"password" * 4,
    "a word, padded": b"hunter2".ljust(32, b"\0"),
    "a sentence": b"correct horse battery staple 123",
    "a line": b"a line of text from an editor..\n",
    "UTF-16": "sixteen letters!".encode("utf-16-le"),
    "Cyrillic": ("пароль" * 3).encode()[:32],
    "hexadecimal digits": b"0123456789abcdef0123456789abcdeF",
}


@pytest.mark.parametrize("mode", [{}, DEV])
@pytest.mark.parametrize("name", ["ENCRYPTION_KEY", "ENCRYPTION_KEYS_RETIRED"])
@pytest.mark.parametrize("key", WEAK_KEYS.values(), ids=WEAK_KEYS)
def test_a_key_that_is_not_random_is_rejected_and_not_quoted(key: bytes, name: str, mode: dict[str, str]) -> None:
    text = base64.b64encode(key).decode()
    (problem,) = problems_of({**PRODUCTION, **mode, name: text})
    assert problem.partition(": ")[0] in {"ENCRYPTION_KEY", "ENCRYPTION_KEYS_RETIRED[0]"}
    assert problem.endswith("is not random, but a pattern or text; generate a key with: openssl rand -base64 32")
    assert text not in problem


@pytest.mark.slow
def test_random_keys_are_accepted() -> None:
    """The negative control. A false refusal has a probability below 2^-37 for each key."""
    generator = random.Random(1)
    assert not any(is_weak_key(generator.randbytes(32)) for _ in range(10_000))


# --- addresses and URLs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.9.10:65535", "localhost:50051", "[::1]:0"])
def test_grpc_listens_on_loopback(address: str) -> None:
    settings = Settings.from_environment({**PRODUCTION, "GRPC_ADDRESS": address})
    assert str(settings.grpc_address) == address


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1", "localhost.evil.example:1"])
def test_unauthenticated_grpc_must_be_on_loopback(address: str) -> None:
    (problem,) = problems_of({**PRODUCTION, "GRPC_ADDRESS": address})
    assert problem.startswith("GRPC_ADDRESS: must be a loopback address")


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:1",
     "unix:/run/server.sock", "unix:server.sock", "http://127.0.0.1:1", "127.0.0.1:1/x", "127.0.0.1:1?x",
     "127.0.0.1:1#x", "127.0.0.1:1@0.0.0.0:2", "ada@127.0.0.1:1", "127.0.0.1 :1", "127.0.0.1:1\n"],
)  # fmt: skip
def test_an_address_without_host_or_port_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|[Pp]ort"):
        parse_address(text)


def test_a_public_sidecar_requires_a_public_url() -> None:
    (problem,) = problems_of({**PRODUCTION, "SIDECAR_ADDRESS": "0.0.0.0:80"})
    assert problem.startswith("PUBLIC_URL: ")
    named = {**PRODUCTION, "SIDECAR_ADDRESS": "0.0.0.0:80", "PUBLIC_URL": "https://hooks.example"}
    assert Settings.from_environment(named).public_url == "https://hooks.example"


NOT_LOOPBACK = [
    *(
        "0.0.0.0",
        "[::]",
        "10.0.0.1",
        "169.254.1.1",
        "[fe80::1%eth0]",
        "[::ffff:10.0.0.1]",
        "[::ffff:0.0.0.0]",
        "128.0.0.1",
    ),
    *("example.com", "localhost.example.com", "127.0.0.1.example.com", "localhost.", "127.1", "2130706433", "0"),
]
LOOPBACK = ["127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST", "[::1]", "[::1%lo]", "[::ffff:127.0.0.1]"]
DEV_MODE_PROBLEM = "must be on loopback in dev mode"


@pytest.mark.parametrize(
    "name", ["GRPC_ADDRESS", "SIDECAR_ADDRESS", "SANDBOX_ADDRESS", "METRICS_ADDRESS", "PUBLIC_URL"]
)
@pytest.mark.parametrize("host", [*NOT_LOOPBACK, *LOOPBACK])
def test_dev_mode_is_on_loopback_only(files: Files, host: str, name: str) -> None:
    """Also with authenticated callers. Negative control: outside dev mode the same address is accepted."""
    value = f"https://{host}" if name == "PUBLIC_URL" else f"{host}:1"
    given = {**files.certificates, "PUBLIC_URL": "https://localhost", name: value}
    if host in LOOPBACK:
        assert Settings.from_environment({**given, **DEV}).dev_mode
    else:
        (problem,) = problems_of({**given, **DEV})
        assert problem.startswith(f"{name}: {DEV_MODE_PROBLEM}")
    if name != "SANDBOX_ADDRESS":
        assert not Settings.from_environment(given).dev_mode


def test_all_addresses_of_dev_mode_are_reported_at_once() -> None:
    names = ("GRPC_ADDRESS", "SIDECAR_ADDRESS", "SANDBOX_ADDRESS", "METRICS_ADDRESS")
    addresses = dict.fromkeys(names, "0.0.0.0:1")
    problems = problems_of({**DEV, **addresses, "PUBLIC_URL": "https://tunnel.example"})
    assert set(names_of(problems)) == {*addresses, "PUBLIC_URL"}
    assert names_of(problems_of({**DEV, "SIDECAR_ADDRESS": "0.0.0.0:1"})) == ["SIDECAR_ADDRESS"]


@pytest.mark.parametrize("address", ["127.0.0.1:9090", "0.0.0.0:9090"])
def test_the_sandbox_requires_dev_mode(address: str) -> None:
    (problem,) = problems_of({**PRODUCTION, "SANDBOX_ADDRESS": address})
    assert problem.startswith("SANDBOX_ADDRESS: the sandbox is for dev mode only")


def test_lists_are_comma_separated() -> None:
    settings = Settings.from_environment(
        {
            **PRODUCTION,
            "ALLOWED_REDIRECT_URIS": " https://app.example/a , http://localhost:3000/b,,http://[::1]/c ",
            "ALLOWED_RETURN_URLS": "https://app.example/done?tab=1",
        }
    )
    assert settings.allowed_redirect_uris == (
        "https://app.example/a",
        "http://localhost:3000/b",
        "http://[::1]/c",
    )
    assert settings.allowed_return_urls == ("https://app.example/done?tab=1",)


@pytest.mark.parametrize(
    "url",
    ["/callback", "app.example", "https://", "https:///x", "ftp://app.example", "javascript:alert(1)", "http://app.example",
     "https://app.example/#part", "http://localhost.evil.example", "http://[::1",
     "https://ada@app.example", "https://ada:pw@app.example", "https://app.example@evil.example", "https://app.example:99999",
     "https://app.example\\@evil.example", "https://app.example/a b", "https://app.example/a\nb", "http://127.0.0.1@evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["PUBLIC_URL", "ALLOWED_REDIRECT_URIS", "ALLOWED_RETURN_URLS"])
def test_browser_urls_must_be_absolute_https_urls(name: str, url: str) -> None:
    (problem,) = problems_of({**PRODUCTION, name: url})
    assert problem.startswith(name)


def test_the_sidecars_process_gets_the_same_settings() -> None:
    given = {
        "LOG_LEVEL": "WARNING",
        "SIDECAR_ADDRESS": "[::1]:0",
        "PUBLIC_URL": "https://hooks.example/base",
        "SIDECAR_MAX_BODY_BYTES": "4096",
        "SIDECAR_HEADER_TIMEOUT_SECONDS": "0.25",
        "SIDECAR_KEEPALIVE_SECONDS": "3600",
    }
    settings = Settings.from_environment({**PRODUCTION, **given})
    sent = json.dumps(settings.model_dump(mode="json", include=set(SidecarSettings.model_fields)))
    received = SidecarSettings.model_validate(json.loads(sent))
    assert dict(received) == {name: getattr(settings, name) for name in SidecarSettings.model_fields}
    assert KEY not in sent


# --- the rest ------------------------------------------------------------------------------------------------------


def test_the_providers_directory_must_exist(tmp_path: Path) -> None:
    settings = Settings.from_environment({**PRODUCTION, "PROVIDERS_DIR": str(tmp_path)})
    assert settings.providers_dir == tmp_path
    (problem,) = problems_of({**PRODUCTION, "PROVIDERS_DIR": str(tmp_path / "none")})
    assert problem.startswith("PROVIDERS_DIR: ")


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "301", "x"])
def test_an_invalid_timeout_is_rejected(number: str) -> None:
    assert names_of(problems_of({**PRODUCTION, "HEALTH_CHECK_TIMEOUT_SECONDS": number})) == [
        "HEALTH_CHECK_TIMEOUT_SECONDS"
    ]


LIMITS = [
    *(
        "CALLER_MAX_CONCURRENCY",
        "CALLER_MAX_CALLS_PER_SECOND",
        "GRPC_MAX_CONNECTIONS",
        "GRPC_MAX_STREAMS_PER_CONNECTION",
    ),
    *(
        "GRPC_MAX_MESSAGE_BYTES",
        "GRPC_MAX_METADATA_BYTES",
        "GRPC_HANDSHAKE_SECONDS",
        "GRPC_READ_TIMEOUT_SECONDS",
        "GRPC_CONNECTION_IDLE_SECONDS",
    ),
    *(
        "GRPC_CONNECTION_AGE_SECONDS",
        "SIDECAR_MAX_CONNECTIONS",
        "SIDECAR_MAX_BODY_BYTES",
        "SIDECAR_HEADER_TIMEOUT_SECONDS",
    ),
    *("SIDECAR_BODY_TIMEOUT_SECONDS", "SIDECAR_KEEPALIVE_SECONDS", "PROXY_TIMEOUT_SECONDS", "PROXY_MAX_REQUEST_BYTES"),
    "PROXY_MAX_RESPONSE_BYTES",
]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("number", ["0", "-1", "x", "1e12"])
def test_a_limit_cannot_be_disabled(name: str, number: str) -> None:
    assert names_of(problems_of({**PRODUCTION, name: number})) == [name]


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_documented(name: str) -> None:
    assert f"`{name}`" in (PROJECT / "docs" / "limits.md").read_text()


PROVIDER_VARIABLES = {
    "GOOGLE_CALENDAR_CLIENT_ID",
    "GOOGLE_CALENDAR_CLIENT_SECRET",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_WEBHOOK_SECRET_RETIRED",
    "META_BUSINESS_WEBHOOK_VERIFY_TOKEN",
    "GOOGLE_ADS_DEVELOPER_TOKEN",
}
UNITS = {"SECONDS": timedelta(seconds=1), "HOURS": timedelta(hours=1), "DAYS": timedelta(days=1)}


def example_variables() -> list[tuple[str, str]]:
    return re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", (PROJECT / ".env.example").read_text(), re.MULTILINE)


def as_variable(name: str, value: object) -> str:
    if isinstance(value, timedelta):
        return f"{value / UNITS[name.rpartition('_')[2]]:g}"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if type(value) is tuple else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    "location", ["http://heads.example", "https://", "ftp://heads.example/a", "no-such-directory/heads", "/"]
)
def test_heads_need_a_directory_or_an_https_url(location: str) -> None:
    assert names_of(problems_of({**PRODUCTION, "AUDIT_HEADS": location})) == ["AUDIT_HEADS"]


def test_heads_are_recorded_in_a_file_or_at_a_url(tmp_path: Path) -> None:
    for location in (str(tmp_path / "heads"), "heads", "https://heads.example/a?key=1"):
        assert Settings.from_environment({**PRODUCTION, "AUDIT_HEADS": location}).audit_heads == location
    local = {**PRODUCTION, "AUDIT_HEADS": "http://127.0.0.1:1/heads"}
    assert names_of(problems_of(local)) == ["AUDIT_HEADS"]


def test_the_example_file_lists_every_setting() -> None:
    names = [name for name, _ in example_variables()]
    settings = {field.alias for field in Settings.model_fields.values()}
    assert set(names) == settings | PROVIDER_VARIABLES
    assert [name for name in names if names.count(name) > 1] == ["DATABASE_URL"] * 2


def test_the_example_file_states_a_purpose_for_every_setting() -> None:
    blocks = (PROJECT / ".env.example").read_text().split("\n\n")
    without_purpose = [block for block in blocks if re.match(r"(# )?[A-Z_]+=", block)]
    assert without_purpose == []


def test_the_example_file_shows_the_defaults() -> None:
    examples = dict(example_variables())
    defaults = {
        str(field.alias): field.default
        for field in Settings.model_fields.values()
        if field.default_factory is None and field.default not in (None, ())
    }
    shown = {name: examples[name].removeprefix("./") for name in defaults}
    assert shown == {name: as_variable(name, value) for name, value in defaults.items()}


def test_a_provider_response_fits_into_a_grpc_message() -> None:
    small = Settings.from_environment({**PRODUCTION, "GRPC_MAX_MESSAGE_BYTES": "262144"})
    assert small.max_response_bytes == 262144 - 131072
    assert Settings.from_environment(PRODUCTION).max_response_bytes == 2 * 1024 * 1024


@pytest.mark.parametrize("url", ["localhost:6379", "http://cache:6379", "redis://", "memcached://cache:11211"])
def test_an_invalid_redis_url_is_rejected(url: str) -> None:
    problems = problems_of({**PRODUCTION, "RATE_LIMIT_REDIS_URL": url})
    assert names_of(problems) == ["RATE_LIMIT_REDIS_URL"]
    good = Settings.from_environment({**PRODUCTION, "RATE_LIMIT_REDIS_URL": "rediss://:pa55word@cache:6379/1"})
    assert good.rate_limit_redis_url == "rediss://:pa55word@cache:6379/1"
    assert "pa55word" not in repr(good)


def test_environment_variables_override_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("LOG_LEVEL=DEBUG\nPUBLIC_URL='https://file.example' # comment\nBARE\n")
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    monkeypatch.delenv("PUBLIC_URL", raising=False)
    environment = read_environment(tmp_path)
    assert (environment["LOG_LEVEL"], environment["PUBLIC_URL"]) == ("WARNING", "https://file.example")
    assert "BARE" not in environment


def test_white_space_around_a_value_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_CLIENT_SECRET", "from a file\n")
    (tmp_path / ".env").write_text("ACME_CLIENT_ID=' id\t'\n")
    environment = read_environment(tmp_path)
    assert (environment["ACME_CLIENT_ID"], environment["ACME_CLIENT_SECRET"]) == ("id", "from a file")


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (b"LOG_LEVEL=INFO\nthese are three words\n", "line 2 is not an assignment"),
        (b"LOG_LEVEL=INFO\n\nDATABASE_URL='sqlite:///x.db\n", "line 3 is not an assignment"),
        (b"=value\n", "line 1 is not an assignment"),
        ("LOG_LEVEL=INFO # ä\n".encode("latin-1"), "is not text in UTF-8 (line 1, byte 18)"),
        ("LOG_LEVEL=INFO\n".encode("utf-16"), "is text in UTF-16"),
        (None, "is a directory"),
    ],
    ids=["words", "open-quote", "no-name", "latin-1", "utf-16", "directory"],
)
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, reported: str, tmp_path: Path) -> None:
    """Otherwise the server starts without what the file sets."""
    path = tmp_path / ".env"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_environment(tmp_path)
    (problem,) = caught.value.problems
    assert f"{path}: {reported}" in problem
    assert ";" in problem  # the remedy
    assert "sqlite" not in problem


ADDRESS_PROBLEM = "must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051, with a port up to 65535"


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("DEV_MODE", "maybe", "must be true or false"),
        ("WORKERS", "2.5", "must be a whole number, without a unit"),
        ("WORKERS", "9" * 40, "must be at most 64"),
        ("CREDENTIALS_CACHE_SIZE", "24MB", "must be a whole number, without a unit"),
        ("PROVIDER_TIMEOUT_SECONDS", "10s", "must be a number, without a unit"),
        ("EVENT_RETENTION_DAYS", "-7", "must be greater than 0 seconds"),
        ("EVENT_RETENTION_DAYS", "400", "must be at most 365 days"),
        ("TRACES_SAMPLE_RATIO", "2", "must be at most 1.0"),
        ("LOG_LEVEL", "chatty", "must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("RATE_LIMIT_REDIS_URL", "redis://cache:port/0", "must be redis://HOST:PORT/DATABASE, or rediss:// for TLS"),
        ("RATE_LIMIT_REDIS_URL", "redis://cache/main", "must be redis://HOST:PORT/DATABASE, or rediss:// for TLS"),
        (
            "GRPC_ADDRESS",
            "'127.0.0.1:5'",
            f"{ADDRESS_PROBLEM}; remove the quotation marks around it",
        ),
        ("WORKERS", '"2"', "must be a whole number, without a unit; remove the quotation marks around it"),
    ],
)
def test_a_problem_says_what_a_value_must_be(variable: str, value: str, problem: str) -> None:
    assert problems_of({**PRODUCTION, variable: value}) == [f"{variable}: {problem}"]


def test_problems_of_files_get_the_setting_that_names_the_file() -> None:
    environment = {"TLS_KEY_FILE": "./certs/key.pem", "POLICY_FILE": "/etc/policy.toml", "HOME": "/etc", "JWT_JWKS": ""}
    problems = ["certs/key.pem: is no key", "/etc/policy.toml: a.b: is wrong", "/etc: is not named", "other: text"]
    assert name_files(problems, environment) == [
        "TLS_KEY_FILE: certs/key.pem: is no key",
        "POLICY_FILE: /etc/policy.toml: a.b: is wrong",
        *problems[2:],
    ]


def test_a_log_level_may_be_in_small_letters() -> None:
    assert Settings.from_environment({**PRODUCTION, "LOG_LEVEL": "warning"}).log_level == "WARNING"


def test_a_missing_file_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    assert read_environment(tmp_path)["LOG_LEVEL"] == "WARNING"


# --- authentication ------------------------------------------------------------------------------------------------


def test_with_client_certificates_grpc_listens_on_any_address(files: Files) -> None:
    settings = Settings.from_environment({**files.certificates, "GRPC_ADDRESS": "0.0.0.0:50051"})
    assert settings.authenticates_callers
    assert not settings.health_allow_unauthenticated
    assert settings.jwt_leeway == timedelta(seconds=30)


def test_tokens_without_tls_require_loopback(files: Files) -> None:
    assert Settings.from_environment(files.tokens).authenticates_callers
    problems = problems_of({**files.tokens, "GRPC_ADDRESS": "0.0.0.0:50051"})
    assert names_of(problems) == ["GRPC_ADDRESS"]
    assert problems[0].endswith("set TLS_CERT_FILE")


@pytest.mark.parametrize(
    ("missing", "reported"),
    [
        ("TLS_KEY_FILE", {"TLS_KEY_FILE"}),
        ("TLS_CERT_FILE", {"TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"}),
        ("POLICY_FILE", {"POLICY_FILE"}),
        ("TLS_CLIENT_CA_FILE", {"POLICY_FILE"}),
        ("SIDECAR_TLS_CERT_FILE", {"SIDECAR_TLS_KEY_FILE"}),
        ("SIDECAR_TLS_KEY_FILE", {"SIDECAR_TLS_KEY_FILE"}),
    ],
)
def test_incomplete_mutual_tls_is_rejected(files: Files, missing: str, reported: set[str]) -> None:
    environment = {name: value for name, value in files.certificates.items() if name != missing}
    assert set(names_of(problems_of(environment))) == reported


@pytest.mark.parametrize(
    ("missing", "reported"),
    [
        ("JWT_JWKS", {"JWT_ISSUER", "JWT_AUDIENCE", "POLICY_FILE"}),
        ("JWT_ISSUER", {"JWT_ISSUER"}),
        ("JWT_AUDIENCE", {"JWT_AUDIENCE"}),
        ("POLICY_FILE", {"POLICY_FILE"}),
    ],
)
def test_an_incomplete_issuer_is_rejected(files: Files, missing: str, reported: set[str]) -> None:
    environment = {name: value for name, value in files.tokens.items() if name != missing}
    assert set(names_of(problems_of(environment))) == reported


def test_users_and_services_must_differ_in_issuer_or_audience(files: Files) -> None:
    same = {f"USER_{name}": value for name, value in files.tokens.items() if name.startswith("JWT_")}
    assert names_of(problems_of({**files.tokens, **same})) == ["USER_JWT_AUDIENCE"]
    for name in ("USER_JWT_AUDIENCE", "USER_JWT_ISSUER"):
        assert Settings.from_environment({**files.tokens, **same, name: "other"}).authenticates_callers


@pytest.mark.parametrize("algorithms", ["none", "HS256", "RS256,HS512", "rs256", ",", "RS257"])
def test_only_public_key_algorithms_are_accepted(files: Files, algorithms: str) -> None:
    problems = problems_of({**files.tokens, "JWT_ALGORITHMS": algorithms})
    assert {name.partition("[")[0] for name in names_of(problems)} == {"JWT_ALGORITHMS"}


@pytest.mark.parametrize(
    "jwks", ["http://issuer.example/keys", "ftp://issuer.example", "https://", "https://[::1", "no/such/file"]
)
def test_jwks_must_be_a_file_or_an_https_url(files: Files, jwks: str) -> None:
    assert names_of(problems_of({**files.tokens, "JWT_JWKS": jwks})) == ["JWT_JWKS"]
    assert Settings.from_environment({**files.tokens, "JWT_JWKS": "https://issuer.example/keys"}).jwt_jwks


def test_dev_mode_accepts_jwks_over_plain_http_on_loopback(files: Files) -> None:
    local = {**files.tokens, "JWT_JWKS": "http://127.0.0.1:1/keys"}
    assert names_of(problems_of(local)) == ["JWT_JWKS"]
    assert Settings.from_environment({**local, **DEV}).jwt_jwks


def test_missing_files_are_reported(files: Files) -> None:
    names = [name for name in files.certificates if name.endswith("_FILE")]
    problems = problems_of({**files.certificates, **dict.fromkeys(names, "no/such/file")})
    assert sorted(names_of(problems)) == sorted(names)


def test_a_separate_sidecar_requires_no_server_setting_and_sends_its_token_only_over_tls(files: Files) -> None:
    remote = {"GRPC_ADDRESS": "integrations.internal:50051", "SIDECAR_TOKEN_FILE": files("token")}
    with pytest.raises(SettingsError, match=r"SIDECAR_TOKEN_FILE: the token would be sent .* set SIDECAR_TLS_CA_FILE"):
        Settings.from_environment(remote, needs_key=False)
    encrypted = {**remote, "SIDECAR_TLS_CA_FILE": files("ca.pem")}
    for environment in (encrypted, {"GRPC_ADDRESS": "integrations.internal:50051"}):
        address = Settings.from_environment(environment, needs_key=False).grpc_address
        assert address == Address("integrations.internal", 50051)


@pytest.mark.parametrize("proxies", ["proxy.internal", "10.0.0.1/8", "0.0.0.0/0"])
def test_an_invalid_proxy_is_rejected(proxies: str) -> None:
    assert names_of(problems_of({**PRODUCTION, "TRUSTED_PROXIES": proxies})) == ["TRUSTED_PROXIES"]
