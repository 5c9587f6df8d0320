"""Firewall: the host forwards what containers send, and the answers (`plan.steps.Firewall`).

Which backend counts depends on who decides on this host, see `chosen`: rules in iptables, for each
container or for a set of them; a source of a zone of firewalld; or the chain `firewall-forward` of
table `inet pycni`. Whichever it is, the sets firewall4 and firewall6 there, where the host has
nftables, say who has each address:

    set firewall4 { 10.1.0.2 comment "<owner>" }

By them DEL needs no addresses, spares an address that another container has by now, and GC knows
what is stale. Rules of the reference name no owner.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6

from pycni.kernel import constant_rules, nfnetlink
from pycni.kernel.constant_rules import TABLE, Chain
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.spec.errors import INVALID_ENVIRONMENT, CNIError
from pycni.spec.ip import IPAddress
from pycni.spec.owner import Owner, network_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Firewall
    from pycni.spec.config import Attachment

SETS = {AF_INET: "firewall4", AF_INET6: "firewall6"}
BRIDGES = "firewall-bridges"
PAIRS = "firewall-pairs"
ADMIN = "firewall-admin"
FORWARD = "firewall-forward"

TAG_LENGTH = 33

DECLARATIONS = (
    f"set {SETS[AF_INET]} {{ type ipv4_addr; }}",
    f"set {SETS[AF_INET6]} {{ type ipv6_addr; }}",
    f"set {BRIDGES} {{ type ifname; }}",
    f"set {PAIRS} {{ type ifname . ifname; }}",
    f"chain {ADMIN}",
)
REGISTRY = Chain(ADMIN, {})  # is there when the sets are
CHAIN = Chain(
    FORWARD,
    {
        "of the administrator": f"jump {ADMIN}",
        "ingressPolicy": f"iifname @{BRIDGES} oifname @{BRIDGES}"
        f" iifname . oifname != @{PAIRS} drop",
        "answers IPv4": f"ip daddr @{SETS[AF_INET]} ct state established,related accept",
        "answers IPv6": f"ip6 daddr @{SETS[AF_INET6]} ct state established,related accept",
        "containers IPv4": f"ip saddr @{SETS[AF_INET]} accept",
        "containers IPv6": f"ip6 saddr @{SETS[AF_INET6]} accept",
    },
    "type filter hook forward priority filter",
)


def chosen(backend: str, families: Collection[int], netfilter: NetfilterSocket) -> str:
    """The backend named, or the one whose word counts on this host; "ipset" is one of iptables.

    firewalld rejects what it does not know, whatever other tables accept; so does a policy of
    iptables, which docker and others set to DROP. nftables is left where neither is there.
    """
    if backend:
        return backend
    from pycni.kernel import firewalld, iptables

    if firewalld.is_active(netfilter):
        return "firewalld"
    if not all(map(iptables.available, families)):
        return "nftables"
    from pycni.kernel.steps import firewall_ipset

    return "ipset" if firewall_ipset.is_usable(netfilter, families) else "iptables"


def apply(step: Firewall, kernel: Kernel) -> Undo | None:
    if not step.addresses:
        return None
    netfilter = kernel.host.netfilter
    backend = chosen(step.backend, families_of(step), netfilter)
    done: list[Undo] = []

    def undo() -> None:
        while done:
            done.pop()()

    try:
        registered = register(step, netfilter, filters=backend == "nftables")
        if registered is not None:
            done.append(registered)
        if backend == "iptables":
            from pycni.kernel.steps import firewall_iptables

            done += firewall_iptables.apply(step, netfilter, fresh=registered is not None)
        elif backend == "ipset":
            done += apply_sets(step, netfilter)
        elif backend == "firewalld":
            done += apply_firewalld(step)
    except (OSError, CNIError):
        undo()
        raise
    return undo


def apply_sets(step: Firewall, netfilter: NetfilterSocket) -> list[Undo]:
    """Let the addresses through by sets of iptables. Returns how to undo it."""
    from pycni.kernel.iptables import IPTablesError
    from pycni.kernel.steps import firewall_ipset, firewall_iptables

    try:
        return [*firewall_ipset.apply(step, netfilter)]
    except IPTablesError:
        # The program lacks the match, or the right to look for a set (CAP_NET_RAW).
        return [*firewall_iptables.apply(step, netfilter, fresh=False)]


def check(step: Firewall, kernel: Kernel) -> list[str]:
    """What keeps the host from forwarding; the sets count for backend nftables only."""
    if not step.addresses:
        return []
    netfilter = kernel.host.netfilter
    backend = chosen(step.backend, families_of(step), netfilter)
    if backend == "iptables":
        from pycni.kernel.steps import firewall_iptables

        return firewall_iptables.check(step)
    if backend == "ipset":
        from pycni.kernel.steps import firewall_ipset, firewall_iptables

        differences = firewall_ipset.check(step, netfilter)
        # Rules of the reference's do as well.
        return differences if differences and firewall_iptables.check(step) else []
    if backend == "firewalld":
        return _check_firewalld(step)
    differences = constant_rules.differences(netfilter, [CHAIN], "no container is let through")
    for address in step.addresses:
        name = SETS[address.family]
        found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, address.packed)
        if found is None:
            differences.append(f"nftables: {address} is not in set inet {TABLE} {name}")
        elif not found.comment.startswith(step.owner.tag):
            differences.append(
                f"nftables: {address} in set inet {TABLE} {name} belongs to another attachment:"
                f" {found.comment}"
            )
    return differences


def remove(step: Firewall, kernel: Kernel) -> None:
    """Remove what lets the owner's addresses through, whichever backend made it."""
    netfilter = kernel.host.netfilter
    tag = step.owner.tag
    others = {
        address
        for address in step.addresses
        if (comment := _comment(address, netfilter)) and not comment.startswith(tag)
    }
    known = _registered(netfilter, lambda comment: comment.startswith(tag), tag)
    addresses = {*step.addresses, *known} - others
    _close(addresses, step.zone if step.backend in ("", "firewalld") else "", netfilter)
    _unregister(netfilter, lambda comment: comment.startswith(tag), tag)


