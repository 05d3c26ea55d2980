"""How migrations run: in the schema `pipeline`, one release at a time, never waiting long for a lock."""

import time

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

SCHEMA = "pipeline"
ONE_AT_A_TIME = 0x70697065  # "pipe": two releases at once wait for each other instead of colliding


def include_name(name, type_, parent_names):
    """Look at our own schema only: the database may be shared with its owner's tables."""
    return name == SCHEMA if type_ == "schema" else True


def wait_for_our_turn(connection: Connection) -> None:
    """
    Wait as long as it takes until no other release migrates.

    Asking again and again, outside any transaction: an index that is built concurrently waits for every open one.
    """
    while not connection.execute(text(f"SELECT pg_try_advisory_lock({ONE_AT_A_TIME})")).scalar():
        connection.commit()
        time.sleep(0.2)


def run_migrations() -> None:
    """Apply what is missing; each migration commits by itself, so a failed one leaves the former in place."""
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text("SET search_path = public"))  # names in migrations are written out
        connection.execute(text("SET statement_timeout = '300s'"))
        wait_for_our_turn(connection)
        connection.execute(text("SET lock_timeout = '5s'"))  # a table's lock would queue every writer behind us
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=context.config.attributes.get("metadata"),
            version_table_schema=SCHEMA,
            include_schemas=True,
            include_name=include_name,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run_migrations()
