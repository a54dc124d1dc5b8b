"""Order history in a database."""

try:
    import alembic  # noqa: F401
    import psycopg  # noqa: F401
    import sqlalchemy  # noqa: F401
except ImportError as missing:
    install = "pip install -r next_steps/history/requirements.txt"
    raise SystemExit(f"{missing}. Install what this step needs: {install}") from None