def collect(kernel: Kernel, network: str, keep: Collection[Attachment]) -> None:
    """Remove what lets addresses through that the sets give to attachments not to be kept."""
    netfilter = kernel.host.netfilter
    tag = network_tag(network)
    kept = {Owner(network, item.container_id, item.ifname).tag for item in keep}

    def stale(comment: str) -> bool:
        return comment.startswith(f"{tag}-") and comment[:TAG_LENGTH] not in kept

    addresses = _registered(netfilter, stale, tag)
    if addresses:
        _close(addresses, ANY_ZONE, netfilter)
        _unregister(netfilter, stale, tag)


ANY_ZONE = "*"


def families_of(step: Firewall) -> set[int]:
    """The families (AF_INET, AF_INET6) of the addresses."""
    return {address.family for address in step.addresses}


def _close(addresses: Collection[IPAddress], zone: str, netfilter: NetfilterSocket) -> None:
    """Let addresses through no longer. zone: of firewalld, ANY_ZONE, or "" to leave that alone."""
    from pycni.kernel import firewalld
    from pycni.kernel.steps import firewall_ipset, firewall_iptables

    firewall_ipset.remove(addresses, netfilter)
    firewall_iptables.remove(addresses, netfilter)
    if not addresses or not zone or not firewalld.is_active(netfilter):
        return
    try:
        with firewalld.Firewalld() as connection:
            for address in addresses:
                source = _source(address)
                where = connection.zone_of(source) if zone == ANY_ZONE else zone
                if where:
                    connection.remove(where, source)
    except firewalld.FirewalldError as error:
        # Without the library nothing of ours is there.
        if error.errno != errno.ENOPKG:
            raise


