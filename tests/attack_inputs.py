"""Inputs of attackers: URLs similar to an allowed one, forged states, and texts for pages."""

import base64
import itertools
import os
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

HOSTILE_TEXTS = (
    "<script>document.title='ran'</script>",
    "\"><img src=x onerror=alert(1)>'",
    "'><svg/onload=alert(1)>",
    "</title></style></script><script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}${7*7}<%= 7 %>",
    "a\r\nSet-Cookie: owned=1\r\n\r\n<b>",
    "\u202emoc.live\u2028\u2066 🦊",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    "<style>*{background:url(https://evil.example/)}</style>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
)


def similar_urls(address: str) -> list[str]:
    """URLs similar to this one, each of which a lax comparison accepts. The URL must have a path."""
    return sorted(set(_similar_urls(address)) - {address, ""})


def _similar_urls(address: str) -> Iterator[str]:
    parts = urlsplit(address)
    scheme, host = parts.scheme, parts.netloc
    rest = address.removeprefix(f"{scheme}://{host}")
    yield from _other_schemes(scheme, host + rest)
    yield from (f"{scheme}://{other}{rest}" for other in _other_hosts(host))
    yield from (f"{scheme}://{host}{other}" for other in _other_paths(parts.path, rest))
    yield from _slashes(scheme, host, rest)
    yield from _surrounded(address)
    yield from _recased(address)
    yield from _encoded(scheme, host, rest)


def _other_schemes(scheme: str, after: str) -> Iterator[str]:
    schemes = ("http", "ftp", "file", "data", "javascript", "vbscript", "ws", "wss", "blob", "about", "intent", "app")
    yield from (f"{other}://{after}" for other in schemes)
    yield from (
        "javascript:alert(1)",
        f"javascript://{after}%0aalert(1)",
        "data:text/html,<script>alert(1)</script>",
        f"view-source:{scheme}://{after}",
        f"{scheme.upper()}://{after}",
        f"{scheme}s://{after}",
        f"{scheme}:{after}",
        f"//{after}",
        f"/{after}",
        after,
        "/",
        "?",
        "#",
        "*",
        "null",
    )


def _other_hosts(host: str) -> Iterator[str]:
    evil = "evil.example"
    yield from (evil, f"{host}.{evil}", f"{host}{evil}", f"{evil}.{host}", f"www.{host}", f"{evil}/{host}")
    yield from (
        f"{evil}{mark}{host}" for mark in ("#", "?", "\\", "%23", "%2f", "%5c", ";", "&", "%00.", "\u3002", ":")
    )
    yield from (f"{host}{mark}{evil}" for mark in ("@", ":x@", "%40", "\\@", ";@", "%23@", "/@", "#@", "?@", "\uff20"))
    yield from (f"{user}@{host}" for user in ("user", "user:password", "", ":", "%40", "a@b", evil))
    yield from (f"{host}:{port}" for port in ("443", "80", "8443", "0", "0443", "65536", "", "x", "443.", "-443"))
    yield from (
        f"{host}.",
        f"{host}..",
        f".{host}",
        f"{host}%2e",
        f"{host}\u3002",
        f"{host}%00",
        f"{host}%20",
        f"{host}\t",
    )
    yield from (host.replace(".", dot) for dot in ("\u3002", "\uff0e", "\uff61", "%2e", "..", "-", "", "\u2024"))
    yield from (
        host.replace("a", letter, 1) for letter in ("\u0430", "\u00e4", "\uff41", "%61", "A", "a\u0301", "\u00ad")
    )
    yield from (host.replace("p", mark + "p", 1) for mark in ("\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad"))
    yield from (
        "localhost",
        "127.0.0.1",
        "[::1]",
        "0x7f000001",
        "2130706433",
        "0",
        "169.254.169.254",
        "[::ffff:7f00:1]",
    )


