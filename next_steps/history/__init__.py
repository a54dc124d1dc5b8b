"""Order history in a database."""

from importlib.util import find_spec

if missing := [name for name in ("alembic", "psycopg", "sqlalchemy", "tabulate") if not find_spec(name)]:
    raise SystemExit(
        f"No module {', '.join(missing)}. Install this step: pip install -r next_steps/history/requirements.txt"
    )
