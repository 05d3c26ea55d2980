"""Reading a request's body, of a limited size; and leaving nothing of it behind."""

from flask import Flask, Response, g, request

from pipeline.errors import MalformedRequest, TooLarge

LEFT_BYTES = 64 * 1024
"""Of a body that nobody wanted, so much is read: for the rest the connection ends."""

STRANGE = frozenset({400, 401, 403, 404, 405, 413})
"""Answers that anybody can have, who may never send the body that was announced."""


def register(app: Flask) -> None:
    """Have no request of *app* be lost because nobody read the body of the one before it on the same connection."""
    app.after_request(_leave_nothing)


def _leave_nothing(answer: Response) -> Response:
    """
    Read what is left of the body, or tell the caller that the connection ends.

    Granian closes a connection on which something is left without a word, and the next request on it is lost: most
    clients send the head and the body apart, so that the answer is often there before the body. Who may be a stranger
    is not waited for.
    """
    environ = request.environ
    comes = environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ
    if not comes or g.get("body_taken") or not environ.get("wsgi.input_terminated"):  # without it a read may never end
        return answer
    too_long = (request.content_length or 0) > LEFT_BYTES
    if too_long or answer.status_code in STRANGE or len(environ["wsgi.input"].read(LEFT_BYTES)) == LEFT_BYTES:
        answer.headers["Connection"] = "close"
    return answer


def read(at_most: int) -> bytes:
    """
    The raw body, if it has at most so many bytes, with or without a Content-Length.

    Raises:
        TooLarge: It has more. What a length announces is not waited for.
        MalformedRequest: It broke off; what came of it may well read as a whole.
    """
    announced = request.content_length or 0
    if announced > at_most:
        raise _too_large(at_most)
    request.max_content_length = at_most + 1  # a chunked body is cut there without a word, so it takes one more to see
    body = request.get_data(cache=False)
    g.body_taken = len(body) <= at_most
    if len(body) > at_most:
        raise _too_large(at_most)
    if len(body) < announced:
        raise MalformedRequest("The body is shorter than its Content-Length.")
    return body


def _too_large(at_most: int) -> TooLarge:
    return TooLarge(f"Send at most {at_most:,} bytes.")