def _other_paths(path: str, rest: str) -> Iterator[str]:
    name = path.rpartition("/")[2]
    ups = ("..", ".", "%2e%2e", "%2e", "..%2f", "..;", "%252e%252e", ".%2e", "..\\", "\uff0e\uff0e", "%c0%ae%c0%ae")
    yield from (f"{path}/{up}/{name}{rest.removeprefix(path)}" for up in ups)
    yield from (f"/{up}{rest}" for up in ups)
    yield from (f"{path}/{up}/evil" for up in ups)
    more = (
        "/",
        "//",
        "/x",
        ".",
        ";",
        ";x=1",
        "%2f",
        "%5c",
        "\\",
        "%00",
        "%20",
        "%0d%0a",
        "~",
        "*",
        ".html",
        "%3f",
        "%23",
    )
    yield from (f"{path}{mark}{rest.removeprefix(path)}" for mark in more)
    yield from (
        f"{rest}{mark}" for mark in ("?", "#", "#x", "?x=1", "&x=1", "&", "#//evil.example", "%23x", ";", "=", "+")
    )
    yield from (rest[:-1], rest[1:], "", "/", path.upper(), f"/{rest}", f"//{rest}", rest.replace("/", "\\"))


def _slashes(scheme: str, host: str, rest: str) -> Iterator[str]:
    marks = (
        "/",
        "///",
        "////",
        "\\\\",
        "/\\",
        "\\/",
        "",
        "\t//",
        "/\t/",
        "\n//",
        "%2f%2f",
        "\u2044\u2044",
        "\uff0f\uff0f",
    )
    yield from (f"{scheme}:{mark}{host}{rest}" for mark in marks)
    yield from (f"{scheme}{colon}//{host}{rest}" for colon in ("", "::", "%3a", "\uff1a", " :", ": "))


def _surrounded(address: str) -> Iterator[str]:
    marks = (
        " ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\0",
        "\x01",
        "\x0b",
        "\x1f",
        "\x7f",
        "\u0085",
        "\u00a0",
        "\u2028",
        "\u200b",
        "\ufeff",
    )
    yield from (mark + address for mark in marks)
    yield from (address + mark for mark in marks)
    for index in (len("https"), len("https://a"), len(address) - 2):
        yield from (address[:index] + mark + address[index:] for mark in marks)
    yield from (f'"{address}"', f"<{address}>", f"{address},https://evil.example/", f"{address} https://evil.example/")
    yield from (f"https://evil.example/?next={address}", f"https://evil.example/#{address}", f"x{address}", address * 2)
    yield from (quote(address, safe=""), quote(address), address.encode().hex(), address + "x" * 3000)


def _recased(address: str) -> Iterator[str]:
    yield from (address.upper(), address.title(), address.swapcase(), address.capitalize())
    yield from (address[:index] + address[index].upper() + address[index + 1 :] for index in range(0, len(address), 3))


def _encoded(scheme: str, host: str, rest: str) -> Iterator[str]:
    for index in itertools.chain(range(1, min(len(rest), 12)), (len(rest) - 1,)):
        code = f"%{ord(rest[index]):02x}"
        for form in (
            code,
            code.upper(),
            code.replace("%", "%25"),
            f"\\u{ord(rest[index]):04x}",
            f"&#{ord(rest[index])};",
        ):
            yield f"{scheme}://{host}{rest[:index]}{form}{rest[index + 1 :]}"


# --- states --------------------------------------------------------------------------------------------------------


def forged_states(genuine: str) -> Iterator[str]:
    """An endless series of forged states, derived from a genuine one: altered, truncated, mixed and invented.

    Those with a key id have the genuine one, which is not secret; another id would be rejected without a decryption.
    """
    ciphertext = base64.urlsafe_b64decode(genuine + "=" * (-len(genuine) % 4))
    key = ciphertext[:9]
    for number in itertools.count():
        noise = os.urandom(len(ciphertext))
        index = 9 + number % (len(ciphertext) - 9)
        for forged in (
            key + noise[9:],
            ciphertext[:index] + bytes([ciphertext[index] ^ (1 + number % 255)]) + ciphertext[index + 1 :],
            ciphertext[:index],
            ciphertext + noise[: 1 + number % 40],
            ciphertext[:21] + noise[21:],
            b"\x02" + noise[1:],
            key,
        ):
            yield base64.urlsafe_b64encode(forged).decode().rstrip("=")
        yield from (
            genuine + "=",
            genuine[:index] + "!" + genuine[index:],
            f"state-{number}",
            "%00" * (1 + number % 9),
            "🦊",
        )
