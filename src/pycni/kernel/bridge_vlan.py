"""VLANs of bridge ports: what `bridge vlan` does.

Formats: include/uapi/linux/if_bridge.h. Errors: `NetlinkError`. Used by the steps that plug
something into a bridge.
"""

from __future__ import annotations

from _socket import AF_BRIDGE
from _struct import Struct

from pycni.kernel.link import IFINFO, label
from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import U16, Many, NetlinkRequest, Schema, Structure
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.kernel.netlink.socket import NetlinkSocket

_BRVLAN = Struct("=BxHI")  # struct br_vlan_msg: family, reserved, index
_VLAN_INFO = Structure("=HH")  # struct bridge_vlan_info: flags, vid
_PORT_VLANS = Schema(
    af_spec=(
        c.IFLA_AF_SPEC,
        Schema(
            flags=(c.IFLA_BRIDGE_FLAGS, U16),
            vlans=(c.IFLA_BRIDGE_VLAN_INFO, Many(_VLAN_INFO)),
        ),
    ),
)
_VLAN_DATABASE = Schema(
    entries=(
        c.BRIDGE_VLANDB_ENTRY,
        Many(
            Schema(
                info=(c.BRIDGE_VLANDB_ENTRY_INFO, _VLAN_INFO),
                last=(c.BRIDGE_VLANDB_ENTRY_RANGE, U16),
            )
        ),
    ),
)


class PortVlan(Record):
    """VLANs `first` to `last` of a bridge port that share their flags."""

    first: int
    last: int
    pvid: bool = False
    untagged: bool = False


def dump(netlink: NetlinkSocket, port: Link | int) -> list[PortVlan]:
    """The VLANs of a bridge port, or of a bridge itself."""
    index = port if isinstance(port, int) else port.index
    request = NetlinkRequest(
        c.RTM_GETVLAN, 0, _BRVLAN.pack(AF_BRIDGE, 0, index), f"list vlans of link {label(port)}"
    )
    found = []
    for message in netlink.dump(request):
        for entry in _VLAN_DATABASE.decode(message.payload[_BRVLAN.size :]).get("entries", ()):
            flags, vid = entry["info"]
            found.append(
                PortVlan(
                    first=vid,
                    last=entry.get("last", vid),
                    pvid=bool(flags & c.BRIDGE_VLAN_INFO_PVID),
                    untagged=bool(flags & c.BRIDGE_VLAN_INFO_UNTAGGED),
                )
            )
    return found


def add(
    port: Link | int,
    first: int,
    last: int | None = None,
    *,
    pvid: bool = False,
    untagged: bool = False,
    on_bridge: bool = False,
) -> NetlinkRequest:
    """Add VLANs `first` to `last` to a bridge port (`on_bridge`: to the bridge `port` itself)."""
    flags = c.BRIDGE_VLAN_INFO_PVID * pvid | c.BRIDGE_VLAN_INFO_UNTAGGED * untagged
    return _request(c.RTM_SETLINK, "add", port, first, last, flags, on_bridge)


def delete(
    port: Link | int, first: int, last: int | None = None, *, on_bridge: bool = False
) -> NetlinkRequest:
    """Take VLANs `first` to `last` off a bridge port."""
    return _request(c.RTM_DELLINK, "delete", port, first, last, 0, on_bridge)


def _request(
    kind: int,
    verb: str,
    port: Link | int,
    first: int,
    last: int | None,
    flags: int,
    on_bridge: bool,
) -> NetlinkRequest:
    if last is None or last == first:
        infos = [(flags, first)]
        span = str(first)
    else:
        infos = [
            (flags | c.BRIDGE_VLAN_INFO_RANGE_BEGIN, first),
            (flags | c.BRIDGE_VLAN_INFO_RANGE_END, last),
        ]
        span = f"{first}-{last}"
    where = c.BRIDGE_FLAGS_SELF if on_bridge else c.BRIDGE_FLAGS_MASTER
    index = port if isinstance(port, int) else port.index
    body = IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + _PORT_VLANS.encode(
        {"af_spec": {"flags": where, "vlans": infos}}
    )
    return NetlinkRequest(kind, 0, body, f"{verb} vlan {span} on link {label(port)}")
