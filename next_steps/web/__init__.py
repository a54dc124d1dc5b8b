"""A web page for orders."""

from importlib.util import find_spec

NEEDED = ("fastapi", "uvicorn", "httptools", "jinja2", "python_multipart", "prometheus_client", "sqlalchemy", "argon2")
if missing := [name for name in NEEDED if not find_spec(name)]:
    raise SystemExit(
        f"No module {', '.join(missing)}. Install this step: pip install -r next_steps/web/requirements.txt"
    )
