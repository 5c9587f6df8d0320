"""Ports of a bridge that no other container reaches through it (`plan.steps.PortIsolation`).

The bridge itself keeps isolated ports apart, which does not take br_netfilter, but lets others
reach them: those of a network without a policy. So they are also in a set of nftables, table
`bridge pycni`, by which frames to and from other containers' ports are dropped, however many there
are:

    set firewall-isolated { veth1 comment "<owner>" }
    oifname @firewall-isolated meta iifkind "veth" drop

Ports of other kinds than containers and virtual machines have are of the host's own: uplinks.
A kernel may lack nftables for bridges; then br_netfilter has the rules of the policy do the same.
"""

from __future__ import annotations

import errno

from pycni.kernel import link as links
from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.nfnetlink import NFPROTO_BRIDGE
from pycni.steps import noted_links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.kernel.link import Link
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortIsolation
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

TABLE = "pycni"
PORTS = "firewall-isolated"
CHAIN = "firewall-isolated-forward"

_KINDS = {"veth": "containers", "tun": "machines"}
_RULES = {
    f"{way} {who}": f'{own}ifname @{PORTS} meta {other}ifkind "{kind}" drop'
    for kind, who in _KINDS.items()
    for way, own, other in (("from", "o", "i"), ("to", "i", "o"))
}
_SET_UP = "\n".join(
    (
        f"add table bridge {TABLE}",
        f"add set bridge {TABLE} {PORTS} {{ type ifname; }}",
        f"add chain bridge {TABLE} {CHAIN} {{ type filter hook forward priority filter; }}",
        f"flush chain bridge {TABLE} {CHAIN}",
        *(
            f'add rule bridge {TABLE} {CHAIN} {rule} comment "{comment}"'
            for comment, rule in _RULES.items()
        ),
    )
)


def apply(step: PortIsolation, kernel: HostAndSandbox) -> Undo | None:
    host = kernel.host
    ports = _ports(step, kernel)
    changed = [port for port in ports if not port.isolated]
    host.request(*(links.update(port, isolated=True) for port in changed))

    def undo() -> None:
        host.request(*(links.update(port, isolated=False) for port in changed))
        if made:
            host.netfilter.update(lambda: _own(step, ports, host.netfilter))

    made = False
    try:
        made = _keep_apart(step, ports, host.netfilter)
    except OSError:
        undo()
        raise
    return undo if changed or made else None


def _keep_apart(step: PortIsolation, ports: list[Link], netfilter: NetfilterSocket) -> bool:
    """Enter the ports into the set; whether any was not there. No error without nftables."""
    from pycni.kernel.netfilter.nftables import NftError, run

    made = False

    def missing() -> list[NetlinkRequest]:
        nonlocal made
        if not _is_whole(netfilter):
            run(_SET_UP)
        requests = []
        for port in ports:
            found = nfnetlink.element(
                netfilter, NFPROTO_BRIDGE, TABLE, PORTS, nfnetlink.ifname_key(port.name)
            )
            if found is not None and found.comment == step.owner.comment:
                continue
            if found is not None:  # of an earlier port of that name
                requests.append(_delete(nfnetlink.ifname_key(port.name)))
            requests.append(
                nfnetlink.add_element(
                    NFPROTO_BRIDGE,
                    TABLE,
                    PORTS,
                    nfnetlink.ifname_key(port.name),
                    step.owner.comment,
                )
            )
        made = bool(requests)
        return requests

    try:
        netfilter.update(missing)
    except NftError as error:
        if error.errno == errno.EPERM:
            raise
    return made


def check(step: PortIsolation, kernel: HostAndSandbox) -> list[str]:
    """The ports that others reach."""
    netfilter = kernel.host.netfilter
    ports = _ports(step, kernel)
    differences = [
        f"port {port.name} of bridge {step.bridge} is not isolated"
        for port in ports
        if not port.isolated
    ]
    if not ports or _host_rules_do(kernel):
        return differences
    if not _is_whole(netfilter):
        differences.append(
            f"nftables: chain bridge {TABLE} {CHAIN} lacks rules: containers of networks without a"
            f" policy reach those on {step.bridge}"
        )
    differences += (
        f"nftables: {port.name} is not in set bridge {TABLE} {PORTS}"
        for port in ports
        if nfnetlink.element(
            netfilter, NFPROTO_BRIDGE, TABLE, PORTS, nfnetlink.ifname_key(port.name)
        )
        is None
    )
    return differences


def release(
    netfilter: NetfilterSocket, wanted: Callable[[str], bool], tag: str
) -> list[NetlinkRequest]:
    """What takes the ports out of the set whose comment contains a tag and is wanted."""
    found = nfnetlink.elements(netfilter, NFPROTO_BRIDGE, TABLE, PORTS, tag)
    return [_delete(item.key) for item in found if wanted(item.comment)]


def _ports(step: PortIsolation, kernel: HostAndSandbox) -> list[Link]:
    """Those of the links that are ports of the bridge, and lead nowhere but to the sandbox."""
    host = kernel.host
    bridge = host.find(step.bridge, altnames=True)
    found = [host.find(name) for name in step.links if name != step.bridge]
    return [
        port
        for port in found
        if port is not None
        and bridge is not None
        and port.master == bridge.index
        and (port.kind != "veth" or noted_links.leads_to_sandbox(kernel, port))
    ]


def _host_rules_do(kernel: HostAndSandbox) -> bool:
    """Whether what bridges forward goes through the host's rules, where the policy drops it."""
    try:
        return all(
            kernel.host.read_sysctl(f"net/bridge/bridge-nf-call-{name}") == "1"
            for name in ("iptables", "ip6tables")
        )
    except OSError:
        return False


def _is_whole(netfilter: NetfilterSocket) -> bool:
    found = nfnetlink.rules(netfilter, NFPROTO_BRIDGE, TABLE, CHAIN)
    return {rule.comment for rule in found}.issuperset(_RULES)


def _own(
    step: PortIsolation, ports: list[Link], netfilter: NetfilterSocket
) -> list[NetlinkRequest]:
    requests = []
    for port in ports:
        found = nfnetlink.element(
            netfilter, NFPROTO_BRIDGE, TABLE, PORTS, nfnetlink.ifname_key(port.name)
        )
        if found is not None and step.owner.owns(found.comment):
            requests.append(_delete(nfnetlink.ifname_key(port.name)))
    return requests


def _delete(key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_BRIDGE, TABLE, PORTS, key)
