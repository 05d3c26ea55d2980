"""
Every exception we raise on purpose, as one tree.

    PipelineError
    ├── ConfigError        the environment is wrong; the message names every bad variable
    ├── Unauthorized (401) · BadSignature (401) · BudgetExceeded (402)
    ├── UnknownJob (404) · UnknownOutput (404) · UnknownPath (404) · WrongMethod (405)
    ├── MalformedRequest (400) · IdempotencyConflict (409) · NotStoredYet (409) · NotAllowedNow (409)
    ├── TooLarge (413) · NotInRange (416) · InvalidInput (422) · PromptRefused (422)
    ├── RateLimited (429) · Unavailable (503) · Busy (503) · StorageFailed (503) · NotScreened (503)
    ├── OutboundError      a call to an address we did not choose
    │   ├── Blocked        never try again: it must not be called
    │   │   └── Misled     its name leads where nobody may be called; later it may lead elsewhere
    │   ├── Unreachable    try again later: no answer, or not a whole one
    │   └── TooMuch        more bytes than allowed
    └── ProviderError      what WaveSpeed answered, sorted by what may be done next
        ├── Transient      surely nothing was done: try again; `.retry_after_s`
        │   └── Throttled  the account is over its limits (429)
        ├── Rejected       never try again: the request is wrong
        │   └── NotFound   the provider knows no such task
        ├── Ambiguous      it may have worked: look before you try again
        └── AccountBlocked no POST can succeed now: stop the queue, call a person
            ├── KeyRefused 401 or 403
            └── NoCredit   the balance does not cover the request

Each error a caller can meet carries an HTTP `status`, a stable `code`, and what to do about it; doors turn it into an
RFC 9457 problem without a `try` of their own. The first line of its docstring is what callers read in the API's pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field: its dotted path, what to do about it, and the line of a batch if any."""

    field: str
    message: str
    line: int | None = None


class PipelineError(Exception):
    """
    A fault of ours; it is in the log.

    `status` is the HTTP status a door answers with, `code` the stable name callers may test for.
    """

    status: int = 500
    code: str = "internal_error"
    title: str = "Something went wrong on our side"
    remedy: str = "Repeat the request with the same `Idempotency-Key`; tell the operator when it stays."
    retry_after_s: float | None = None

    def __init__(self, detail: str = "", *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)


class ConfigError(PipelineError):
    """The environment is wrong; the message names every bad variable."""

    code = "bad_settings"
    title = "The settings are wrong"


class MalformedRequest(PipelineError):
    """The request cannot be read at all: not JSON, a broken path, a broken header."""

    status = 400
    code = "malformed_request"
    title = "The request cannot be read"
    remedy = "Send JSON in UTF-8, whole; `detail` says what could not be read."


class Unauthorized(PipelineError):
    """No service key, or not one of ours."""

    status = 401
    code = "unauthorized"
    title = "A valid service key is needed"
    remedy = "Send `Authorization: Bearer <service key>`. `pipeline services` makes and shows services."


class BadSignature(PipelineError):
    """A callback that the provider did not sign; `well_formed` when only the secret may be the wrong one."""

    status = 401
    code = "bad_signature"
    title = "The signature does not match"
    remedy = "Sign the raw body with the webhook secret; see the provider's documentation."

    def __init__(self, detail: str = "", *, well_formed: bool = False) -> None:
        super().__init__(detail)
        self.well_formed = well_formed


class BudgetExceeded(PipelineError):
    """What the job costs is more than is left of a budget."""

    status = 402
    code = "budget_exceeded"
    title = "The budget does not cover this"
    remedy = "Wait for the next period, or have the operator raise the budget: `pipeline budgets`."


class UnknownJob(PipelineError):
    """No such job, or not one this caller may see."""

    status = 404
    code = "unknown_job"
    title = "There is no such job"
    remedy = "Check the id. A service sees its own jobs only."


