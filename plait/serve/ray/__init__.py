"""Serving on several machines with Ray Serve (paper section 4: the models as they are used).

Needs the extras `serve` and `ray`.
"""

from plait.serve.ray.application import Fleet, app, application, run, start, stop

__all__ = ["Fleet", "app", "application", "run", "start", "stop"]
