"""How request bodies are read: strictly, with every field that is refused named in the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, from_json, to_json

from plait.serve.http.errors import ApiError

MAX_LOGPROBS = 20
_NAMED = ("unsupported_parameter", "unknown_parameter")

B = TypeVar("B", bound="Body")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("must be false: this server doesn't do it")
    return value


Integer = Annotated[int, BeforeValidator(_whole)]  # 1.0 is an integer in JSON Schema
# Literal[False] would let 0 pass.
OnlyFalse = Annotated[bool, AfterValidator(_only_false), WithJsonSchema({"type": "boolean", "const": False})]


@dataclass(frozen=True)
class Reading:
    """What validation knows beside the body."""

    lenient: bool = False


class Body(BaseModel):
    """A JSON object whose fields are all known.

    `not_supported` are fields of OpenAI's API that this server hasn't: null passes, anything else is refused by name,
    `--lenient` or not, because leaving it out would change what the request means. Fields that nobody knows are refused
    unless the server is lenient.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, json_schema_extra={"additionalProperties": False}
    )
    not_supported: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _refuse_others(self, info: ValidationInfo) -> Any:
        for name, value in (self.model_extra or {}).items():
            if name in self.not_supported:
                if value is not None:
                    raise PydanticCustomError(
                        "unsupported_parameter", "{name} is not supported by this server: leave it out", {"name": name}
                    )
            elif not (info.context and info.context.lenient):
                raise PydanticCustomError(
                    "unknown_parameter",
                    "{name} is not a field of this request: leave it out, or start the server with --lenient to have"
                    " such fields ignored",
                    {"name": name},
                )
        return self


def read_query(kind: type[B], query: Mapping[str, str]) -> B:
    """The parameters behind a path's question mark. Raises ApiError 400 like `read_body`."""
    try:
        return kind.model_validate_strings(dict(query), context=Reading())
    except ValidationError as error:
        raise _refusal(error, to_json(dict(query))) from error


def read_body(kind: type[B], raw: bytes, *, lenient: bool = False) -> B:
    """Parses and checks a body. Raises ApiError 400 that names the first field that is wrong."""
    try:
        return kind.model_validate_json(raw, context=Reading(lenient))
    except ValidationError as error:
        raise _refusal(error, raw) from error


def _refusal(error: ValidationError, raw: bytes) -> ApiError:
    found = error.errors(include_url=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found[0]['ctx']['error']}", code="invalid_json")
    # Of a union's branches each one complains: the complaint that reached deepest is from the branch that was meant.
    first = max(found, key=lambda e: (e["type"] in _NAMED, len(_path(e, raw))))
    name = first.get("ctx", {}).get("name")
    path = _path(first, raw) + ([name] if name else [])
    param = ".".join(map(str, path)) or None
    code = first["type"] if name else "missing_field" if first["type"] == "missing" else "invalid_value"
    said = first["msg"].removeprefix("Value error, ")
    if name and len(path) > 1:
        said = f"{'.'.join(map(str, path[:-1]))}: {said}"
    elif not name and param:
        said = f"{param}: {said}"
    return ApiError(400, said, param=param, code=code)


def _path(error: ErrorDetails, raw: bytes) -> list[int | str]:
    """Of pydantic's location what leads through the body itself; the rest names branches of unions."""
    loc = error["loc"]
    here: Any = from_json(raw)
    path: list[int | str] = []
    for n, part in enumerate(loc):
        if isinstance(part, int) and isinstance(here, list) and part < len(here):
            here = here[part]
        elif isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif error["type"] != "missing" or n < len(loc) - 1:
            continue
        path.append(part)
    return path
