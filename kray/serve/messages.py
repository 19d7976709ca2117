"""What the planner's and the rewards' APIs share: the base class of requests, and errors in the form of all refusals."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from kray.serve.gate import Refusal


class Message(BaseModel):
    """Base of requests: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


def refuse_invalid_requests(app: Any) -> None:
    """Turn FastAPI's own errors into refusals; those of an invalid request name the first field that is wrong.

    Args:
        app: The FastAPI application.
    """
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def refuse_fields(request: Any, error: Any) -> None:
        errors = error.errors()
        # A misspelt field comes before the one that is missing because of it.
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        parts = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        place = ".".join(parts)
        text = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            raise Refusal(400, f"the body is no JSON: {text}", "invalid")
        raise Refusal(422, f"{place}: {text}" if place else text, "invalid", parts[0] if parts else None)

    app.add_exception_handler(RequestValidationError, refuse_fields)

    async def refuse_path(request: Any, error: Any) -> None:
        text = "no such path here" if error.status_code == 404 else str(error.detail)
        raise Refusal(error.status_code, text, "path" if error.status_code in (404, 405) else "invalid")

    app.add_exception_handler(HTTPException, refuse_path)
