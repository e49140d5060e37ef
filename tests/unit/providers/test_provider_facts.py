"""Facts are extracted from docstrings, every provider has some, and docs/providers.md is up to date."""

import re
from datetime import date
from pathlib import Path

import pytest

from integration_server.domain.credentials import AuthMethod
from integration_server.providers import built_in
from integration_server.providers.built_in import BEHAVIOURS
from integration_server.providers.toml_providers import BASES, provider_class, read_declaration
from tests.unit.providers.support import FakeTransport, build_provider
from tests.unit.providers.test_catalogue import all_built
from tools import providers_doc
from tools.provider_facts import FIRST_CHECK, Confidence, Fact, facts_in, facts_of, webhook_facts_of

DOCSTRING = """Acme.

- Endpoints: docs.acme.example/oauth [H]. Tokens last
  an hour [M]; nothing says so [K]. So one hour is assumed.
- Codes are short [H 2027-01-31].
- Nothing else.
"""


def test_facts_are_extracted_with_their_sources() -> None:
    assert facts_in(DOCSTRING) == [
        Fact("Endpoints", "docs.acme.example/oauth", Confidence.HIGH, FIRST_CHECK),
        Fact("Tokens last an hour", "secondary sources", Confidence.MEDIUM, FIRST_CHECK),
        Fact("Nothing says so", "general knowledge: not confirmed", Confidence.KNOWLEDGE, FIRST_CHECK),
        Fact("So one hour is assumed", "", Confidence.DERIVED),
        Fact("Codes are short", "public documentation or software", Confidence.HIGH, "2027-01-31"),
        Fact("Nothing else", "", Confidence.DERIVED),
    ]


def test_text_after_a_fact_is_derived_from_it() -> None:
    assert facts_in("Acme.\n\n- Named in a header [H]: a caller sets it.\n") == [
        Fact("Named in a header", "public documentation or software", Confidence.HIGH, FIRST_CHECK),
        Fact("A caller sets it", "", Confidence.DERIVED),
    ]


TOML = """#:schema ./schema.json
# Acme.
#
# - Endpoints: docs.acme.example/oauth [H]. Tokens last
#   an hour [M]; nothing says so [K]. So one hour is assumed.
# - Codes are short [H 2027-01-31].
# - Nothing else.

# - Not a fact: another comment [H].
integration_type = "acme"
auth_method = "api_key"
verify = false
ends = [{ what = "version 1", on = 2027-02-23 }, { what = "version 2", on = 2028-02-23, only_for = "v2" }]

[request_headers]
X-Key = "{api_key}"

# Acme: `X-Signature`.
#
# - Signed with the key [H].
[webhook]
signature_header = "X-Signature"
"""


def test_a_file_and_a_module_have_facts_in_the_same_form(tmp_path: Path) -> None:
    path = tmp_path / "acme.toml"
    path.write_text(TOML)
    provider = build_provider(provider_class(read_declaration(path, dev_mode=False), path), FakeTransport())
    assert facts_of(provider) == facts_in(DOCSTRING)
    signed = Fact("Signed with the key", "public documentation or software", Confidence.HIGH, FIRST_CHECK)
    assert webhook_facts_of(provider) == ("Acme: `X-Signature`", [signed])
    assert [row for row in providers_doc.declarations(provider) if row[0] == "ends"] == [
        ("ends", "version 1: 2027-02-23"),
        ("ends", "version 2: 2028-02-23"),
    ]
    assert [fact.subject for fact in provider.facts_ending_by(date(2030, 1, 1))] == ["version 1"]


@pytest.mark.parametrize("integration_type", [provider.integration_type for provider in all_built().all()])
def test_every_provider_has_facts(integration_type: str) -> None:
    provider = all_built()[integration_type]
    facts = facts_of(provider)
    if integration_type == "custom":
        assert {fact.confidence for fact in facts} == {Confidence.DERIVED}  # its system is not known
        return
    assert all(fact.text for fact in facts)
    assert any(fact.confidence is not Confidence.DERIVED for fact in facts)
    if provider.auth_method is AuthMethod.OAUTH2:
        assert any(fact.confidence in {Confidence.HIGH, Confidence.MEDIUM} and "/" in fact.source for fact in facts)


@pytest.mark.parametrize(
    "integration_type", [provider.integration_type for provider in all_built().all() if provider.supports_webhooks]
)
def test_every_webhook_scheme_has_facts(integration_type: str) -> None:
    title, facts = webhook_facts_of(all_built()[integration_type])
    assert re.search("`.+`", title)
    assert any(fact.confidence is not Confidence.DERIVED for fact in facts)


def test_every_python_file_of_single_types_is_listed_with_its_reason() -> None:
    providers = all_built()
    listed = {file.strip("`"): (types, reason) for file, types, reason in providers_doc.python_files(providers.all())}
    families = {file.name.removesuffix(".toml") for file in BASES.iterdir()}
    brands = families | {integration_type.partition("_")[0] for integration_type in providers}
    root = Path(built_in.__file__).parents[1]
    files = {path.relative_to(root).as_posix() for path in (root / "providers").rglob("*.py")}
    assert {file for file in files if re.split("[_.]", Path(file).name)[0] in brands} <= listed.keys()
    assert {f"providers/{integration_type}.py" for integration_type in BEHAVIOURS} <= listed.keys() <= files
    for types, reason in listed.values():
        assert types != "-"
        assert re.match(r".+: .{20,}", reason)


def test_the_page_is_up_to_date() -> None:
    assert providers_doc.PAGE.read_text(encoding="utf-8") == providers_doc.render_page(), "run: make providers-doc"
