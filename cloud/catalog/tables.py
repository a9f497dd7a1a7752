"""The catalog's tables as this version uses them; `cloud.migrations` makes them, and a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

TABLES = MetaData()
DEVICES = Table(
    "devices",
    TABLES,
    Column("id", String(32), primary_key=True),
    Column("public_key", String(64), nullable=False),
    Column("capability", JSON, nullable=False),
    Column("enrolled", Float, nullable=False),
    Column("seen", Float, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
    Column("previous_key", String(64)),
    Column("rotated", Float),
    Column("rotation_due", Boolean, nullable=False, server_default=text("false")),
)
RELEASES = Table(
    "releases",
    TABLES,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("ref", LargeBinary, nullable=False),
    Column("published", Float, nullable=False),
)
REPORTS = Table(
    "reports",
    TABLES,
    Column("device", String(32), primary_key=True),
    Column("round", String(64), primary_key=True),
    Column("bundle", Integer, nullable=False),
    Column("report", LargeBinary, nullable=False),
    Column("received", Float, nullable=False),
    # what the dashboard reads of many reports at once, so that it need not decode them
    Column("outcome", String(32)),
    Column("engine", String(32)),
    Column("device_class", String(32)),
    Column("candidates", Integer),
    Column("kept", Integer),
    Column("cpu_s", Float),
    Column("peak_mib", Float),
    Column("bytes_up", BigInteger),
    Column("bytes_down", BigInteger),
    Column("auc_before", Float),
    Column("auc_after", Float),
    Index("reports_received", "received"),
)
NONCES = Table(
    "nonces",
    TABLES,
    Column("device", String(32), primary_key=True),
    Column("nonce", String(16), primary_key=True),
    Column("at", Float, nullable=False),
    Index("nonces_at", "at"),
)
CONTRIBUTED = Table(
    "contributed",
    TABLES,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("device", String(32), primary_key=True),
    Column("samples", BigInteger, nullable=False),
)
"""Samples that a device handed in on a day (days since 1970, UTC); the row of device "" is the total of all."""
