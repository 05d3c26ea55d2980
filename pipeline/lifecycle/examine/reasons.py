"""Why a server lets nobody in, in plain words: read off what it, or the way to it, said in its own."""

import re

_KNOWN = {
    "refuses the user or the password": r"password authentication failed|wrongpass|username-password|access_refused",
    "wants a password": r"no password supplied|noauth|authentication required",
    "knows no such user": r'role "[^"]*" does not exist',
    "has no database of that name": r'database "[^"]*" does not exist',
    "has no connection left": r"too many (clients|connections)|remaining connection slots|max number of clients",
    "lets nobody in from here, or not in this way": r"pg_hba\.conf",
    "speaks no TLS there": r"does not support ssl|wrong.version.number|record layer failure",
    "is something else": r"invalid response|protocol error",
    "has no certificate that is accepted": r"certificate",
    "has a host name that cannot be found": r"resolve host|translate host|name or service|getaddrinfo",
    "does not listen there": r"connection refused",
    "hangs up at once, or speaks otherwise: with TLS, or without": r"connection closed|closed the connection|reset by",
    "does not answer": r"time(d )?out|no route to host|unreachable",
}


def reason(said: str) -> str | None:
    """What *said* means; None when that is not known. Its own words are not shown: they may hold names."""
    return next((words for words, signs in _KNOWN.items() if re.search(signs, said, re.IGNORECASE)), None)
