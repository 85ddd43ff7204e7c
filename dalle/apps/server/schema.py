"""OpenAPI schemas of bodies for /docs: endpoints parse bodies themselves, so that all errors have one shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a JSON body."""
    return _body("application/json", schema.model_json_schema())


def form_schema(schema: type[BaseModel], *files: str) -> dict[str, Any]:
    """The OpenAPI entry of a form with files."""
    content = schema.model_json_schema()
    content["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    content["required"] = [*content.get("required", []), "image"]
    return _body("multipart/form-data", content)


def _body(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": content}}}}
