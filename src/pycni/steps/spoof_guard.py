"""Spoof guard: frames enter a bridge with the MAC address that belongs to the port, or not at all.

nftables, table `bridge pycni`: one rule for all ports, with two sets that it looks up:

    set spoof-guard-ports { veth1 comment "<owner>" }
    set spoof-guard-allowed { veth1 . 0a:58:0a:01:00:02 comment "<owner>" }
    iifname @spoof-guard-ports iifname . ether saddr != @spoof-guard-allowed drop

The reference makes two chains and a rule for each port, in table `bridge nat`; `remove` removes
those too.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.nfnetlink import NFPROTO_BRIDGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import SpoofGuard
    from pycni.spec.owner import Owner, Owners
    from pycni.steps.namespaces import HostAndSandbox

TABLE = "pycni"
PORTS = "spoof-guard-ports"
ALLOWED = "spoof-guard-allowed"
CHAIN = "spoof-guard-prerouting"

REFERENCE_TABLE = "nat"
REFERENCE_CHAIN = "PREROUTING"

MAC_LENGTH = 6  # bytes

_RULE = f"iifname @{PORTS} iifname . ether saddr != @{ALLOWED} drop"
_RULE_COMMENT = "forged addresses"
_SET_UP = f"""\
add table bridge {TABLE}
add set bridge {TABLE} {PORTS} {{ type ifname; }}
add set bridge {TABLE} {ALLOWED} {{ type ifname . ether_addr; }}
add chain bridge {TABLE} {CHAIN} {{ type filter hook prerouting priority -300; }}
flush chain bridge {TABLE} {CHAIN}
add rule bridge {TABLE} {CHAIN} {_RULE} comment "{_RULE_COMMENT}"
"""


def apply(step: SpoofGuard, kernel: HostAndSandbox) -> Callable[[], object] | None:
    """Let only frames with the port's address in; what an earlier port of that name left goes."""
    netfilter = kernel.host.netfilter
    port = _port_key(step.host_link)
    pair = _pair_key(step.host_link, step.mac)
    comment = step.owner.comment
    changed = set_up = False

    def missing() -> list[NetlinkRequest]:
        nonlocal changed, set_up
        if not _rule_present(netfilter):
            from pycni.kernel.netfilter import nftables

            nftables.run(_SET_UP)
            set_up = True
        found = nfnetlink.element(netfilter, NFPROTO_BRIDGE, TABLE, PORTS, port)
        requests: list[NetlinkRequest] = []
        if found is not None:
            pairs = _pairs_of(netfilter, port)
            if found.comment == comment and pairs == [pair]:
                changed = False
                return []
            requests += [_delete(PORTS, port), *(_delete(ALLOWED, key) for key in pairs)]
        elif nfnetlink.element(netfilter, NFPROTO_BRIDGE, TABLE, ALLOWED, pair) is not None:
            requests.append(_delete(ALLOWED, pair))
        changed = True
        return [*requests, _add(PORTS, port, comment), _add(ALLOWED, pair, comment)]

    def undo() -> None:
        netfilter.update(lambda: _own(step, netfilter, pair))
        if set_up:
            _discard(netfilter)

    try:
        netfilter.update(missing)
    except OSError:
        if set_up:
            _discard(netfilter)
        raise
    return undo if changed else None


def watching(
    owner: Owner, host_links: tuple[str, ...], kernel: HostAndSandbox
) -> SpoofGuard | None:
    """The owner's guard of one of these links, with the address that it lets in."""
    from pycni.plan.steps import SpoofGuard

    netfilter = kernel.host.netfilter
    for name in host_links:
        port = _port_key(name)
        if _present(netfilter, PORTS, port, owner):
            for pair in _pairs_of(netfilter, port):
                return SpoofGuard(owner, name, pair[len(port) :][:MAC_LENGTH].hex(":"))
    return None


def _discard(netfilter: NetfilterSocket) -> None:
    """Take away the rule, the sets and the table, unless others use them."""
    nfnetlink.discard(
        netfilter,
        nfnetlink.delete_chain(NFPROTO_BRIDGE, TABLE, CHAIN),
        nfnetlink.delete_set(NFPROTO_BRIDGE, TABLE, PORTS),
        nfnetlink.delete_set(NFPROTO_BRIDGE, TABLE, ALLOWED),
    )
    nfnetlink.discard(netfilter, nfnetlink.delete_table(NFPROTO_BRIDGE, TABLE))


