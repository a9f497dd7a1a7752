"""Alembic's entry: migrates over the connection that it is given, in one transaction."""

from alembic import context

from cloud.catalog.tables import TABLES

context.configure(connection=context.config.attributes["connection"], target_metadata=TABLES)
with context.begin_transaction():
    context.run_migrations()
