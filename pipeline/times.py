"""Times as people write them. Pure: the clock is an argument."""

from datetime import UTC, datetime, timedelta

from pipeline.errors import FieldError, InvalidInput

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def read(text: str, field: str, *, now: datetime) -> datetime:
    """
    The time that *text* means: one with its zone (UTC, unless it says), or so long before *now*: 90s, 15m, 6h, 2d.

    Raises:
        InvalidInput: It is neither; *field* is named.
    """
    number, unit = text[:-1], text[-1:]
    try:
        if number.isascii() and number.isdigit() and len(number) < 7 and unit in _UNITS:
            return now - timedelta(**{_UNITS[unit]: int(number)})
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise _wrong(field, f"{text[:40]}{' ago' if unit in _UNITS else ''} was before the year 1.") from None
    except ValueError:
        message = f"{text[:40]!r} is neither a time, such as 2026-01-31T12:00Z, nor an age, as 6h."
        raise _wrong(field, message) from None


def _wrong(field: str, message: str) -> InvalidInput:
    return InvalidInput(errors=[FieldError(field, message)])
