"""Small files that others read while we write them."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; only its owner may read it."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
