"""jobs.held_at and held_reason: a paid request that only a person can judge.

Two nullable columns: locks `jobs` for an instant and rewrites nothing. The previous release never names them;
a job it moves on keeps the marks until this release moves it again, and they are read only while it is unknown.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0004_decisions"
down_revision = "0003_account"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("held_at", TIMESTAMP(timezone=True), nullable=True), schema=SCHEMA)
    op.add_column("jobs", sa.Column("held_reason", sa.Text(), nullable=True), schema=SCHEMA)


def downgrade() -> None:
    op.drop_column("jobs", "held_reason", schema=SCHEMA)
    op.drop_column("jobs", "held_at", schema=SCHEMA)
