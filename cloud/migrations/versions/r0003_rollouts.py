"""Rollouts, their evidence and audit, pins and cohorts, operators, and the publisher's signed documents."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    op.add_column("devices", sa.Column("profile", sa.JSON))
    staged = sa.Column("staged", sa.Boolean, nullable=False, server_default=sa.text("false"))
    op.add_column("releases", staged)
    op.create_table(
        "rollouts",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("bundle", sa.Integer, nullable=False),
        sa.Column("previous", sa.Integer, nullable=False),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("rule", sa.LargeBinary, nullable=False),
        sa.Column("ladder", sa.LargeBinary, nullable=False),
        sa.Column("named", sa.LargeBinary, nullable=False),
        sa.Column("gate", sa.LargeBinary, nullable=False),
        sa.Column("automatic", sa.Boolean, nullable=False),
        sa.Column("rung", sa.Integer, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("begun", sa.Float, nullable=False),
        sa.Column("bounds", sa.LargeBinary, nullable=False),
        sa.Column("finding", sa.LargeBinary),
        sa.Column("judged", sa.Float, nullable=False),
        sa.Column("retired", sa.Boolean, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("who", sa.String(100), nullable=False),
        sa.Column("subject", sa.String(100), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("rung", sa.String(100), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("why", sa.String(2000), nullable=False),
    )
    op.create_index("audit_subject", "audit", ["subject", "id"])
    op.create_table(
        "pins",
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("bundle", sa.Integer, nullable=False),
    )
    op.create_table(
        "cohorts",
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("cohort", sa.String(100), primary_key=True),
    )
    op.create_table(
        "evidence",
        sa.Column("rollout", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("round", sa.String(64), nullable=False),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("received", sa.Float, nullable=False),
        sa.Column("counted", sa.Boolean, nullable=False),
        sa.Column("late", sa.Integer, nullable=False),
        sa.Column("further", sa.Integer, nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("quality", sa.Float),
        sa.Column("cpu_s", sa.Float),
        sa.Column("peak_mib", sa.Float),
        sa.Column("bytes", sa.Float),
    )
    op.create_index("evidence_arrival", "evidence", ["rollout", "arm", "received"])
    op.create_table(
        "operators",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False, unique=True),
        sa.Column("added", sa.Float, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("secret", sa.String(64), primary_key=True),
        sa.Column("operator", sa.String(100), nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "metadata",
        sa.Column("role", sa.String(16), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("added", sa.Float, nullable=False),
    )
