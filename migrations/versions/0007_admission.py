"""jobs: the claim's index holds admitted jobs only; those to be admitted have one of their own.

The constraints of 0006 are validated and the indexes built beside the traffic: nobody waits for a lock. The previous
release keeps working: its claims only lose their index.
"""

from alembic import op

revision = "0007_admission"
down_revision = "0006_money"

SCHEMA = "pipeline"

READY = f"""CREATE INDEX CONCURRENTLY jobs_ready_idx ON {SCHEMA}.jobs (service_id, priority DESC, due_at)
            WHERE state = 'queued' AND admitted"""
ADMISSION = f"""CREATE INDEX CONCURRENTLY jobs_admission_idx ON {SCHEMA}.jobs (due_at)
                WHERE state = 'queued' AND NOT admitted"""
QUEUE = f"""CREATE INDEX CONCURRENTLY jobs_queue_idx ON {SCHEMA}.jobs (service_id, priority DESC, due_at)
            WHERE state = 'queued'"""


def drop(name: str) -> str:
    """One left half-built by a try that broke off goes too."""
    return f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, name in (
            ("jobs", "jobs_price_check"),
            ("jobs", "jobs_input_check"),
            ("jobs", "jobs_options_check"),
            ("jobs", "jobs_metadata_check"),
            ("notifications", "notifications_audience_check"),
        ):
            op.execute(f"ALTER TABLE {SCHEMA}.{table} VALIDATE CONSTRAINT {name}")
        op.execute(drop("jobs_ready_idx"))
        op.execute(READY)
        op.execute(drop("jobs_admission_idx"))
        op.execute(ADMISSION)
        op.execute(drop("jobs_queue_idx"))


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(drop("jobs_queue_idx"))
        op.execute(QUEUE)
        op.execute(drop("jobs_admission_idx"))
        op.execute(drop("jobs_ready_idx"))
