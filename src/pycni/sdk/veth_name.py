"""What plugins that make a veth pair share: the name of its end on the host."""

from __future__ import annotations

from pycni.spec.owner import hashed_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.sdk.request import Request
    from pycni.spec.result import Result


def host_end(request: Request, network: Result, *others: str) -> str:
    """The name of the pair's host end: the one ADD reported, or the one that it will get.

    It is the last interface of the host that a result lists before the sandbox's, without `others`:
    what comes earlier is of plugins before, what comes later of plugins after.
    """
    found = ""
    for interface in network.interfaces:
        if interface.sandbox and interface.name == request.ifname:
            break
        if not interface.sandbox and interface.name not in others:
            found = interface.name
    if found:
        return found
    owner = request.owner
    return hashed_name("veth", f"{owner.network}/{owner.container_id}/{owner.ifname}", 15)
