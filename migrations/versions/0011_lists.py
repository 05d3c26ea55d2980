"""jobs: the lists' indexes; the labels of the jobs there are.

The indexes are built and the labels written beside the traffic: nobody waits for a lock. The previous release keeps
working: it names none of this.
"""

from alembic import op

revision = "0011_lists"
down_revision = "0010_doors"

SCHEMA = "pipeline"

INDEXES = {
    "jobs_state_idx": "(service_id, state, id)",
    "jobs_model_idx": "(service_id, model, state, id)",
}

CONSTRAINTS = (
    ("services", "services_max_in_flight_check"),
    ("services", "services_requests_per_minute_check"),
    ("idempotency_keys", "idempotency_keys_names_check"),
)

LABELS = f"""
    INSERT INTO {SCHEMA}.labels (service_id, name, value, job_id)
    SELECT j.service_id, label.key, label.value, j.id
    FROM {SCHEMA}.jobs j CROSS JOIN LATERAL jsonb_each_text(j.metadata) label
    WHERE j.metadata <> '{{}}'
    ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, name in CONSTRAINTS:
            op.execute(f"ALTER TABLE {SCHEMA}.{table} VALIDATE CONSTRAINT {name}")
        for name, columns in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")  # half-built by a try that broke off
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {SCHEMA}.jobs {columns}")
        op.execute(LABELS)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}")
