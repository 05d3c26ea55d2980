"""The product with one guard removed: the same code, and a database that is sent every statement without that guard."""

import re

from sqlalchemy import event
from sqlalchemy.engine import Connection

from pipeline.store.database import Database


class Sabotaged(Database):
    """A database whose statements lose a guard on their way, a pattern. `cut` counts how often that happened."""

    def __init__(self, url: str, guard: str, instead: str) -> None:
        super().__init__(url, name="sabotaged", pool_size=24)
        self.cut = 0

        def remove(
            connection: Connection, cursor: object, statement: str, parameters: object, context: object, many: bool
        ) -> tuple[str, object]:
            sent, cut = re.subn(guard, instead, statement)
            self.cut += cut
            return sent, parameters

        event.listen(self.engine, "before_cursor_execute", remove, retval=True)
