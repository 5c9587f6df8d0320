"""CNI (Container Network Interface) in Python: protocol, plugins, runtime and SDK.

    from pycni import Network

Every plugin call passes through this module: so it imports nothing before it is asked for it.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.runtime import (
        Canceled,
        Cancellation,
        ConfigError,
        Endpoint,
        Network,
        NetworkNotFound,
        Outcome,
        PluginError,
        SeveralErrors,
        TimedOut,
        namespaces,
    )
    from pycni.runtime.aio import AsyncNetwork
    from pycni.spec.errors import CNIError
    from pycni.spec.result import Result
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        homes = {
            "AsyncNetwork": "pycni.runtime.aio",
            "CNIError": "pycni.spec.errors",
            "Result": "pycni.spec.result",
        }
        return getattr(import_module(homes.get(name, "pycni.runtime")), name)


__all__ = [
    "AsyncNetwork",
    "CNIError",
    "Canceled",
    "Cancellation",
    "ConfigError",
    "Endpoint",
    "Network",
    "NetworkNotFound",
    "Outcome",
    "PluginError",
    "Result",
    "SeveralErrors",
    "TimedOut",
    "namespaces",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
