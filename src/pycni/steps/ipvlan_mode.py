"""The mode of ipvlans: one for all that are on a link, so the first of them decides.

A new one of another mode would change that of the others for good, in whichever namespaces they
are (ipvlan_set_port_mode of drivers/net/ipvlan/ipvlan_main.c). What pycni set last is noted for
each link of the host; all namespaces are looked at only where that is missing, or another mode.
Used by `child_link`.
"""

from __future__ import annotations

from pycni.kernel import link as links
from pycni.spec.errors import ALREADY_EXISTS, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.kernel.link import Link
    from pycni.steps.namespaces import HostAndSandbox, Netns


def make_in(
    kernel: HostAndSandbox, home: Netns, master: Link, mode: str, make: Callable[[], Link]
) -> Link:
    """What `make` makes on a master, if that changes the mode of no other ipvlan on it.

    home: where the master is. Raises CNIError (code 101), and what `make` does.
    """
    if master.kind in links.IPVLAN_KINDS:  # which share the link that it is on itself
        _require_same(mode, master, master, f"{master.name} itself")
        return make()
    if home is kernel.sandbox:
        with kernel.lock_sandbox():
            for found in links.dump(home.netlink):
                if found.link == master.index and found.link_netnsid is None:
                    _require_same(mode, master, found, f"{found.name} in {home.path}")
            return make()
    if kernel.claim is None:
        _look_everywhere(master, mode)
        return make()
    from pycni.steps.ownership import netns_id

    with kernel.claim.notes.lock_master(netns_id(kernel.host), master.index) as note:
        if note.mode != mode:
            _look_everywhere(master, mode)
            note.write(mode)
        return make()


def _look_everywhere(master: Link, mode: str) -> None:
    from pycni.kernel import all_addresses  # rarely: for the first one on a link

    for space, _, found in all_addresses.links_on(master.index, links.IPVLAN_KINDS):
        _require_same(mode, master, found, f"{found.name} in {space.path}")


def _require_same(mode: str, master: Link, other: Link, which: str) -> None:
    present = other.ipvlan_mode
    if present in (None, mode):
        return
    raise CNIError(
        ALREADY_EXISTS,
        f'"{master.name}" has ipvlans in mode {present}, and cannot have one in mode {mode}',
        f"it would change the mode of the others, such as {which}, for Linux keeps one for each "
        f'master: give the network "mode": "{present}" or another "master", or detach those first',
    )
