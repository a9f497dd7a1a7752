"""Rotated keys, quotas of contributions, and the figures of reports that the dashboard reads."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from cloud.catalog.records import columns_of, device_class
from device_runtime.messages import RoundReport, from_json

revision = "r0002"
down_revision = "r0001"

_FIGURES: tuple[tuple[str, Any], ...] = (
    ("outcome", sa.String(32)),
    ("engine", sa.String(32)),
    ("device_class", sa.String(32)),
    ("candidates", sa.Integer),
    ("kept", sa.Integer),
    ("cpu_s", sa.Float),
    ("peak_mib", sa.Float),
    ("bytes_up", sa.BigInteger),
    ("bytes_down", sa.BigInteger),
    ("auc_before", sa.Float),
    ("auc_after", sa.Float),
)
_BATCH = 1000


def upgrade() -> None:
    op.add_column("devices", sa.Column("previous_key", sa.String(64)))
    op.add_column("devices", sa.Column("rotated", sa.Float))
    due = sa.Column("rotation_due", sa.Boolean, nullable=False, server_default=sa.text("false"))
    op.add_column("devices", due)
    for name, kind in _FIGURES:
        op.add_column("reports", sa.Column(name, kind))
    op.create_index("reports_received", "reports", ["received"])
    op.create_table(
        "contributed",
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(32), primary_key=True),
        sa.Column("samples", sa.BigInteger, nullable=False),
    )
    _fill()


def _fill() -> None:
    """The figures of reports that came before there were columns for them."""
    db = op.get_bind()
    devices = sa.table("devices", sa.column("id"), sa.column("capability", sa.JSON))
    figures = [sa.column(name, kind) for name, kind in _FIGURES]
    reports = sa.table("reports", sa.column("device"), sa.column("round"), sa.column("report"), *figures)
    these = (reports.c.device == sa.bindparam("of")) & (reports.c.round == sa.bindparam("number"))
    filled = sa.update(reports).where(these)
    lacking = (
        sa.select(reports.c.device, reports.c.round, reports.c.report, devices.c.capability)
        .select_from(reports.outerjoin(devices, reports.c.device == devices.c.id))
        .where(reports.c.outcome.is_(None))
        .limit(_BATCH)
    )
    while rows := db.execute(lacking).all():
        for row in rows:
            report = from_json(row.report, RoundReport, f"the report {row.round} of device {row.device}")
            db.execute(
                filled, {"of": row.device, "number": row.round, **columns_of(report, device_class(row[3] or {}))}
            )
