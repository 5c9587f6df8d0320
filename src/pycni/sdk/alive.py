"""Whether an attachment lives in the kernel, whatever files say: for GC and reclaim."""

from __future__ import annotations

from pycni.kernel import all_addresses, link, namespace
from pycni.plan.steps import HOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pycni.spec.identity import Identity
    from pycni.spec.ip import IPAddress


def interface_at(path: str, targets: Sequence[int | str]) -> str:
    """The name of the first of some interfaces, by index or name, in the namespace at a path; ""
    for none, and where there is no namespace."""
    try:
        with namespace.open_path(path) as space, space.netlink() as netlink:
            for target in targets:
                found = link.find(netlink, target)
                if found is not None:
                    return found.name
    except OSError:
        pass
    return ""


def noted_interfaces(identity: Identity) -> list[int | str]:
    """The interfaces that were made inside for an attachment: by index, which its container cannot
    change; by name where none is noted."""
    inside: list[int | str] = [one.index for one in identity.links if one.where != HOST]
    return inside or [identity.owner.ifname]


def addresses_in_use(paths: Iterable[str] = ()) -> dict[IPAddress, str]:
    """Every address that is set in a namespace of this machine, with a path of that.

    paths: of namespaces that may not be found otherwise.
    """
    return all_addresses.addresses(paths)


def has_namespace(path: str) -> bool:
    """Whether there is a namespace at a path, as this process or the machine's first sees it."""
    return all_addresses.exists(path)
