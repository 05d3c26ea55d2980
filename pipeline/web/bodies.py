"""Reading a request's body, of a limited size."""

from flask import request

from pipeline.errors import MalformedRequest, TooLarge


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
    if len(body) > at_most:
        raise _too_large(at_most)
    if len(body) < announced:
        raise MalformedRequest("The body is shorter than its Content-Length.")
    return body


def _too_large(at_most: int) -> TooLarge:
    return TooLarge(f"Send at most {at_most:,} bytes.")
