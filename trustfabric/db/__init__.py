"""PostgreSQL, and the only package that knows psycopg: one file per noun."""

from trustfabric.db.session import Connection, Database, savepoint

__all__ = ["Connection", "Database", "savepoint"]
