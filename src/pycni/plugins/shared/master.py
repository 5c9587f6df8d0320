"""What the plugins that put an interface on top of another share."""

from __future__ import annotations

from pycni.spec.errors import UNAVAILABLE, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.steps.namespaces import HostAndSandbox


def require_master(kernel: HostAndSandbox, name: str) -> None:
    """Raise a CNIError (code 50) if the host has no interface to put one on.

    name: "" for the interface that the default route leaves by.
    """
    from pycni.steps.child_link import find_master

    try:
        find_master(kernel.host, name)
    except CNIError as error:
        raise CNIError(UNAVAILABLE, error.message, error.details) from None
