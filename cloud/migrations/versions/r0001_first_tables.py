"""The tables of the first version. Databases that were made before there were migrations have them already."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("capability", sa.JSON, nullable=False),
        sa.Column("enrolled", sa.Float, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "releases",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("ref", sa.LargeBinary, nullable=False),
        sa.Column("published", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "reports",
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("round", sa.String(64), primary_key=True),
        sa.Column("bundle", sa.Integer, nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
        sa.Column("received", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "nonces",
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("nonce", sa.String(16), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_index("nonces_at", "nonces", ["at"], if_not_exists=True)
