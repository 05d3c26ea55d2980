"""workers.place and gone_at: neighbours on one machine see each other's end at once.

Columns without a default on a small table. The previous release keeps working: it never names them, and a worker
without a place is taken for dead by its heartbeat alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0009_places"
down_revision = "0008_low_water"

SCHEMA = "pipeline"


def upgrade() -> None:
    op.add_column("workers", sa.Column("place", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column("workers", sa.Column("gone_at", TIMESTAMP(timezone=True), nullable=True), schema=SCHEMA)


def downgrade() -> None:
    op.drop_column("workers", "gone_at", schema=SCHEMA)
    op.drop_column("workers", "place", schema=SCHEMA)
