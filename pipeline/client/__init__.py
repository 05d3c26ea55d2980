"""What another service imports to call our HTTP API. Needs httpx2, and nothing else of the product."""

from pipeline.client.answers import Event, Job, JobError, Output, Timings
from pipeline.client.asynchronous import AsyncClient
from pipeline.client.blocking import Client
from pipeline.client.errors import (
    ApiError,
    BadNotification,
    BudgetExceeded,
    ClientError,
    Conflict,
    ConnectionFailed,
    FieldError,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerError,
    Unauthorized,
    WaitTimeout,
)
from pipeline.client.notifications import verify_notification
from pipeline.client.retries import Retries

__all__ = [
    "ApiError",
    "AsyncClient",
    "BadNotification",
    "BudgetExceeded",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "Event",
    "FieldError",
    "InvalidRequest",
    "Job",
    "JobError",
    "NotFound",
    "Output",
    "RateLimited",
    "Retries",
    "ServerError",
    "Timings",
    "Unauthorized",
    "WaitTimeout",
    "verify_notification",
]
