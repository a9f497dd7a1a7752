"""An engine over a database URL: tuned, migrated to this version's tables, its failures as sentences."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from device_runtime.errors import StoreError

HEAD = "r0005"
"""The revision of `cloud.migrations` that this version's tables are of."""
_CONNECT_S = 5
_STATEMENT_MS = 10_000
_MIGRATION_LOCK = 0x436F4441
"""Any number, the same for every server of a database."""


def connect(url: str) -> Engine:
    """Open a database, and bring its tables to this version; what they hold is kept.

    url: SQLAlchemy's, such as `sqlite:////srv/coda/catalog.db` or `postgresql+psycopg://user:password@host/coda`.

    Raises:
        StoreError: it cannot be used, or a newer version of CoDA has written it.
    """
    with explained():
        engine = create_engine(url, **_options(url))
        try:
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", _tune_sqlite)
            elif engine.dialect.name != "postgresql":
                raise StoreError(f"the catalog works over sqlite and postgresql, not over {engine.dialect.name}")
            if revision(engine) != HEAD:
                _upgrade(engine)
        except BaseException:
            engine.dispose()
            raise
    return engine


def revision(engine: Engine) -> str | None:
    """What the tables are of; None: an empty database, or one of a version before there were migrations."""
    from sqlalchemy import inspect

    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as db:
        return db.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: Engine) -> None:
    # imported here: a server whose tables are up to date need not load it
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "cloud:migrations")
    with _alone(engine) as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"the catalog's tables are of a version that this one does not know ({error}); update CoDA"
            ) from None


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A connection, while no other process migrates the same database."""
    with contextlib.ExitStack() as stack:
        file = engine.url.database
        if engine.dialect.name == "sqlite" and file and file != ":memory:":
            lock = stack.enter_context(Path(f"{file}.lock").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        connection = stack.enter_context(engine.connect())
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": _MIGRATION_LOCK})
            connection.commit()
        try:
            yield connection
            connection.commit()
        finally:
            if engine.dialect.name == "postgresql":
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:number)"), {"number": _MIGRATION_LOCK})
                connection.commit()


def _options(url: str) -> dict[str, object]:
    if not url.startswith("postgresql"):
        return {}
    # a connection that died while it was idle is replaced before it is used, so a database that comes back is used
    # again without a person; waits are bounded, so that one that is away is a 503 and not a queue
    return {
        "poolclass": QueuePool,
        "pool_size": 8,
        "max_overflow": 8,
        "pool_timeout": _CONNECT_S,
        "pool_pre_ping": True,
        "connect_args": {"connect_timeout": _CONNECT_S, "options": f"-c statement_timeout={_STATEMENT_MS}"},
    }


@contextmanager
def explained() -> Iterator[None]:
    """Failures of the database as `StoreError`s that quote neither statements nor passwords."""
    try:
        yield
    except IntegrityError:
        raise
    except ImportError as error:
        hint = "; pip install 'coda-loop[postgres]'" if error.name in ("psycopg", "psycopg2") else ""
        raise StoreError(f"the catalog's database needs a driver that is not installed: {error.name}{hint}") from None
    except (SQLAlchemyError, OSError) as error:
        # drivers quote the statement after the first line
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise StoreError(f"the catalog's database cannot be used: {cause}; check that it runs and has space") from None


def _tune_sqlite(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
