"""What a client gets instead of an answer, in the shape of OpenAI's errors."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import ContextOverflow, EdgekitError, TemplateError, UsageError


@dataclass(frozen=True)
class Problem:
    """status: of HTTP. kind, param, code: as OpenAI's ``type``, ``param`` and ``code``. headers: that go with it."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None

    def document(self) -> dict[str, object]:
        """The body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class Refused(Exception):
    """Carries a Problem to where it is answered."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refuse(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refused:
    return Refused(Problem(status, message, param=param, code=code))


def busy(seconds: int) -> Refused:
    """The queue is full. OpenAI's clients wait as long as ``Retry-After`` says and try again."""
    message = f"the server is busy and its queue is full; try again in about {seconds} s"
    return Refused(Problem(429, message, "rate_limit_error", code="queue_full", headers={"Retry-After": str(seconds)}))


def too_late(seconds: float) -> Refused:
    """OpenAI's clients would try again unless told not to, which would not make it faster."""
    message = f"the answer took longer than the {seconds:g} s that this server allows; ask for fewer tokens"
    return Refused(Problem(408, message, "timeout_error", code="time_limit", headers={"x-should-retry": "false"}))


def ending() -> Refused:
    message = "the server is shutting down"
    return Refused(Problem(503, message, "server_error", code="shutting_down", headers={"Retry-After": "5"}))


def from_error(error: EdgekitError) -> Problem:
    """What the runtime refuses is the request's fault; all else is the server's (an engine that fails)."""
    if isinstance(error, ContextOverflow):
        return Problem(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, (UsageError, TemplateError)):
        return Problem(400, str(error))
    return Problem(500, str(error), "server_error", code=type(error).__name__)
