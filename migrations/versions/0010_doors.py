"""What more doors need: limits and pauses of services, callbacks, the catalogue of models, labels, refusals, batches.

Locks each table for an instant: constant defaults rewrite nothing. The foreign keys to `services`, of which no row is
ever deleted, would let a caller's open transaction hold up whoever changes a key. The previous release keeps working:
it names none of this, and the triggers write the labels of its jobs too.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

revision = "0010_doors"
down_revision = "0009_places"

SCHEMA = "pipeline"

SERVICE_KEYS = {"jobs": "jobs_service_id_fk", "idempotency_keys": "idempotency_keys_service_id_fk"}

CHECKS = {
    "services_max_in_flight_check": ("services", "max_in_flight > 0"),
    "services_requests_per_minute_check": ("services", "requests_per_minute > 0"),
    "idempotency_keys_names_check": ("idempotency_keys", "(job_id IS NULL) <> (job_ids IS NULL)"),
}

LABEL = f"""
    CREATE FUNCTION {SCHEMA}.label_jobs() RETURNS trigger LANGUAGE plpgsql SET search_path = {SCHEMA}, pg_temp AS $$
    BEGIN
        INSERT INTO labels (service_id, name, value, job_id)
        SELECT made.service_id, label.key, label.value, made.id
        FROM made CROSS JOIN LATERAL jsonb_each_text(made.metadata) label
        WHERE made.metadata <> '{{}}'
        ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$;
    CREATE FUNCTION {SCHEMA}.unlabel_jobs() RETURNS trigger LANGUAGE plpgsql SET search_path = {SCHEMA}, pg_temp AS $$
    BEGIN
        DELETE FROM labels l USING gone CROSS JOIN LATERAL jsonb_each_text(gone.metadata) label
        WHERE l.service_id = gone.service_id AND l.name = label.key AND l.value = label.value AND l.job_id = gone.id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER jobs_label AFTER INSERT ON {SCHEMA}.jobs
        REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.label_jobs();
    CREATE TRIGGER jobs_unlabel AFTER DELETE ON {SCHEMA}.jobs
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.unlabel_jobs();
"""


def upgrade() -> None:
    time = TIMESTAMP(timezone=True)
    now = sa.text("clock_timestamp()")
    op.add_column("services", sa.Column("max_in_flight", sa.Integer(), nullable=True), schema=SCHEMA)
    op.add_column("services", sa.Column("requests_per_minute", sa.Integer(), nullable=True), schema=SCHEMA)
    op.add_column("services", sa.Column("paused_at", time, nullable=True), schema=SCHEMA)
    op.add_column("services", sa.Column("callback_url", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column(
        "services",
        sa.Column("callback_tasks", JSONB(), server_default=sa.text("'[]'"), nullable=False),
        schema=SCHEMA,
    )
    op.add_column("jobs", sa.Column("callback_url", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column("jobs", sa.Column("callback_task", sa.Text(), nullable=True), schema=SCHEMA)
    op.add_column("account", sa.Column("models_fetched_at", time, nullable=True), schema=SCHEMA)
    op.add_column(
        "account",
        sa.Column("default_model", sa.Text(), server_default="openai/dall-e-2", nullable=False),
        schema=SCHEMA,
    )
    op.add_column("account", sa.Column("deadline_s", sa.Float(), server_default="3600", nullable=False), schema=SCHEMA)
    op.add_column("idempotency_keys", sa.Column("job_ids", ARRAY(sa.Uuid()), nullable=True), schema=SCHEMA)
    op.alter_column("idempotency_keys", "job_id", nullable=True, schema=SCHEMA)
    for table, name in SERVICE_KEYS.items():
        op.drop_constraint(name, table, type_="foreignkey", schema=SCHEMA)
    for name, (table, condition) in CHECKS.items():
        op.execute(f"ALTER TABLE {SCHEMA}.{table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")

    op.create_table(
        "models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("schema", JSONB(), nullable=True),
        sa.Column("listed_at", time, nullable=True),
        sa.Column("withdrawn_at", time, nullable=True),
        sa.Column("paused_at", time, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("models_pk")),
        schema=SCHEMA,
    )
    op.create_index(
        "models_paused_idx", "models", ["id"], schema=SCHEMA, postgresql_where=sa.text("paused_at IS NOT NULL")
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", time, server_default=now, nullable=False),
        sa.Column("door", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("service", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("errors", JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("request", JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("refusals_pk")),
        schema=SCHEMA,
    )
    op.create_table(
        "paces",
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("spent_until", time, nullable=False),
        sa.PrimaryKeyConstraint("service_id", name=op.f("paces_pk")),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "labels",
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("service_id", "name", "value", "job_id", name=op.f("labels_pk")),
        schema=SCHEMA,
    )
    op.execute(LABEL)


def downgrade() -> None:
    op.execute(f"DROP TRIGGER jobs_label ON {SCHEMA}.jobs; DROP TRIGGER jobs_unlabel ON {SCHEMA}.jobs")
    op.execute(f"DROP FUNCTION {SCHEMA}.label_jobs(); DROP FUNCTION {SCHEMA}.unlabel_jobs()")
    for table in ("labels", "paces", "refusals", "models"):
        op.drop_table(table, schema=SCHEMA)
    op.execute(f"DELETE FROM {SCHEMA}.idempotency_keys WHERE job_id IS NULL")
    for name, (table, _) in CHECKS.items():
        op.drop_constraint(name, table, schema=SCHEMA)
    for table, name in SERVICE_KEYS.items():
        op.create_foreign_key(
            name, table, "services", ["service_id"], ["id"], source_schema=SCHEMA, referent_schema=SCHEMA
        )
    op.alter_column("idempotency_keys", "job_id", nullable=False, schema=SCHEMA)
    op.drop_column("idempotency_keys", "job_ids", schema=SCHEMA)
    for column in ("deadline_s", "default_model", "models_fetched_at"):
        op.drop_column("account", column, schema=SCHEMA)
    for column in ("callback_task", "callback_url"):
        op.drop_column("jobs", column, schema=SCHEMA)
    for column in ("callback_tasks", "callback_url", "paused_at", "requests_per_minute", "max_in_flight"):
        op.drop_column("services", column, schema=SCHEMA)
