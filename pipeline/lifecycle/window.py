"""How many POSTs one process may have under way: as many as the provider's answers have shown it to take."""

FIRST = 20
"""POSTs that leave before anything is known of the provider, and again after a bad answer."""

LARGEST = 100
"""One batch: all that one process loses, or has refused, whatever befalls the provider or the key in the middle."""


class Window:
    """
    TCP's slow start, for paid requests: it begins small, and each good answer lets one more out.

    A POST without an answer may be a charge to be looked for. All that are under way when the provider stops
    answering become such, and it takes a minute to know: so there shall be few of them, however long the queue.
    The window grows only while it is what holds jobs back, and shrinks while it is not: about what is needed.
    """

    def __init__(self) -> None:
        self.size = FIRST

    def hear(self, *, good: bool, full: bool) -> None:
        """Take one answer into account; *full* when there was no room for all that could have been claimed."""
        if not good:
            self.size = FIRST
        else:
            self.size = min(max(self.size + (1 if full else -1), FIRST), LARGEST)
