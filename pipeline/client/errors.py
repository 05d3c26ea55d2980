"""
What a call of the client's may raise, as one tree.

    ClientError
    ├── ConnectionFailed     no answer, or none that can be read: it may or may not have been done
    ├── WaitTimeout          the job has not ended in the time given; `.job` is how it was
    ├── BadNotification      not one of the pipeline's, or too old: answer 401 and do nothing
    └── ApiError             the pipeline refused: `.status`, `.code`, `.errors`, `.retry_after_s`
        ├── InvalidRequest   400, 413, 422: `.errors` name the fields
        ├── Unauthorized     401, 403
        ├── BudgetExceeded   402
        ├── NotFound         404
        ├── Conflict         409
        ├── RateLimited      429
        └── ServerError      500 and above
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.client.answers import Job


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field; `line` counts from 1 where many jobs were handed in."""

    field: str
    message: str
    line: int | None = None

    def further_down(self, lines: int) -> "FieldError":
        """The same, of a part that so many lines came before."""
        return self if self.line is None else replace(self, line=self.line + lines)


class ClientError(Exception):
    """The root."""


class ConnectionFailed(ClientError):
    """There was no answer, or none that can be read."""


class BadNotification(ClientError):
    """The pipeline did not send this, or not lately."""


class WaitTimeout(ClientError):
    """The job has not ended in the time given; it goes on."""

    def __init__(self, job: "Job") -> None:
        super().__init__(f"The job {job.id} is {job.state} still.")
        self.job = job


class ApiError(ClientError):
    """
    The pipeline's answer was a problem (RFC 9457).

    `code` is stable and may be tested for. `stored_ids` are the jobs that earlier parts of the same call handed in.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
        stored_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.stored_ids = tuple(stored_ids)

    def __str__(self) -> str:
        lines = [super().__str__()]
        for error in self.errors:
            where = error.field if error.line is None else f"line {error.line}: {error.field}"
            lines.append(f"  {where}: {error.message}")
        return "\n".join(lines)


class InvalidRequest(ApiError):
    """Something about the request is wrong; repeating it cannot help."""


class Unauthorized(ApiError):
    """The key is missing, unknown or revoked."""


class BudgetExceeded(ApiError):
    """What the job costs is more than is left of a budget."""


class NotFound(ApiError):
    """There is no such thing, or it is another service's."""


class Conflict(ApiError):
    """The job's state does not allow it, or the idempotency key was used for something else."""


class RateLimited(ApiError):
    """The service asks more often than it may."""


class ServerError(ApiError):
    """The pipeline, or something in front of it, could not answer."""


_KINDS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    402: BudgetExceeded,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
}


def kind_of(status: int) -> type[ApiError]:
    """The class that stands for a status."""
    return ServerError if status >= 500 else _KINDS.get(status, ApiError)
