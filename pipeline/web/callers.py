"""Who asks: the service whose key stands in the Authorization header."""

from flask import current_app, request

from pipeline.errors import Unauthorized
from pipeline.runtime import Runtime
from pipeline.store import services
from pipeline.store.services import Service


def caller() -> tuple[Runtime, Service]:
    """
    The runtime of this process, and the service that asks.

    Raises:
        Unauthorized: No key, or none of ours.
    """
    rt: Runtime = current_app.extensions["runtime"]
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("Send the header 'Authorization: Bearer <service key>'.")
    with rt.db.transaction() as tx:
        service = services.by_key(tx, key.strip())
    if service is None:
        raise Unauthorized("This key is not one of ours, or it was revoked.")
    return rt, service
