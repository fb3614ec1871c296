"""The OpenAI-compatible HTTP server over any `Service` (paper section 4: the models as they are used).

Needs the extra `serve`: starlette, uvicorn, pydantic, prometheus-client.
"""

from plait.serve.http.api_keys import new_key
from plait.serve.http.app import create_app
from plait.serve.http.batch import run_batch
from plait.serve.http.logs import log_json_lines
from plait.serve.http.run import serve
from plait.serve.http.settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "log_json_lines", "new_key", "run_batch", "serve"]
