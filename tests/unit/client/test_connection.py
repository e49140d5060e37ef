"""Files of the client that change: tokens and certificates. A file that cannot be used leaves the previous contents."""

import os
from pathlib import Path

import pytest

from integration_server.client.configuration import Configuration, ConfigurationError
from integration_server.client.connection import FileWatcher, TokenSource, watch_tls_files
from tools.certificates import SERVER, Authority


def replace_file(path: Path, content: bytes, number: int) -> None:
    """Write a file, with a time of its own."""
    path.write_bytes(content)
    os.utime(path, ns=(number, number))


def test_certificates_are_read_again_and_invalid_ones_are_not_used(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    pair = authority.issue(SERVER)
    files = {"ca_file": tmp_path / "ca.pem", "cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}
    replace_file(files["ca_file"], authority.certificate, 1)
    replace_file(files["cert_file"], pair.certificate, 1)
    replace_file(files["key_file"], pair.key, 1)
    watcher = watch_tls_files(
        Configuration(
            address="server:1",
            ca_file=files["ca_file"],
            cert_file=files["cert_file"],
            key_file=files["key_file"],
        )
    )
    first = watcher.poll(now=True)
    assert first is not None
    assert "PRIVATE" not in repr(first)

    for number, (name, content) in enumerate(
        [("ca_file", b"half a file"), ("cert_file", b""), ("key_file", other.issue(SERVER).key)], start=2
    ):
        before = files[name].read_bytes()
        replace_file(files[name], content, number)
        assert watcher.poll(now=True) == first
        replace_file(files[name], before, 1)

    replace_file(files["ca_file"], other.certificate, 9)
    replaced = watcher.poll(now=True)
    assert replaced is not None
    assert replaced.authorities == other.certificate


def test_a_missing_or_invalid_file_is_an_error_at_first(tmp_path: Path) -> None:
    for name in ("missing.pem", "."):
        with pytest.raises(ConfigurationError, match=r"^ca_file: .*(No such file|Is a directory)"):
            watch_tls_files(Configuration(address="server:1", ca_file=tmp_path / name))
        with pytest.raises(ConfigurationError, match=r"^token_file: .*(No such file|Is a directory)"):
            TokenSource(Configuration(address="server:1", token_file=tmp_path / name))
    (tmp_path / "token").write_text("two\nlines")
    with pytest.raises(ConfigurationError, match="is not a token"):
        TokenSource(Configuration(address="server:1", token_file=tmp_path / "token"))


def test_files_are_looked_at_once_a_second(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "file"
    replace_file(path, b"1", 1)
    watcher = FileWatcher([path], path.read_bytes, monotonic=lambda: now)
    replace_file(path, b"2", 2)
    assert watcher.poll() == b"1"
    now = 1.0
    assert watcher.poll() == b"2"


async def test_a_token_is_text_a_file_or_what_a_function_returns() -> None:
    async def fetch() -> str:
        return "fetched"

    assert TokenSource(Configuration(address="a:1", token="fixed")).get() == "fixed"
    assert TokenSource(Configuration(address="a:1", token=lambda: "called")).get() == "called"
    source = TokenSource(Configuration(address="a:1", token=fetch))
    assert await source.get_async() == "fetched"


async def test_what_is_no_text_and_what_is_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b" \n")
    with pytest.raises(ConfigurationError, match=r"^token_file: .*token: is empty$"):
        TokenSource(Configuration(address="server:1", token_file=tmp_path / "token"))
    for token, named in (("", "is empty"), (lambda: None, "is of type NoneType"), (lambda: b"x", "is of type bytes")):
        source = TokenSource(Configuration(address="a:1", token=token))  # type: ignore[arg-type]  # what is under test
        with pytest.raises(ConfigurationError, match=f"^token: {named}"):
            source.get()
        with pytest.raises(ConfigurationError, match=f"^token: {named}"):
            await source.get_async()
    assert TokenSource(Configuration(address="a:1")).get() is None


@pytest.mark.parametrize("text", ["two\nlines", "secret-tök", "secret-\0", "a\tb", "Bearer secret-token"])
async def test_what_is_no_token_is_an_error_that_does_not_print_it(text: str) -> None:
    async def fetch() -> str:
        return text

    sources = [TokenSource(Configuration(address="a:1", token=token)) for token in (text, lambda: text, fetch)]
    for source in sources:
        with pytest.raises(ConfigurationError, match=r"^token: is not a token \(without spaces, and without Bearer\)$"):
            await source.get_async()
    for source in sources[:2]:
        with pytest.raises(ConfigurationError, match=r"^token: is not a token \(without spaces, and without Bearer\)$"):
            source.get()


@pytest.mark.parametrize("text", ["token\n", "token\r\n", " token "])
async def test_a_token_has_no_line_break_of_its_file_or_variable(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(text.encode())
    for configuration in (
        Configuration(address="a:1", token=text),
        Configuration(address="a:1", token=lambda: text),
        Configuration(address="a:1", token_file=path),
    ):
        assert TokenSource(configuration).get() == await TokenSource(configuration).get_async() == "token"