class UnknownPath(PipelineError):
    """Nothing lives at this address."""

    status = 404
    code = "not_found"
    title = "There is nothing at this address"
    remedy = "Check the path; there is no slash at the end of any."


class WrongMethod(PipelineError):
    """The address is right, the method is not."""

    status = 405
    code = "method_not_allowed"
    title = "This address does not take this method"
    remedy = "Use one of the methods that the header `Allow` names."


class UnknownOutput(PipelineError):
    """The job has no output of this number."""

    status = 404
    code = "unknown_output"
    title = "The job has no such output"
    remedy = "Read the job: its `outputs` are numbered from 0."


class NotStoredYet(PipelineError):
    """The output is not in our storage, or not yet."""

    status = 409
    code = "not_stored_yet"
    title = "The output is not stored yet"
    remedy = "Ask again after `Retry-After` seconds, or take it from its `source_url`."
    retry_after_s = 10.0


class NotAllowedNow(PipelineError):
    """The job is in a state that does not allow this."""

    status = 409
    code = "not_allowed_now"
    title = "The job's state does not allow this"
    remedy = "Read the job: its `state` says what is possible."


class IdempotencyConflict(PipelineError):
    """The Idempotency-Key was used before with another body."""

    status = 409
    code = "idempotency_conflict"
    title = "This Idempotency-Key was used with another body"
    remedy = "Use a new key for a new request; repeat a request exactly as it was."


class TooLarge(PipelineError):
    """The body is over the limit."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"
    remedy = "Send less; `detail` names the limit."


class NotInRange(PipelineError):
    """The part asked for by `Range` is not within the file."""

    status = 416
    code = "not_in_range"
    title = "The file has no such part"
    remedy = "`Content-Range` says how long the file is. Ask without `Range` for all of it."


class InvalidInput(PipelineError):
    """A well-formed request with wrong content; `errors` names every field."""

    status = 422
    code = "invalid_input"
    title = "Some fields are wrong"
    remedy = "Mend each field that `errors` names, and send it again, with the same `Idempotency-Key` if you like."


class PromptRefused(PipelineError):
    """The operator's screen refuses what is asked for; `errors` names the categories, field by field."""

    status = 422
    code = "prompt_refused"
    title = "The screen refuses this prompt"
    remedy = "Ask for something else: the same will be refused again. Nothing was paid."

    def __init__(self, detail: str = "", *, errors: Sequence[FieldError] = (), categories: Sequence[str] = ()) -> None:
        super().__init__(detail or f"The screen refuses this prompt: {', '.join(categories)}.", errors=errors)
        self.categories = tuple(categories)


class RateLimited(PipelineError):
    """A service asks more often than it may."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"
    remedy = "Wait for `Retry-After` seconds; `RateLimit` says how many requests are left. A batch is one request."

    def __init__(self, detail: str = "", *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(PipelineError):
    """The database cannot be reached: nothing was done."""

    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"
    remedy = "Repeat the same request, with the same `Idempotency-Key`, after `Retry-After` seconds."
    retry_after_s = 2.0


class Contended(Unavailable):
    """Another transaction was first, or holds what it takes: the database is there, and nothing was done."""


class Busy(PipelineError):
    """So many wait at this server that one more could keep others from being heard."""

    status = 503
    code = "busy"
    title = "Too many wait already"
    remedy = "Come back after `Retry-After` seconds, or read the job now and then."
    retry_after_s = 5.0


class NotScreened(PipelineError):
    """The operator's own screen for prompts failed or took too long, so nothing was accepted."""

    status = 503
    code = "not_screened"
    title = "The prompt cannot be screened now"
    remedy = "Repeat the same request after `Retry-After` seconds; tell the operator when it stays."
    retry_after_s = 10.0


class OutboundError(PipelineError):
    """A call to an address that somebody else chose failed; `detail` says why, without query or credentials."""

    status = 502
    code = "outbound_error"
    title = "The address could not be called"