def check(step: SpoofGuard, kernel: HostAndSandbox) -> list[str]:
    """What would let forged frames in, or keep rightful ones out."""
    netfilter = kernel.host.netfilter
    port = _port_key(step.host_link)
    if not _present(netfilter, PORTS, port, step.owner) and _reference_made(step, netfilter):
        return []
    differences = []
    if not _rule_present(netfilter):
        differences.append(f"nftables: chain bridge {TABLE} {CHAIN} lacks the rule: {_RULE}")
    if not _present(netfilter, PORTS, port, step.owner):
        differences.append(
            f"nftables: {step.host_link} is not in set bridge {TABLE} {PORTS}: nothing is dropped"
        )
    pair = _pair_key(step.host_link, step.mac)
    if step.mac and not _present(netfilter, ALLOWED, pair, step.owner):
        differences.append(
            f"nftables: {step.host_link} with {step.mac} is not in set bridge {TABLE} {ALLOWED}"
        )
    return differences


def remove(step: SpoofGuard, kernel: HostAndSandbox) -> None:
    """Remove the owner's elements, and the chains and rules the reference made for it."""
    netfilter = kernel.host.netfilter
    pair = _pair_key(step.host_link, step.mac) if step.mac else None
    netfilter.update(
        lambda: [*_own(step, netfilter, pair), *_reference_leftovers(step.owner, netfilter)]
    )


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove their elements."""
    netfilter = kernel.host.netfilter
    netfilter.update(
        lambda: [
            _delete(name, item.key)
            for name in (PORTS, ALLOWED)
            for item in nfnetlink.elements(netfilter, NFPROTO_BRIDGE, TABLE, name, owners.tag)
            if owners.includes(item.comment)
        ]
    )


def _port_key(host_link: str) -> bytes:
    return nfnetlink.ifname_key(host_link)


def _pair_key(host_link: str, mac: str) -> bytes:
    # Each part of a concatenation is padded to four bytes.
    return _port_key(host_link) + bytes.fromhex(mac.replace(":", "")) + b"\0\0"


def _add(name: str, key: bytes, comment: str) -> NetlinkRequest:
    return nfnetlink.add_element(NFPROTO_BRIDGE, TABLE, name, key, comment)


def _delete(name: str, key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_BRIDGE, TABLE, name, key)


def _rule_present(netfilter: NetfilterSocket) -> bool:
    rules = nfnetlink.rules(netfilter, NFPROTO_BRIDGE, TABLE, CHAIN)
    return any(rule.comment == _RULE_COMMENT for rule in rules)


def _present(netfilter: NetfilterSocket, name: str, key: bytes, owner: Owner) -> bool:
    found = nfnetlink.element(netfilter, NFPROTO_BRIDGE, TABLE, name, key)
    return found is not None and found.comment.startswith(owner.tag)


def _pairs_of(netfilter: NetfilterSocket, port: bytes) -> list[bytes]:
    found = nfnetlink.elements(netfilter, NFPROTO_BRIDGE, TABLE, ALLOWED)
    return [item.key for item in found if item.key.startswith(port)]


def _own(step: SpoofGuard, netfilter: NetfilterSocket, pair: bytes | None) -> list[NetlinkRequest]:
    """What deletes the owner's elements. Without the pair, the set is searched for its own."""
    port, owner = _port_key(step.host_link), step.owner
    requests = [_delete(PORTS, port)] if _present(netfilter, PORTS, port, owner) else []
    if pair is not None and _present(netfilter, ALLOWED, pair, owner):
        requests.append(_delete(ALLOWED, pair))
    else:
        requests += (
            _delete(ALLOWED, item.key)
            for item in nfnetlink.elements(netfilter, NFPROTO_BRIDGE, TABLE, ALLOWED, owner.tag)
            if item.comment.startswith(owner.tag)
        )
    return requests


# --- what the reference made ---------------------------------------------------------------------


def _reference_name(owner: Owner) -> str:
    return f"{owner.container_id}-{owner.ifname}"


def _reference_made(step: SpoofGuard, netfilter: NetfilterSocket) -> bool:
    chain = f"cni-br-iface-{_reference_name(step.owner)}-mac"
    return nfnetlink.chain_exists(netfilter, NFPROTO_BRIDGE, REFERENCE_TABLE, chain)


def _reference_leftovers(owner: Owner, netfilter: NetfilterSocket) -> list[NetlinkRequest]:
    name = _reference_name(owner)
    # The first jumps to the second.
    chains = [f"cni-br-iface-{name}", f"cni-br-iface-{name}-mac"]
    found = [
        chain
        for chain in chains
        if nfnetlink.chain_exists(netfilter, NFPROTO_BRIDGE, REFERENCE_TABLE, chain)
    ]
    if not found:
        return []
    jumps = nfnetlink.rules(netfilter, NFPROTO_BRIDGE, REFERENCE_TABLE, REFERENCE_CHAIN)
    return [
        *(
            nfnetlink.delete_rule(NFPROTO_BRIDGE, REFERENCE_TABLE, REFERENCE_CHAIN, rule.handle)
            for rule in jumps
            if rule.comment == f"macspoofchk-{name}"
        ),
        *(nfnetlink.delete_chain(NFPROTO_BRIDGE, REFERENCE_TABLE, chain) for chain in found),
    ]
