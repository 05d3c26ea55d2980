"""label_jobs: a new job has no labels yet, and to look for each was a sixth of what it costs to store jobs.

A function replaced by another: nobody waits for a lock. The previous release keeps working: it calls neither by name.
"""

from alembic import op

revision = "0025_labels"
down_revision = "0024_beat"

SCHEMA = "pipeline"

LABEL = f"""
    CREATE OR REPLACE FUNCTION {SCHEMA}.label_jobs() RETURNS trigger LANGUAGE plpgsql
    SET search_path = {SCHEMA}, pg_temp AS $$
    BEGIN
        INSERT INTO labels (service_id, name, value, job_id)
        SELECT made.service_id, label.key, label.value, made.id
        FROM made CROSS JOIN LATERAL jsonb_each_text(made.metadata) label
        WHERE made.metadata <> '{{{{}}}}'{{conflict}};
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    op.execute(LABEL.format(conflict=""))


def downgrade() -> None:
    op.execute(LABEL.format(conflict=" ON CONFLICT DO NOTHING"))
