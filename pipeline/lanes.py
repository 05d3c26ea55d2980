"""How many notifications one process sends at a time, and to whom: who is slow or silent must not take every place."""

from collections import Counter

MOST = 1000
"""Under way at a time, at most."""

CROWDED = 200
"""Once so many are, an endpoint gets a place only while it has none: those that hold many are the slow ones."""

EACH = 50
"""Places of one endpoint, while it answers."""

SILENT = 4
"""Places of an endpoint whose last SILENT_AFTER tries ended without an answer."""

SILENT_AFTER = 3
"""One that breaks off may happen to anybody."""


class Lanes:
    """One lane an endpoint. Not locked: its owner does that."""

    def __init__(self) -> None:
        self._busy: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()  # in a row

    @property
    def free(self) -> int:
        """How many more may be begun, over all endpoints."""
        return MOST - self._busy.total()

    @property
    def each(self) -> int:
        """The places of an endpoint of which nothing else is known."""
        return EACH if self._busy.total() < CROWDED else 1

    def rooms(self) -> dict[str, int]:
        """How many more may be begun for each endpoint that is not as any other."""
        known = self._busy.keys() | self._unanswered.keys()
        return {name: max(0, self._places(name) - self._busy[name]) for name in known}

    def begin(self, endpoint: str) -> None:
        """One more is under way."""
        self._busy[endpoint] += 1

    def end(self, endpoint: str, *, answered: bool) -> None:
        """One less; it was *answered*, be it with a refusal."""
        self._busy[endpoint] -= 1
        if not self._busy[endpoint]:
            del self._busy[endpoint]
        if answered:
            self._unanswered.pop(endpoint, None)
        else:
            self._unanswered[endpoint] += 1

    def _places(self, endpoint: str) -> int:
        return min(self.each, SILENT) if self._unanswered[endpoint] >= SILENT_AFTER else self.each
