"""Converts the contract's `google.api.http` annotations and messages into an OpenAPI 3.1 document of the REST API.

The JSON is that of Envoy's transcoder as `deploy/envoy/envoy.yaml` configures it: proto3 JSON with the contract's
names. Descriptions are the comments of the protos.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

Schema = dict[str, Any]

OPENAPI_VERSION = "3.1.1"

_ERROR_DETAILS = (".google.rpc.ErrorInfo", ".google.rpc.BadRequest", ".google.rpc.RetryInfo")
_OWN_PACKAGE = ".integrations.v1."
_STATUS = ".google.rpc.Status"
_FROM_TOKEN = "user_id"  # a user's call omits it: it is the token's `sub`
_SIDECAR_METHODS = {"HandleCallback"}  # the sidecar answers them too, without a token
_REQUIRED, _OUTPUT_ONLY = "Required.", "Output only."

_INT64 = {"type": "string", "format": "int64"}
_INT64_IN = {"type": ["string", "integer"], "format": "int64"}  # a request may send a number too
_Type = FieldDescriptorProto.Type
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptorProto.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptorProto.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptorProto.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptorProto.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptorProto.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptorProto.TYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptorProto.TYPE_STRING: {"type": "string"},
}
_INT64_TYPES = {FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_UINT64}
# https://protobuf.dev/programming-guides/json/
_WELL_KNOWN: Mapping[str, Schema] = {
    ".google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    ".google.protobuf.FieldMask": {"type": "string"},
    ".google.protobuf.Struct": {"type": "object"},
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Value": {},
}


class UnsupportedContract(Exception):
    """The contract has something that this converter does not know; `str()` names it."""


def openapi_document(descriptor_set: bytes) -> str:
    """Return the document, as JSON, of a FileDescriptorSet with source info and the imports."""
    return json.dumps(_Converter(FileDescriptorSet.FromString(descriptor_set)).document(), indent=2) + "\n"


class _Converter:
    """The messages of a contract, and the schemas of those that are used."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self._files = files
        self._messages: dict[str, DescriptorProto] = {}
        self._enums: dict[str, EnumDescriptorProto] = {}
        self._comments: dict[str, str] = {}  # by the full name of what they are about
        self._schemas: dict[str, Schema] = {}
        for file in files.file:
            comments = {tuple(each.path): _text(each.leading_comments) for each in file.source_code_info.location}
            prefix = f".{file.package}"
            for number, message in enumerate(file.message_type):
                self._add_message(f"{prefix}.{message.name}", message, (4, number), comments)
            for number, enum in enumerate(file.enum_type):
                self._add_enum(f"{prefix}.{enum.name}", enum, (5, number), comments)
            for number, service in enumerate(file.service):
                for index, method in enumerate(service.method):
                    self._comments[f".{file.package}.{service.name}.{method.name}"] = comments.get(
                        (6, number, 2, index), ""
                    )

    def _add_message(
        self, name: str, message: DescriptorProto, path: tuple[int, ...], comments: Mapping[tuple[int, ...], str]
    ) -> None:
        self._messages[name] = message
        self._comments[name] = comments.get(path, "")
        for number, field in enumerate(message.field):
            self._comments[f"{name}.{field.name}"] = comments.get((*path, 2, number), "")
        for number, nested in enumerate(message.nested_type):
            self._add_message(f"{name}.{nested.name}", nested, (*path, 3, number), comments)
        for number, enum in enumerate(message.enum_type):
            self._add_enum(f"{name}.{enum.name}", enum, (*path, 4, number), comments)

    def _add_enum(
        self, name: str, enum: EnumDescriptorProto, path: tuple[int, ...], comments: Mapping[tuple[int, ...], str]
    ) -> None:
        self._enums[name] = enum
        values = [(value.name, comments.get((*path, 2, number), "")) for number, value in enumerate(enum.value)]
        lines = [f"- `{value}`: {comment}" for value, comment in values if comment]
        self._comments[name] = "\n".join([comments.get(path, ""), "", *lines]).strip()

    def document(self) -> Schema:
        """Return the document."""
        paths: dict[str, Schema] = {}
        for file in self._files.file:
            for service in file.service:
                for method in service.method:
                    for number, rule in enumerate(_bindings(method)):
                        verb, path = _verb_and_path(rule)
                        operation = self._operation(method, rule, path)
                        operation_id = f"{method.name}_{number + 1}" if number else method.name
                        comment = self._comments[f".{file.package}.{service.name}.{method.name}"]
                        paths.setdefault(path, {})[verb] = {
                            "tags": [service.name],
                            "operationId": operation_id,
                            "summary": re.split(r"(?<=\.)\s", comment, maxsplit=1)[0],
                            "description": comment,
                            **operation,
                        }
        return {
            "openapi": OPENAPI_VERSION,
            "info": {
                "title": "Integration Server",
                "version": "v1",
                "description": "The REST API of integrations.v1, through Envoy: docs/rest-api.md.",
            },
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}],
            "paths": dict(sorted(paths.items())),
            "components": {
                "schemas": dict(sorted(self._schemas.items())),
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            },
        }

    def _operation(self, method: MethodDescriptorProto, rule: http_pb2.HttpRule, path: str) -> Schema:
        if method.client_streaming or method.server_streaming or rule.body not in {"", "*"} or rule.response_body:
            raise UnsupportedContract(f"{method.name}: a stream, or a part of a message as body")
        request = self._messages[method.input_type]
        in_path = set(re.findall(r"\{(\w+)\}", path))
        is_of_sidecar = method.name in _SIDECAR_METHODS
        operation: Schema = {}
        fields = [field for field in request.field if field.name in in_path or not rule.body]
        operation["parameters"] = [
            self._parameter(method.input_type, field, is_in_path=field.name in in_path) for field in fields
        ]
        if rule.body:
            schema = self._message(method.input_type, is_request=True, not_required=in_path)
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        response = self._message(method.output_type, is_request=is_of_sidecar)
        error: Schema = self._status()
        operation["responses"] = {"200": _json_response("The result.", response)}
        if is_of_sidecar:
            operation["security"] = [{}, {"bearer": []}]
            operation["responses"]["303"] = {"description": "A redirect of a browser to the connection's `return_url`."}
            error = {"anyOf": [error, self._sidecar_error()]}
        operation["responses"]["default"] = _json_response("An error.", error)
        return operation

    def _parameter(self, owner: str, field: FieldDescriptorProto, *, is_in_path: bool) -> Schema:
        comment = self._comments[f"{owner}.{field.name}"]
        return {
            "name": field.name,
            "in": "path" if is_in_path else "query",
            "required": is_in_path or (comment.startswith(_REQUIRED) and field.name != _FROM_TOKEN),
            "description": comment,
            "schema": self._value(field, is_request=True),
        }

    def _message(self, name: str, *, is_request: bool, not_required: set[str] | None = None) -> Schema:
        """Return a reference to a message's schema, which is added with all that it contains."""
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        short = _component(name)
        if short not in self._schemas:
            message = self._messages[name]
            schema = self._schemas[short] = {"type": "object"}  # before its fields, which may refer to it
            if self._comments[name]:
                schema["description"] = self._comments[name]
            schema["properties"] = {field.name: self._property(name, field, is_request) for field in message.field}
            omitted = {_FROM_TOKEN, *(not_required or ())}
            names = [
                field.name for field in message.field if self._comments[f"{name}.{field.name}"].startswith(_REQUIRED)
            ]
            if required := [each for each in names if each not in omitted]:
                schema["required"] = required
        return {"$ref": f"#/components/schemas/{short}"}

    def _property(self, owner: str, field: FieldDescriptorProto, is_request: bool) -> Schema:
        comment = self._comments[f"{owner}.{field.name}"]
        marks: Schema = {"description": comment} if comment else {}
        if comment.startswith(_OUTPUT_ONLY):
            marks["readOnly"] = True
        return {**self._value(field, is_request=is_request), **marks}

    def _value(self, field: FieldDescriptorProto, *, is_request: bool) -> Schema:
        entry = self._messages.get(field.type_name)
        if entry is not None and entry.options.map_entry:
            return {"type": "object", "additionalProperties": self._single(entry.field[1], is_request)}
        single = self._single(field, is_request)
        is_repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        return {"type": "array", "items": single} if is_repeated else single

    def _single(self, field: FieldDescriptorProto, is_request: bool) -> Schema:
        if field.type == FieldDescriptorProto.TYPE_MESSAGE:
            return self._message(field.type_name, is_request=is_request)
        if field.type == FieldDescriptorProto.TYPE_ENUM:
            return self._enum(field.type_name)
        if field.type in _INT64_TYPES:
            return dict(_INT64_IN if is_request else _INT64)
        if field.type not in _SCALARS:
            raise UnsupportedContract(f"{field.name}: a field of type {_Type.Name(field.type)}")
        return dict(_SCALARS[field.type])

    def _enum(self, name: str) -> Schema:
        enum = self._enums[name]
        schema = {"type": "string", "enum": [value.name for value in enum.value]}
        self._schemas[_component(name)] = {**schema, "description": self._comments[name]}
        return {"$ref": f"#/components/schemas/{_component(name)}"}

    def _status(self) -> Schema:
        """Return a reference to the schema of errors, whose details have a type of their own."""
        reference = self._message(_STATUS, is_request=False)
        details = []
        for name in _ERROR_DETAILS:
            url = {"type": "string", "const": f"type.googleapis.com/{name[1:]}"}
            typed = {"type": "object", "properties": {"@type": url}, "required": ["@type"]}
            details.append({"allOf": [typed, self._message(name, is_request=False)]})
        self._schemas[_component(_STATUS)]["properties"]["details"]["items"] = {
            "anyOf": [*details, _WELL_KNOWN[".google.protobuf.Any"]]
        }
        return reference

    def _sidecar_error(self) -> Schema:
        """Return a reference to the schema of the sidecar's errors."""
        text = {"type": "string"}
        fields = {"success": {"type": "boolean", "const": False}, "reason": text, "message": text, "redirect_url": text}
        required = ["success", "reason", "message"]
        self._schemas["CallbackError"] = {
            "type": "object",
            "description": "An error of the callback without a token.",
            "properties": fields,
            "required": required,
        }
        return {"$ref": "#/components/schemas/CallbackError"}


def _component(name: str) -> str:
    """The name of a schema: short for the contract's own, which share short names with others (`Status`)."""
    return name.removeprefix(_OWN_PACKAGE).removeprefix(".")


def _bindings(method: MethodDescriptorProto) -> Iterator[http_pb2.HttpRule]:
    rule = method.options.Extensions[annotations_pb2.http]
    if rule.WhichOneof("pattern"):
        yield rule
        yield from rule.additional_bindings


def _verb_and_path(rule: http_pb2.HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom":
        raise UnsupportedContract(f"an HTTP rule without a usual method: {rule}")
    return verb, getattr(rule, verb)


def _json_response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(comment: str) -> str:
    """A comment as Markdown: its lines joined, its paragraphs apart."""
    paragraphs: Sequence[str] = re.split(r"\n\s*\n", comment.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
