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
    Column("profile", JSON),
)
RELEASES = Table(
    "releases",
    TABLES,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("ref", LargeBinary, nullable=False),
    Column("published", Float, nullable=False),
    Column("staged", Boolean, nullable=False, server_default=text("false")),
)
"""Bundles that were taken in. One that is staged is nobody's until a rollout brings it to devices; the newest of the
others is what devices get that no rule means."""
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
ROLLOUTS = Table(
    "rollouts",
    TABLES,
    Column("name", String(100), primary_key=True),
    Column("bundle", Integer, nullable=False),
    Column("previous", Integer, nullable=False),
    Column("salt", String(32), nullable=False),
    Column("rule", LargeBinary, nullable=False),
    Column("ladder", LargeBinary, nullable=False),
    Column("named", LargeBinary, nullable=False),
    Column("gate", LargeBinary, nullable=False),
    Column("automatic", Boolean, nullable=False),
    Column("rung", Integer, nullable=False),
    Column("since", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("begun", Float, nullable=False),
    Column("bounds", LargeBinary, nullable=False),
    Column("finding", LargeBinary),
    Column("judged", Float, nullable=False),
    Column("retired", Boolean, nullable=False),
)
"""rule, ladder, named, gate, bounds, finding: JSON of `cloud.rollout`'s types. begun: when it first stood on a rung
that treats devices, 0 before. retired: another one has taken its place."""
AUDIT = Table(
    "audit",
    TABLES,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("who", String(100), nullable=False),
    Column("subject", String(100), nullable=False),
    Column("action", String(32), nullable=False),
    Column("rung", String(100), nullable=False),
    Column("state", String(16), nullable=False),
    Column("why", String(2000), nullable=False),
    Index("audit_subject", "subject", "id"),
)
"""Never changed. subject: a rollout's name, or `device ID` for a pin."""
PINS = Table(
    "pins",
    TABLES,
    Column("device", String(32), primary_key=True),
    Column("bundle", Integer, nullable=False),
)
COHORTS = Table(
    "cohorts",
    TABLES,
    Column("device", String(32), primary_key=True),
    Column("cohort", String(100), primary_key=True),
)
EVIDENCE = Table(
    "evidence",
    TABLES,
    Column("rollout", String(100), primary_key=True),
    Column("device", String(32), primary_key=True),
    Column("round", String(64), nullable=False),
    Column("arm", String(16), nullable=False),
    Column("received", Float, nullable=False),
    Column("counted", Boolean, nullable=False),
    Column("late", Integer, nullable=False),
    Column("further", Integer, nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("quality", Float),
    Column("cpu_s", Float),
    Column("peak_mib", Float),
    Column("bytes", Float),
    Index("evidence_arrival", "rollout", "arm", "received"),
)
"""One row a device and rollout, whatever it sends. counted: its first report that came in time; late, further: how many
others there were."""
WATCHED = Table(
    "watched",
    TABLES,
    Column("rollout", String(100), primary_key=True),
    Column("device", String(32), primary_key=True),
    Column("arm", String(16), nullable=False),
    Column("since", Float, nullable=False),
    Column("silent", Boolean),
    Index("watched_since", "rollout", "since"),
)
"""since: first signed request of a device in its group of a rollout. silent: whether no other came within the gate's
window; not known before it is over, and never changed after."""
OPERATORS = Table(
    "operators",
    TABLES,
    Column("name", String(100), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("secret", String(64), nullable=False, unique=True),
    Column("added", Float, nullable=False),
)
"""secret: SHA-256 of the token, which is random and nowhere kept."""
SESSIONS = Table(
    "sessions",
    TABLES,
    Column("secret", String(64), primary_key=True),
    Column("operator", String(100), nullable=False),
    Column("until", Float, nullable=False),
)
"""Of operators who logged in with a browser. secret: SHA-256 of the cookie."""
METADATA = Table(
    "metadata",
    TABLES,
    Column("role", String(16), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
    Column("added", Float, nullable=False),
)
"""Signed documents of the publisher, as devices get them: roots and lists of bundles."""
EVALUATIONS = Table(
    "evaluations",
    TABLES,
    Column("name", String(100), primary_key=True),
    Column("rule", LargeBinary, nullable=False),
    Column("configurations", LargeBinary, nullable=False),
    Column("most", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("until", Float, nullable=False),
    Column("period", String(16), nullable=False, server_default="judged"),
)
"""Federated evaluations. rule, configurations: JSON. most: devices that answer, at most. until: it ends."""
EVALUATED = Table(
    "evaluated",
    TABLES,
    Column("evaluation", String(100), primary_key=True),
    Column("device", String(32), primary_key=True),
    Column("metrics", LargeBinary, nullable=False),
    Column("received", Float, nullable=False),
)
