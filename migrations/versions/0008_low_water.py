"""account: from when on alarms are to be looked for.

Two columns on a table of one row. The previous release keeps working: it never names them, and what
they say while only it sweeps is old, which is slower and not wrong.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0008_low_water"
down_revision = "0007_admission"

SCHEMA = "pipeline"


def upgrade() -> None:
    for name in ("queued_from", "in_flight_from"):
        column = sa.Column(name, TIMESTAMP(timezone=True), server_default=sa.text("to_timestamp(0)"), nullable=False)
        op.add_column("account", column, schema=SCHEMA)


def downgrade() -> None:
    for name in ("in_flight_from", "queued_from"):
        op.drop_column("account", name, schema=SCHEMA)
