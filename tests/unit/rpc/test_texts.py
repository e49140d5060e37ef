"""Names, identifiers and other texts of requests: which characters are refused, and what the error says."""

import pytest

from integration_server.domain.errors import InvalidField
from integration_server.domain.text import control_character_problem
from integration_server.rpc import mapping
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.inmemory_grpc import InMemoryGrpc, RpcError
from tests.unit.rpc.requests import good

REFUSED = {
    "ab\x07": "contains U+0007 (control character) at position 3",
    "\0": "contains U+0000 (control character) at position 1",
    "line\nbreak": "contains U+000A (control character) at position 5",
    "a\tb": "contains U+0009 (control character) at position 2",
    "\x1b[8mhidden": "contains U+001B (control character) at position 1",
    "a\x7f": "contains U+007F (control character) at position 2",
    "é\x85": "contains U+0085 (control character) at position 2",
    "👩\u200d🚀\x9f\x07": "contains U+009F (control character) at position 4",
}

KEPT = [
    "山田\u3000太郎",
    "क्\u200cष",
    "👩\u200d👩\u200d👧",
    "Ada\u00a0Lovelace",
    " Ada ",
    "\u202b\u05e9\u05dc\u05d5\u05dd\u202c",
    "soft\u00adhyphen",
    "a\u2028b",
    "\ufeffbom",
    "private \ue000, unassigned \u0378, tag \U000e0041",
]


@pytest.mark.parametrize("text", [*REFUSED, "a\ud800", "\udfffb"], ids=ascii)
def test_the_problem_names_the_character_and_its_position(text: str) -> None:
    expected = REFUSED.get(text) or (
        "contains U+D800 (lone surrogate) at position 2"
        if "\ud800" in text
        else "contains U+DFFF (lone surrogate) at position 1"
    )
    assert control_character_problem(text) == expected
    for field in ("name", "consumer", "calendar_id"):
        with pytest.raises(InvalidField) as caught:
            mapping.decode_text(field, text)
        assert (caught.value.field, caught.value.problem) == (field, expected)


@pytest.mark.parametrize("text", KEPT, ids=ascii)
def test_all_other_characters_are_kept(text: str) -> None:
    assert control_character_problem(text) is None
    assert mapping.decode_text("name", text) == mapping.decode_user_id(text) == text
    assert mapping.decode_content("description", text) == text


@pytest.mark.parametrize("text", ["two\r\nlines", "a\tb", "\x1b", "\x85", *KEPT], ids=ascii)
def test_content_may_have_several_lines_but_no_nul(text: str) -> None:
    assert mapping.decode_content("query[0].value", text) == text
    with pytest.raises(InvalidField, match=r"U\+0000 \(control character\) at position 2"):
        mapping.decode_content("query[0].value", f"{text[0]}\0{text}")


@pytest.mark.parametrize("name", KEPT, ids=ascii)
async def test_a_name_is_stored_unchanged(client: InMemoryGrpc, name: str) -> None:
    connected = await client.call("ConnectWithApiKey", good("ConnectWithApiKey", name=name))
    target = {"integration_id": connected.integration.integration_id, "user_id": "ada"}
    shown = await client.call("GetIntegration", pb.GetIntegrationRequest(**target))
    assert shown.integration.name == name
    renamed = pb.UpdateIntegrationRequest(**target, name=f"{name}{name}", config={"k": [name], name: "two\nlines"})
    updated = (await client.call("UpdateIntegration", renamed)).integration
    assert updated.name == name + name
    assert updated.config["k"][0] == name
    assert updated.config[name] == "two\nlines"


@pytest.mark.parametrize("text", list(REFUSED)[2:5], ids=ascii)
async def test_the_error_of_a_call_names_the_character(client: InMemoryGrpc, text: str) -> None:
    for method, field in (("ConnectWithApiKey", "name"), ("ListWebhookEvents", "consumer"), ("CallProvider", "path")):
        with pytest.raises(RpcError) as refused:
            await client.call(method, good(method, **{field: text}))
        assert (refused.value.reason, refused.value.message) == ("INVALID_FIELD", f"{field} {REFUSED[text]}")


@pytest.mark.parametrize("text", ["one\ntwo", "{\r\n\t1\r\n}", "a\x0bb"])
def test_a_pasted_secret_may_have_lines(text: str) -> None:
    assert mapping.decode_secret_fields({"file": f"\ufeff {text} \n"}) == {"file": text}


def test_a_secret_that_cannot_be_stored_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidField, match=r"secret_fields\.file contains U\+0000"):
        mapping.decode_secret_fields({"file": "a\0b"})
    with pytest.raises(InvalidField, match=r"secret_fields\.file has 8193 characters"):
        mapping.decode_secret_fields({"file": "x" * 8193})
    with pytest.raises(InvalidField, match=r"secret_fields contains U\+000A"):
        mapping.decode_secret_fields({"fi\nle": "x"})
