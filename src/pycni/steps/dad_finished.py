"""The wait until duplicate address detection is over (`plan.steps.DADFinished`)."""

from __future__ import annotations

import errno
import time

from pycni.kernel import address as addresses
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import ADDRESS_UNAVAILABLE, TRY_AGAIN_LATER, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import DADFinished
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: DADFinished, kernel: HostAndSandbox) -> None:
    site = kernel.netns(step.where)
    deadline = time.monotonic() + step.timeout_ms / 1000
    try:
        addresses.wait_settled(site.netlink, site.index(step.link), deadline)
    except NetlinkError as error:
        if error.errno == errno.EADDRINUSE:
            raise CNIError(
                ADDRESS_UNAVAILABLE,
                f"an address of {step.link} is taken: {error.text}",
                "duplicate address detection got an answer; free the address there, or take it "
                "out of the range that is handed out here",
            ) from None
        if error.errno == errno.ETIMEDOUT:
            raise CNIError(
                TRY_AGAIN_LATER,
                f"link {step.link} still has tentative addresses: {error.text}",
                f"duplicate address detection did not end within {step.timeout_ms} ms",
            ) from None
        raise


def check(step: DADFinished, kernel: HostAndSandbox) -> list[str]:
    return []  # that no address failed is checked with the address
