"""Federated evaluations and what devices answered."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("rule", sa.LargeBinary, nullable=False),
        sa.Column("configurations", sa.LargeBinary, nullable=False),
        sa.Column("most", sa.Integer, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "evaluated",
        sa.Column("evaluation", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("metrics", sa.LargeBinary, nullable=False),
        sa.Column("received", sa.Float, nullable=False),
    )
