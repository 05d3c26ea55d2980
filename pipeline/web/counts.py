"""What strangers provoke is counted in memory, and added to the totals now and then, by one thread."""

from pipeline import measures, telemetry
from pipeline.errors import Unavailable
from pipeline.lifecycle.hear import REFUSED
from pipeline.store import stats
from pipeline.store.database import Database
from pipeline.threads import Duty

EVERY_S = 5.0

log = telemetry.get(__name__)


class Counts:
    """One process's forgeries, written down by one thread: no request waits for it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._owed = 0
        self._duty = Duty("counts", self.look)

    def start(self) -> None:
        """Begin."""
        self._duty.start()

    def stop(self) -> None:
        """Write down what is left, and end."""
        self._duty.stop()
        self._duty.join(1.0)
        try:
            self.look()
        except Unavailable:
            log.warning("counts.lost", count=self._owed)

    def look(self) -> float:
        """Write down what came since; what could not be stays owed."""
        self._owed += REFUSED.take()
        if self._owed:
            with self._db.transaction() as tx:
                stats.add(tx, [(stats.NOBODY, measures.FORGED, self._owed)])
            self._owed = 0
        return EVERY_S
