"""notifications: what must be told, planned in the same commit as what happened.

A new table only: takes no lock that anybody could wait for.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0005_notifications"
down_revision = "0004_decisions"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("seq", sa.Integer(), nullable=True),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("due_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("state IN ('dead', 'delivered', 'pending')", name=op.f("notifications_state_check")),
        sa.CheckConstraint(
            "(due_at IS NOT NULL) = (state = 'pending')", name=op.f("notifications_pending_has_alarm_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("notifications_pk")),
        sa.UniqueConstraint("job_id", "seq", name=op.f("notifications_job_id_seq_key")),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("notifications", schema=SCHEMA)
