"""Errors in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

log = logging.getLogger("dalle.server")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error of a request: message, and status of the response."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.headers = retry_after, headers or {}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            # RFC 9110 wants it with 401
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.content(), self.status, headers)

    def content(self) -> dict[str, dict[str, str | None]]:
        """The answer's JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def from_validation(error: ValidationError) -> ApiError:
    """The first thing wrong with a body, by the name of its field."""
    errors = error.errors(include_url=False)
    # Of a field that may be a text or a list, pydantic says for each what is wrong: what got furthest was meant
    first = max((one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    # Behind the field's name are those of pydantic's types, "list[str]", and places in a list
    return _refused({**first, "loc": [part for i, part in enumerate(first["loc"]) if i == 0 or isinstance(part, int)]})


def _refused(first: Mapping[str, Any]) -> ApiError:
    """What pydantic says of one field; names and values of any length may have been sent."""
    param = printable(".".join(str(part)[:100] for part in first["loc"])) or None
    # Where nothing was given, pydantic's input is the whole body
    given = "" if first["type"] in ("missing", "json_invalid") else f" (given: {_short(first['input'])})"
    if first["type"] == "extra_forbidden":
        return ApiError(f"there is no field {param}", param, code="unknown_parameter")
    name = "the body" if param is None else param
    # pydantic puts this in front of the text of our own validators
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "too_short":  # "List should have at least 2 items after validation, not 1"
        message = f"give {first['ctx']['min_length']} at least"
    return ApiError(f"{name}: {message}{given}", param, code="invalid_value")


def add_handlers(app: FastAPI) -> None:
    """Answer every error in that shape."""

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong_path(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _refused({**first, "loc": first["loc"][1:]}).response()  # without "path"

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {printable(request.url.path[:100])}: {str(error.detail).lower()}"
        # RFC 9110 wants Allow with 405
        return ApiError(message, status=error.status_code, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return ApiError("the server failed at this request; its log says why", status=500).response()


def printable(name: str) -> str:
    """A name that somebody sent, in one line: line breaks, and characters that turn the text around, are escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
