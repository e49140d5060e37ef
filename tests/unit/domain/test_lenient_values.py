import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration_server.domain.lenient_values import read_json, read_object, text_at, texts_at


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (rb'{"a": "x\ud83dy"}', {"a": "x\ufffdy"}),
        (rb'{"\udc00": ["\ud83d\ude00", "\ud83d"]}', {"\ufffd": ["\U0001f600", "\ufffd"]}),
        (b'{"a": "Caf\xe9"}', {"a": "Caf\ufffd"}),
        (b'{"a": "\xe9", "b": "\xf0\x9f"}', {"a": "\ufffd", "b": "\ufffd"}),
        (b'{"a": "x\ty"}', {"a": "x\ty"}),
        (b'{"a": -%s}' % (b"9" * 5000), {"a": float("-inf")}),
        (b'\xef\xbb\xbf{"a": %d}' % 10**40, {"a": 10**40}),
    ],
)
def test_parses_objects(body: bytes, value: object) -> None:
    assert read_object(body) == value


def test_parses_arrays() -> None:
    assert read_json(b'\xef\xbb\xbf["\xe9"]') == ["\ufffd"]


@pytest.mark.parametrize("body", [b"", b"\xef\xbb\xbf", b'{"a": ', b"<html>", b"\xff\xfe", b"{'a': 1}", b'{"a": 1} x'])
def test_other_bodies_are_none(body: bytes) -> None:
    assert (read_object(body), read_json(body)) == (None, None)


@pytest.mark.parametrize("depth", [5_000, 30_000, 500_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"":', b"}"), (b"[", b""), (b'{"":', b"")])
def test_deep_nesting_is_harmless(depth: int, begin: bytes, end: bytes) -> None:
    body = begin * depth + b"1" + end * depth
    assert (read_object(body), read_json(body)) == (None, None)


def test_only_small_bodies_are_parsed_leniently() -> None:
    body = b'\xef\xbb\xbf{"a": "%s"}'
    assert read_object(body % (b"x" * 65_000)) is not None
    assert read_object(body % (b"x" * 66_000)) is None
    assert read_object(body[3:] % (b"x" * 66_000)) is not None


@given(st.binary() | st.text().map(str.encode))
def test_every_parsed_value_can_be_serialized(body: bytes) -> None:
    value = read_object(b'{"a": "%s"}' % body)
    assert value is None or json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize("body", [rb'{"a": "x\ud83d"}', b'{"a": "x\xe9"}', '{"a": "x\ufffd"}'.encode()])
def test_incompletely_decoded_text_is_not_an_identifier(body: bytes) -> None:
    assert text_at(read_object(body), "a") is None


@pytest.mark.parametrize(
    "name",
    [
        "株式会社\u3000山田",
        "क्\u200cष",
        "👩\u200d👩\u200d👧",
        "Müller\u00a0GmbH",
        "\u202babc\u202c",
        "soft\u00adhyphen",
        " Ada ",
        "line\u2028separator",
        "\ue000 private",
    ],
)
def test_names_are_kept_as_people_write_them(name: str) -> None:
    assert text_at(read_object(json.dumps({"a": name}).encode()), "a") == name


@pytest.mark.parametrize("text", ["a\tb", "\x1b[1m", "a\x85b", "a\x7f", "a\0", "", " ", "\u3000\u00a0", "x" * 256])
def test_text_with_control_characters_or_without_any_letter_is_no_name(text: str) -> None:
    assert text_at({"a": text}, "a") is None


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("errors.*.reason", ["first", "7"]),
        ("errors.*.missing", []),
        ("codes.*", ["50076", "x"]),
        ("error.code", ["190"]),
        ("error.*.code", []),
        ("*.reason", []),
    ],
)
def test_a_star_in_a_path_stands_for_each_element(path: str, texts: list[str]) -> None:
    errors = [{"reason": "first"}, "text", {"reason": 7}, {"reason": None}]
    value = {"errors": errors, "codes": [50076, None, "x", True], "error": {"code": 190}}
    assert list(texts_at(value, path)) == texts


def test_negative_control_a_lone_surrogate_cannot_be_encoded() -> None:
    with pytest.raises(UnicodeEncodeError):
        json.loads(rb'{"a": "x\ud83d"}')["a"].encode()
