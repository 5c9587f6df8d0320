"""What a container runtime needs: networks from configurations, and the operations on them.

    from pycni import Network

See docs/python-api.md. This is to Python what libcni is to Go; it keeps the same cache, so that one
can detach what the other attached.
"""

from __future__ import annotations

from pycni.runtime import namespaces
from pycni.runtime.bulk import Outcome
from pycni.runtime.endpoint import Endpoint
from pycni.runtime.errors import (
    Canceled,
    ConfigError,
    NetworkNotFound,
    PluginError,
    SeveralErrors,
    TimedOut,
)
from pycni.runtime.network import Network
from pycni.runtime.options import Cancellation

__all__ = [
    "Canceled",
    "Cancellation",
    "ConfigError",
    "Endpoint",
    "Network",
    "NetworkNotFound",
    "Outcome",
    "PluginError",
    "SeveralErrors",
    "TimedOut",
    "namespaces",
]