# --- firewalld -----------------------------------------------------------------------------------


def _source(address: IPAddress) -> str:
    return f"{address}/{address.bits}"


def apply_firewalld(step: Firewall) -> list[Undo]:
    """Have firewalld trust the addresses. Returns how to undo it."""
    from pycni.kernel import firewalld

    added: list[str] = []

    def undo() -> None:
        with firewalld.Firewalld() as connection:
            for source in added:
                connection.remove(step.zone, source)

    try:
        with firewalld.Firewalld() as connection:
            for source in map(_source, step.addresses):
                if connection.add(step.zone, source):
                    added.append(source)  # noqa: PERF401 - also what a failure must take back
    except firewalld.FirewalldError as error:
        if added:
            undo()
        raise _explained(error, step) from error
    return [undo] if added else []


def _check_firewalld(step: Firewall) -> list[str]:
    from pycni.kernel import firewalld

    try:
        with firewalld.Firewalld() as connection:
            return [
                f"firewalld: {_source(address)} is not a source of zone {step.zone}"
                for address in step.addresses
                if not connection.has(step.zone, _source(address))
            ]
    except firewalld.FirewalldError as error:
        return [str(_explained(error, step))]


def _explained(error: OSError, step: Firewall) -> CNIError:
    hints = {
        errno.ENOPKG: 'install pycni[firewalld], or choose another "backend"',
        errno.ENOTCONN: 'start dbus and firewalld, or choose another "backend"',
    }
    return CNIError(
        INVALID_ENVIRONMENT,
        str(error),
        hints.get(error.errno or 0, f'firewalld must run, and have the zone "{step.zone}"'),
    )


# --- who has which address -----------------------------------------------------------------------


def register(step: Firewall, netfilter: NetfilterSocket, *, filters: bool) -> Undo | None:
    """Enter the addresses into the sets, in place of earlier owners. Returns how to undo it.

    filters: whether the sets are there to filter by. If not, a host may be without nftables.
    """
    made: list[IPAddress] = []

    def missing() -> list[Request]:
        constant_rules.set_up(netfilter, DECLARATIONS, [CHAIN if filters else REGISTRY])
        requests: list[Request] = []
        made.clear()
        for address in step.addresses:
            name, comment = SETS[address.family], _comment(address, netfilter)
            if comment == step.owner.comment:
                continue
            if comment:
                # The lease is ours, so whoever had the address before is gone.
                requests.append(_delete(address))
            made.append(address)
            requests.append(
                nfnetlink.add_element(NFPROTO_INET, TABLE, name, address.packed, step.owner.comment)
            )
        return requests

    try:
        netfilter.update(missing)
    except OSError as error:
        from pycni.kernel.nftables import NftError

        if filters or not isinstance(error, NftError) or error.errno == errno.EPERM:
            raise
        return None

    def undo() -> None:
        tag = step.owner.tag
        netfilter.update(
            lambda: [
                _delete(address) for address in made if _comment(address, netfilter).startswith(tag)
            ]
        )

    return undo if made else None


def _comment(address: IPAddress, netfilter: NetfilterSocket) -> str:
    """Who has an address: the comment of its element, "" without one."""
    name = SETS[address.family]
    found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, address.packed)
    return "" if found is None else found.comment or "?"


def _registered(
    netfilter: NetfilterSocket, wanted: Callable[[str], bool], tag: str
) -> list[IPAddress]:
    """The addresses whose comment contains a tag and is wanted."""
    return [
        IPAddress(item.key)
        for name in SETS.values()
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
        if wanted(item.comment)
    ]


def _unregister(netfilter: NetfilterSocket, wanted: Callable[[str], bool], tag: str) -> None:
    netfilter.update(lambda: [_delete(address) for address in _registered(netfilter, wanted, tag)])


def _delete(address: IPAddress) -> Request:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, SETS[address.family], address.packed)
