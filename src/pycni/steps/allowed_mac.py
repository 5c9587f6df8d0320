"""The MAC address that a spoof guard lets in (`plan.steps.AllowedMAC`), where one watches.

DEL leaves it to the guard's own.
"""

from __future__ import annotations

from pycni.steps import spoof_guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import AllowedMAC
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: AllowedMAC, kernel: HostAndSandbox) -> Undo | None:
    guard = spoof_guard.watching(step.owner, step.host_links, kernel)
    if guard is None:
        return None
    spoof_guard.apply(guard.replace(mac=step.mac), kernel)
    return lambda: spoof_guard.apply(guard, kernel)


def check(step: AllowedMAC, kernel: HostAndSandbox) -> list[str]:
    """The guard's plugin compares it, with the address that the result lists."""
    return []


def current(step: AllowedMAC, kernel: HostAndSandbox) -> None:
    """There is no value to put back: DEL removes the guard."""
