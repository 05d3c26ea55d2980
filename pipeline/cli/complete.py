"""What a shell offers for an option's value. Whatever is wrong, it offers nothing and says nothing."""

from contextlib import suppress


def services(incomplete: str) -> list[str]:
    """Services that hand in jobs."""
    with suppress(Exception):
        from pipeline.runtime import from_environment  # noqa: PLC0415 - only when Tab is pressed
        from pipeline.store import services as registry  # noqa: PLC0415

        with from_environment("completion", pool_size=1, patience_s=1).db.transaction() as tx:
            names = [one.name for one in registry.everyone(tx) if one.revoked_at is None]
        return [name for name in names if name.startswith(incomplete)]
    return []


def models(incomplete: str) -> list[str]:
    """Models that are known."""
    with suppress(Exception):
        from pipeline.models import SCHEMAS  # noqa: PLC0415 - only when Tab is pressed
        from pipeline.runtime import from_environment  # noqa: PLC0415
        from pipeline.store import catalogue  # noqa: PLC0415

        with from_environment("completion", pool_size=1, patience_s=1).db.transaction() as tx:
            names = {*SCHEMAS, *(one.id for one in catalogue.everything(tx) if not one.withdrawn_at)}
        return sorted(name for name in names if name.startswith(incomplete))
    return []
