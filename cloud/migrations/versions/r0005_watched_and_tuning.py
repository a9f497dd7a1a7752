"""Devices that are watched for whether they are heard of again, and evaluations on the period before the judged one."""

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision = "r0004"


def upgrade() -> None:
    op.create_table(
        "watched",
        sa.Column("rollout", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("silent", sa.Boolean),
    )
    op.create_index("watched_since", "watched", ["rollout", "since"])
    op.add_column("evaluations", sa.Column("period", sa.String(16), nullable=False, server_default="judged"))
