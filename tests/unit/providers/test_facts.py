"""What is known of the providers is marked, and docs/providers.md says the same."""

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.providers.facts import Confidence, Fact, facts_in, facts_of
from tests.unit.providers.test_catalogue import CATALOGUE, all_built
from tools import providers_doc

DOCSTRING = """Acme.

- Endpoints: docs.acme.example/oauth [H]. Tokens last
  an hour [M]; nothing says so [K]. So one hour is assumed.
- Nothing else.
"""


def test_reads_facts_with_their_sources() -> None:
    assert facts_in(DOCSTRING) == [
        Fact("Endpoints", "docs.acme.example/oauth", Confidence.HIGH),
        Fact("Tokens last an hour", "secondary sources", Confidence.MEDIUM),
        Fact("Nothing says so", "general knowledge: not confirmed", Confidence.KNOWLEDGE),
        Fact("So one hour is assumed", "", Confidence.OURS),
        Fact("Nothing else", "", Confidence.OURS),
    ]


def test_what_is_not_marked_is_no_fact() -> None:
    assert facts_in("How it works.\n\n- Like this.\n") == []


@pytest.mark.parametrize("integration_type", [row[1] for row in CATALOGUE])
def test_every_provider_has_facts(integration_type: str) -> None:
    provider = all_built().get(integration_type)
    facts = facts_of(provider)
    if integration_type == "custom":
        assert facts == []  # nothing is known of it
        return
    assert all(fact.text for fact in facts)
    assert any(fact.confidence is not Confidence.OURS for fact in facts)
    if provider.auth_method is AuthMethod.OAUTH2:
        assert any(fact.confidence is Confidence.HIGH and "/" in fact.source for fact in facts)


def test_the_page_is_as_the_declarations_are() -> None:
    assert providers_doc.PAGE.read_text(encoding="utf-8") == providers_doc.page(), "run: make providers-doc"
