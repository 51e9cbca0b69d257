"""Options of the command line that tyro does not know by itself."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import tyro


def _json_object(arguments: list[str]) -> Mapping[str, Any]:
    (text,) = arguments
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object, like '{{\"name\": 1}}'")
    return value


def _names(arguments: list[str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in arguments[0].split(",") if name.strip())


JsonObject = Annotated[
    Mapping[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [json.dumps(dict(value))],
    ),
]
NameList = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME,NAME,...",
        instance_from_str=_names,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