class Blocked(OutboundError):
    """The address must not be called: to try again unchanged is in vain."""

    code = "address_refused"
    title = "The address must not be called"


class Misled(Blocked):
    """A name leads to an address that must not be called, as DNS has it now: later it may say otherwise."""


class Unreachable(OutboundError):
    """No answer, or not a whole one: DNS, connection, TLS, too slow, cut off. Later it may come."""

    code = "unreachable"
    title = "The address does not answer"


class TooMuch(OutboundError):
    """The answer has more bytes than allowed, unpacked ones too."""

    code = "too_much"
    title = "The answer is too large"


class StorageFailed(PipelineError):
    """The archive cannot be read or written now."""

    status = 503
    code = "archive_unavailable"
    title = "The archive of files cannot be reached"
    remedy = "Repeat the same request after `Retry-After` seconds, or take the file from its `source_url`."
    retry_after_s = 5.0


class ProviderError(PipelineError):
    """
    What WaveSpeed answered, or failed to.

    `http_status` is None when there was no answer; `provider_code` is the provider's own code, if it gave one.
    The detail is the provider's words, cut to a line.
    """

    status = 502
    code = "provider_error"
    title = "The provider did not do it"

    def __init__(
        self,
        detail: str = "",
        *,
        http_status: int | None = None,
        provider_code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.http_status = http_status
        self.provider_code = provider_code
        self.retry_after_s = retry_after_s


class Transient(ProviderError):
    """Surely nothing was done: the same request may be sent again."""

    code = "provider_unavailable"


class Throttled(Transient):
    """The account is over a limit (429)."""

    code = "provider_throttled"

    @property
    def concurrency(self) -> bool:
        """True when the limit is the number of tasks at a time, not of tasks a minute."""
        return "concurren" in self.detail.lower()


class Rejected(ProviderError):
    """The request is wrong; repeating it cannot help."""

    code = "rejected"


class NotFound(Rejected):
    """The provider knows no such task."""

    code = "result_lost"


class Ambiguous(ProviderError):
    """The request may have been carried out: look before sending it again."""

    code = "ambiguous"


class AccountBlocked(ProviderError):
    """Nothing can succeed until a person repairs the account."""

    code = "account_blocked"


class KeyRefused(AccountBlocked):
    """401 or 403: the key, or what it may do."""

    code = "forbidden"


class NoCredit(AccountBlocked):
    """The balance does not cover the request."""

    code = "insufficient_credits"


def callers_errors() -> list[type[PipelineError]]:
    """Every error that a caller of ours can meet, by status and code."""
    found = [error for error in PipelineError.__subclasses__() if error.status not in {500, ProviderError.status}]
    return sorted([*found, PipelineError], key=lambda error: (error.status, error.code))


FAILURES: Mapping[str, str] = {
    "content_moderation": "The provider's moderation refused the prompt or picture. The same will be refused again.",
    "invalid_parameter": "The model refused an option of the input. `message` has the provider's words.",
    "media_access_failed": "The provider could not load a file that the input names. Check that its address is public.",
    "generation_failed": "Generating failed at the provider. A retry may succeed.",
    Rejected.code: "The provider refused the request. `message` has its words; the same will be refused again.",
    KeyRefused.code: "The account may not use this model. Choose another, or ask the operator.",
    NotFound.code: "The provider has lost the task, so its outcome cannot be learnt. A retry is a new paid generation.",
    "given_up": "Nobody could find out what became of the submission, and an operator ended the job.",
    PromptRefused.code: "Of a job that was queued unchecked: the operator's screen refuses its prompt.",
    InvalidInput.code: "Of a job that was queued unchecked: its input is wrong. `message` names each field.",
    BudgetExceeded.code: "Of a job that was queued unchecked: the budget does not cover it.",
}
"""Why a job failed: every `error.code` of a job, with what it means and what to do."""
