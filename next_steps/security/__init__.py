"""Authentication and authorization: who may come in, and what each may do."""

from importlib.util import find_spec

if not find_spec("cryptography"):
    raise SystemExit("No module cryptography. Install this step: pip install -r next_steps/security/requirements.txt")
