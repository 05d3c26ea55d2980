"""services, jobs, their attempts and events: the row is the job.

New tables only: takes no lock that anybody could wait for.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0001_jobs"
down_revision = None

SCHEMA = "pipeline"


def upgrade() -> None:
    op.create_table(
        "services",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("operator", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("weight", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("revoked_at", TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'", name=op.f("services_name_check")),
        sa.CheckConstraint("weight BETWEEN 1 AND 1000", name=op.f("services_weight_check")),
        sa.PrimaryKeyConstraint("id", name="services_pk"),
        sa.UniqueConstraint("key_hash", name="services_key_hash_key"),
        sa.UniqueConstraint("name", name="services_name_key"),
        schema=SCHEMA,
    )

    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("input", JSONB(), nullable=False),
        sa.Column("options", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("metadata", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("run_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("due_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("deadline_at", TIMESTAMP(timezone=True), nullable=False),
        sa.Column("current_attempt", sa.Uuid(), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("prediction_id", sa.Text(), nullable=True),
        sa.Column("outputs", JSONB(), nullable=True),
        sa.Column("error", JSONB(), nullable=True),
        sa.Column("settled_by", sa.Text(), nullable=True),
        sa.Column("inference_ms", sa.Integer(), nullable=True),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("last_seq", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("submitted_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('cancelled', 'completed', 'failed'))",
            name=op.f("jobs_finished_check"),
        ),
        sa.CheckConstraint(
            "current_attempt IS NOT NULL OR NOT state IN ('processing', 'submitting', 'unknown')",
            name=op.f("jobs_attempted_check"),
        ),
        sa.CheckConstraint(
            "due_at IS NOT NULL OR NOT state IN ('processing', 'queued', 'submitting', 'unknown')",
            name=op.f("jobs_live_has_alarm_check"),
        ),
        sa.CheckConstraint(
            "due_at IS NULL OR NOT state IN ('cancelled', 'completed', 'failed')",
            name=op.f("jobs_final_has_no_alarm_check"),
        ),
        sa.CheckConstraint("error IS NOT NULL OR state <> 'failed'", name=op.f("jobs_failed_has_error_check")),
        sa.CheckConstraint(
            "outputs IS NOT NULL OR state <> 'completed'", name=op.f("jobs_completed_has_outputs_check")
        ),
        sa.CheckConstraint(
            "settled_by IS NULL OR settled_by IN ('deadline', 'list', 'operator', 'poll', 'submit', 'webhook')",
            name=op.f("jobs_settled_by_check"),
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'completed', 'expired', 'failed', 'processing', 'queued', 'submitting', 'unknown')",
            name=op.f("jobs_state_check"),
        ),
        sa.CheckConstraint("priority BETWEEN -10 AND 10", name=op.f("jobs_priority_check")),
        sa.ForeignKeyConstraint(["service_id"], ["pipeline.services.id"], name="jobs_service_id_fk"),
        sa.PrimaryKeyConstraint("id", name="jobs_pk"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "jobs_due_idx",
        "jobs",
        ["state", "due_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "jobs_queue_idx",
        "jobs",
        ["service_id", sa.literal_column("priority DESC"), "due_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'queued'"),
    )

    op.create_index(
        "jobs_deadline_idx",
        "jobs",
        ["deadline_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("service_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("started_at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("ended_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("prediction_id", sa.Text(), nullable=True),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("hint_id", sa.Text(), nullable=True),
        sa.Column("hinted_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("absent_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("missing_polls", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("missing_at", TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome IS NULL OR outcome IN"
            " ('absent', 'accepted', 'blocked', 'lost', 'not_sent', 'rejected', 'throttled')",
            name=op.f("attempts_outcome_check"),
        ),
        sa.CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name=op.f("attempts_ended_check")),
        sa.ForeignKeyConstraint(["job_id"], ["pipeline.jobs.id"], name="attempts_job_id_fk", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="attempts_pk"),
        sa.UniqueConstraint("job_id", "number", name="attempts_job_id_number_key"),
        sa.UniqueConstraint("prediction_id", name="attempts_prediction_id_key"),
        sa.UniqueConstraint("token", name="attempts_token_key"),
        schema=SCHEMA,
    )
    op.create_index(
        "attempts_started_at_idx",
        "attempts",
        ["started_at"],
        unique=False,
        schema=SCHEMA,
        postgresql_include=["service_id", "outcome", "ended_at"],
    )

    op.create_table(
        "events",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq", name="events_pk"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("events", schema=SCHEMA)
    op.drop_table("attempts", schema=SCHEMA)
    op.drop_table("jobs", schema=SCHEMA)
    op.drop_table("services", schema=SCHEMA)
