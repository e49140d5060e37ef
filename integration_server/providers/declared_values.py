"""Values that a declaration asks for: of an integration's config, and of a lookup's response."""

from collections.abc import Mapping
from json import dumps
from typing import Any

from integration_server.domain.errors import AccountNotChosen, InvalidField, ProviderUnavailable
from integration_server.domain.lenient_values import field_at, text_at
from integration_server.providers.declaration_tables import Choose, FieldDeclaration


def field_values(
    prefix: str, fields: Mapping[str, FieldDeclaration], values_by_name: Mapping[str, Any]
) -> Mapping[str, str]:
    """The values of declared fields, with their defaults. Raises `InvalidField` for `<prefix>.<name>`."""
    values = {}
    for name, declared in fields.items():
        texts = _texts_of(f"{prefix}.{name}", declared, values_by_name.get(name))
        for path, value in texts.items():
            if (problem := declared.problem_of(value)) is not None:
                raise InvalidField(path, problem)
        if texts:
            values[name] = (declared.separator or "").join(declared.text_of(str(text)) for text in texts.values())
        elif declared.default is not None:
            values[name] = declared.text_of(declared.default)
        elif declared.required:
            raise InvalidField(f"{prefix}.{name}", "is required for this integration type")
    return values


def _texts_of(path: str, declared: FieldDeclaration, value: object) -> Mapping[str, object]:
    """The texts of a field by their paths: one, those of a list, or none if the field is not given."""
    if declared.separator is not None and value is not None:
        if not isinstance(value, list | tuple):
            raise InvalidField(path, "must be a list of texts")
        return {f"{path}.{index}": as_text(part) for index, part in enumerate(value)}
    text = as_text(value)
    return {} if text is None or text == "" else {path: text}


def as_text(value: object) -> object:
    """A number or a truth value as JSON writes it; anything else unchanged."""
    if isinstance(value, float) and value.is_integer():  # a Struct has no integers
        value = int(value)
    return dumps(value) if isinstance(value, bool | int | float) else value


def chosen_account(choose: Choose, response: object, account_id_of_config: str | None) -> object:
    """The account that the config names, or the only one. Raises `AccountNotChosen` or `ProviderUnavailable`."""
    found = field_at(response, choose.list) if choose.list else response
    if not isinstance(found, list):
        raise ProviderUnavailable
    by_id = {account_id: item for item in found if (account_id := text_at(item, choose.id)) is not None}
    if account_id_of_config is None and len(by_id) == 1:
        return next(iter(by_id.values()))
    if account_id_of_config not in by_id:
        labels = {
            account_id: text_at(item, choose.label) if choose.label else None for account_id, item in by_id.items()
        }
        raise AccountNotChosen(choose.by, labels)
    return by_id[account_id_of_config]
