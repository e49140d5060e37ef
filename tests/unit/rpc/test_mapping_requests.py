"""Decoding of single values; `test_bad_input.py` tests them within requests."""

from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from integration_server.domain.errors import InvalidField
from integration_server.rpc import mapping
from integrations.v1 import integration_service_pb2 as pb


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (200, 200), (201, 200), (2**31 - 1, 200)])
def test_a_page_size_has_a_default_and_a_maximum(asked: int, given: int) -> None:
    assert mapping.decode_page(pb.ListIntegrationsRequest(page_size=asked, page_token="next")) == (given, "next")


def test_a_problem_names_the_limit_and_does_not_quote_the_value() -> None:
    with pytest.raises(InvalidField) as refused:
        mapping.decode_text("name", "n" * 256, 255)
    assert str(refused.value) == "name has 256 characters; the maximum is 255"


def test_limits_count_characters() -> None:
    assert mapping.decode_text("name", "🦆" * 255, 255) == "🦆" * 255


def test_an_optional_integration_can_be_omitted() -> None:
    assert mapping.decode_optional_integration_id(0) == 0
    with pytest.raises(InvalidField, match="required"):
        mapping.decode_integration_id(0)


@pytest.mark.parametrize("key", ["".join(map(chr, range(0x21, 0x7F))), "schlüssel", "a b", "-----BEGIN\nAA\n-----END"])
@pytest.mark.parametrize("around", ["", " ", "\r\n", "\t", "\u00a0", "\u200b", "\ufeff \n", "\u3000"])
def test_what_was_pasted_around_a_key_is_removed(key: str, around: str) -> None:
    assert mapping.decode_key("api_key", f"{around}{key}{around}") == key


@pytest.mark.parametrize("scope", ["https://www.googleapis.com/auth/calendar", "read:a", "a!#]^~", "s" * 255])
def test_a_scope_can_have_all_characters_of_the_rfc(scope: str) -> None:
    assert mapping.decode_scopes("scopes", [scope, scope]) == (scope, scope)


def test_a_duration_is_kept_to_the_microsecond() -> None:
    request = pb.GetCredentialsRequest(min_ttl=Duration(seconds=3, nanos=1_000))
    assert mapping.decode_duration("min_ttl", request) == timedelta(seconds=3, microseconds=1)
    assert mapping.decode_duration("min_ttl", pb.GetCredentialsRequest(min_ttl=Duration())) == timedelta(0)
    assert mapping.decode_duration("min_ttl", pb.GetCredentialsRequest()) is None


def test_the_last_of_repeated_parameters_counts() -> None:
    assert mapping.decode_query("query", "a=1&b=%C3%A9+x&a=2&c=") == {"a": "2", "b": "é x"}


@pytest.mark.parametrize("query", ["", "&&&", "%", "=", "a", "?a", ";"])
def test_a_malformed_query_without_values_has_no_parameters(query: str) -> None:
    assert mapping.decode_query("query", query) == {}


@pytest.mark.parametrize(("query", "parameters"), [("%zz=1", {"%zz": "1"}), ("a=%ff", {"a": "\ufffd"})])
def test_a_malformed_encoding_is_accepted(query: str, parameters: dict[str, str]) -> None:
    assert mapping.decode_query("query", query) == parameters


def test_a_config_is_decoded_to_json_values() -> None:
    config = Struct()
    config.update({"text": "🦆", "whole": 1, "half": 0.5, "none": None, "list": [True, {"k": []}], "": {}})
    assert mapping.decode_config(config) == {
        "text": "🦆",
        "whole": 1,
        "half": 0.5,
        "none": None,
        "list": [True, {"k": []}],
        "": {},
    }
    assert mapping.decode_config(Struct()) == {}


def test_an_unset_value_is_null() -> None:
    config = Struct(fields={"unset": Value(), "list": Value(list_value=ListValue(values=[Value()]))})
    assert mapping.decode_config(config) == {"unset": None, "list": [None]}


@given(st.dictionaries(st.text(), st.text()))
def test_a_config_is_rejected_exactly_if_it_has_a_nul(content: dict[str, str]) -> None:
    config = Struct()
    config.update(content)
    if any("\0" in text for pair in content.items() for text in pair):
        with pytest.raises(InvalidField):
            mapping.decode_config(config)
    else:
        assert mapping.decode_config(config) == content


@given(st.lists(st.sampled_from(["\\", "\0", "u0000", "\\u0000", '"']), max_size=6))
def test_escapes_neither_hide_nor_create_a_nul(parts: list[str]) -> None:
    text = "".join(parts)
    config = Struct()
    config.update({"k": text})
    if "\0" in text:
        with pytest.raises(InvalidField):
            mapping.decode_config(config)
    else:
        assert mapping.decode_config(config) == {"k": text}
