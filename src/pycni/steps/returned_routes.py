"""Routes that go back into the main table at a DEL. Used by source_routing and vrf."""

from __future__ import annotations

import errno

from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import RT_TABLE_MAIN
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.route import KernelRoute
    from pycni.steps.namespaces import Netns

_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)


def restore_to_main(site: Netns, route: KernelRoute) -> None:
    """Have a route in the main table, behind those of interfaces that have not been away.

    Its gateway may not be found any more, where a container has deleted the rule that leads to the
    table, or the route to its neighbours: what was to be removed is removed, and no DEL fails for
    that. Raises NetlinkError for any other refusal.
    """
    returned = route.replace(table=RT_TABLE_MAIN)
    for wanted in (returned, returned.replace(onlink=True)):
        try:
            site.request(routes.append(wanted))
            return
        except NetlinkError as error:
            if error.errno == errno.EEXIST:  # it was in the tables of several addresses
                return
            if error.errno not in _UNREACHABLE or not route.gateways:
                raise
