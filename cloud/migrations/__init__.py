"""Migrations of the catalog's tables (Alembic). `cloud.catalog.database` applies them when a catalog is opened."""
