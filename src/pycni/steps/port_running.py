"""The wait until a host link carries traffic (`plan.steps.PortRunning`).

An interface that has just been set up carries only once the kernel has worked through a queue of
its own; until then a bridge drops what arrives. The kernel reports when, so nothing is polled.
"""

from __future__ import annotations

import errno
import time

from pycni.kernel import link as links
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import TRY_AGAIN_LATER, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortRunning
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: PortRunning, kernel: HostAndSandbox) -> None:
    deadline = time.monotonic() + step.timeout_ms / 1000
    try:
        links.wait_running(kernel.host.netlink, kernel.host.index(step.link), deadline)
    except NetlinkError as error:
        if error.errno != errno.ETIMEDOUT:
            raise
        raise CNIError(
            TRY_AGAIN_LATER,
            f"bridge port in error state: {error.text.removeprefix('it is ')}",
            f"host interface {step.link} did not carry traffic within {step.timeout_ms} ms",
        ) from None


def check(step: PortRunning, kernel: HostAndSandbox) -> list[str]:
    return []  # that its ends are up is checked where they are made
