"""Opening the namespace that a request names, with an error for each way that it can be wrong."""

from __future__ import annotations

from pycni.kernel import namespace
from pycni.kernel.context import Kernel
from pycni.spec.errors import INVALID_ENVIRONMENT, INVALID_NETNS, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.namespace import Namespace
    from pycni.sdk.request import Request


def open_sandbox(request: Request) -> Kernel:
    """Host and sandbox of a request. Raises CNIError (code 8) if the sandbox cannot be opened."""
    try:
        return Kernel(_open(request), request.netns, request.cancel)
    except OSError as error:
        message = f'failed to open netns "{request.netns}": {error.strerror}'
        if isinstance(error, PermissionError):
            details = "the plugin needs the rights of root on this host"
            raise CNIError(INVALID_ENVIRONMENT, message, details) from error
        details = (
            "CNI_NETNS must be the path of a network namespace, such as /run/netns/NAME "
            "or /proc/PID/ns/net"
        )
        raise CNIError(INVALID_NETNS, message, details) from error


def find_sandbox(request: Request) -> Kernel:
    """The same for DEL, which goes on without a sandbox where there is none any more."""
    if not request.netns and request.netns_fd is None:
        return Kernel(None)
    try:
        return open_sandbox(request)
    except CNIError as error:
        if isinstance(error.__cause__, namespace.NamespaceNotFound):
            return Kernel(None)
        raise


def _open(request: Request) -> Namespace:
    if request.netns_fd is not None:
        return namespace.from_fd(request.netns_fd)
    return namespace.open_path(request.netns)
