"""callbacks and idempotency_keys: what came in, so that nothing is taken twice.

New tables only: takes no lock that anybody could wait for.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0002_inbox"
down_revision = "0001_jobs"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.create_table(
        "callbacks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("received_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("attempt_id", sa.Uuid(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("prediction_id", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("headers", JSONB(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "verdict IN ('applied', 'duplicate', 'late', 'orphan', 'stale', 'suspicious', 'unreadable')",
            name=op.f("callbacks_verdict_check"),
        ),
        sa.PrimaryKeyConstraint("id", name="callbacks_pk"),
        schema=SCHEMA,
    )
    op.create_index("callbacks_job_id_idx", "callbacks", ["job_id"], unique=False, schema=SCHEMA)
    op.create_index("callbacks_prediction_id_idx", "callbacks", ["prediction_id"], unique=False, schema=SCHEMA)

    op.create_table(
        "idempotency_keys",
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["pipeline.jobs.id"],
            name="idempotency_keys_job_id_fk",
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(["service_id"], ["pipeline.services.id"], name="idempotency_keys_service_id_fk"),
        sa.PrimaryKeyConstraint("service_id", "key", name="idempotency_keys_pk"),
        schema=SCHEMA,
    )
    op.create_index("idempotency_keys_job_id_idx", "idempotency_keys", ["job_id"], unique=False, schema=SCHEMA)


def downgrade() -> None:
    op.drop_table("idempotency_keys", schema=SCHEMA)
    op.drop_table("callbacks", schema=SCHEMA)
