"""What a data directory remembers from run to run: its keys go on working, its addresses stay when they can."""

import json
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from pipeline.embedded.files import write

NAME = "memory.json"


@dataclass
class Memory:
    """The secrets and ports of one stack, in a file that only its owner may read."""

    dashboard_password: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    metrics_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    api_key: str = ""
    ports: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> "Memory":
        """Read what *directory* remembers, or begin anew."""
        file = directory / NAME
        kept = json.loads(file.read_text()) if file.exists() else {}
        known = {one.name for one in fields(cls)}  # another release may have remembered more
        return cls(**{name: value for name, value in kept.items() if name in known})

    def keep(self, directory: Path) -> None:
        """Write it down."""
        write(directory / NAME, json.dumps(asdict(self)) + "\n")
