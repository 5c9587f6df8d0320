"""Masquerade: packets from containers to outside their subnet leave with the host's address.

nftables, table `inet pycni`: a packet costs three rules and a look-up, however many containers
there are. Each address is an element of a map that sends its packets to the chain of its subnet,
where what stays inside returns and the rest is masqueraded:

    map masquerade4 { 10.1.0.2 comment "<owner>" : goto masquerade-10.1.0.0/24 }
    chain masquerade-postrouting { multicast return; ip saddr vmap @masquerade4; ... }
    chain masquerade-10.1.0.0/24 { ip daddr 10.1.0.0/24 return; masquerade }

iptables, table `nat`, and the nftables table of the reference: as the reference makes them, so
that either can remove what the other made. Removing looks at all three. An ADD by nftables, the
usual case, does without the iptables half, which functions therefore import when they need it.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6

from pycni.kernel import nfnetlink
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.spec.owner import Owner, network_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pycni.kernel.context import Kernel
    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import Element, NetfilterSocket
    from pycni.plan.steps import Masquerade
    from pycni.spec.config import Attachment
    from pycni.spec.ip import IPNetwork

TABLE = "pycni"
PREFIX = "masquerade-"
POSTROUTING = f"{PREFIX}postrouting"
MAPS = {AF_INET: "masquerade4", AF_INET6: "masquerade6"}

REFERENCE_TABLE = "cni_plugins_masquerade"
REFERENCE_CHAIN = "masq_checks"

TAG_LENGTH = 33

# The constant rules, each with the comment it is known by.
_POSTROUTING_RULES = {
    "multicast IPv4": "ip daddr 224.0.0.0/4 return",
    "multicast IPv6": "ip6 daddr ff00::/8 return",
    "containers IPv4": "ip saddr vmap @masquerade4",
    "containers IPv6": "ip6 saddr vmap @masquerade6",
}


def apply(step: Masquerade, kernel: Kernel) -> Callable[[], None] | None:
    """Have the addresses masqueraded; an element of an address that was another's is replaced."""
    if not step.addresses:
        return None
    if step.backend != "iptables":
        try:
            return _apply_nftables(step, kernel.host.netfilter)
        except OSError as error:
            if step.backend or not _should_fall_back(step, error):
                raise
    from pycni.kernel.steps import masquerade_iptables

    return masquerade_iptables.apply(step, kernel.host.netfilter)


def _should_fall_back(step: Masquerade, error: OSError) -> bool:
    """Whether the host cannot do nftables, and can do iptables.

    A refusal by the library says so; one by netlink is about the step.
    """
    from pycni.kernel import iptables
    from pycni.kernel.nftables import NftError

    if not isinstance(error, NftError) or error.errno == errno.EPERM:
        return False
    return all(iptables.available(address.family) for address in step.addresses)


def check(step: Masquerade, kernel: Kernel) -> list[str]:
    """What keeps the addresses from being masqueraded."""
    netfilter = kernel.host.netfilter
    if not step.addresses:
        return []
    from pycni.kernel.steps import masquerade_iptables

    if step.backend != "iptables":
        differences = _check_nftables(step, netfilter)
        if not differences or _reference_made(step, netfilter):
            return []
        if step.backend or not masquerade_iptables.made_by_iptables(step, netfilter):
            return differences
    return masquerade_iptables.check(step)


def remove(step: Masquerade, kernel: Kernel) -> None:
    """Remove what masquerades for the owner, whichever backend, of ours or the reference, made it.

    Without addresses, whatever carries the owner's tag goes.
    """
    from pycni.kernel.steps import masquerade_iptables

    netfilter = kernel.host.netfilter
    owner = step.owner

    def left() -> list[Request]:
        return [
            *_elements_of(step, netfilter),
            *_reference_rules(netfilter, lambda comment: comment.startswith(owner.tag)),
            *masquerade_iptables.leftovers(owner, netfilter),
        ]

    netfilter.update(left)
    masquerade_iptables.remove_legacy(owner)


def collect(kernel: Kernel, network: str, keep: Collection[Attachment]) -> None:
    """Remove what masquerades for attachments of the network that are not kept.

    Afterwards no chain is left of a subnet without addresses.
    """
    from pycni.kernel.steps import masquerade_iptables

    netfilter = kernel.host.netfilter
    tag = network_tag(network)
    kept = {Owner(network, item.container_id, item.ifname).tag for item in keep}
    containers = {item.container_id for item in keep}

    def stale(comment: str) -> bool:
        return comment.startswith(f"{tag}-") and comment[:TAG_LENGTH] not in kept

    def left() -> list[Request]:
        return [
            *(
                nfnetlink.delete_element(NFPROTO_INET, TABLE, name, item.key)
                for name in MAPS.values()
                for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
                if stale(item.comment)
            ),
            *_reference_rules(netfilter, stale),
            *masquerade_iptables.stale(network, containers, netfilter),
        ]

    netfilter.update(left)
    masquerade_iptables.collect_legacy(network, containers)
    _collect_subnets(netfilter)


# --- nftables ------------------------------------------------------------------------------------


def subnet_chain(subnet: IPNetwork) -> str:
    """The chain of a subnet. Names of chains may hold no colon."""
    return f"{PREFIX}{str(subnet.network).replace(':', '_')}"


def _subnet_rules(subnet: IPNetwork) -> dict[str, str]:
    protocol = "ip" if subnet.is_ipv4 else "ip6"
    return {
        "own subnet": f"{protocol} daddr {subnet.network} return",
        "outside": "masquerade",
    }


def _apply_nftables(step: Masquerade, netfilter: NetfilterSocket) -> Callable[[], None] | None:
    made: list[tuple[str, bytes]] = []
    chains: list[str] = []

    def missing() -> list[Request]:
        chains.extend(_set_up(netfilter, step.addresses))
        requests = []
        made.clear()
        for network in step.addresses:
            name, key = MAPS[network.family], network.address.packed
            chain = subnet_chain(network)
            found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key)
            if found is not None:
                if found.comment == step.owner.comment and found.chain == chain:
                    continue
                # The lease is ours, so whoever had the address before is gone.
                requests.append(nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key))
            made.append((name, key))
            requests.append(
                nfnetlink.add_element(NFPROTO_INET, TABLE, name, key, step.owner.comment, chain)
            )
        return requests

    def undo() -> None:
        netfilter.update(
            lambda: [
                nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)
                for name, key in made
                if _is_owned(nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key), step)
            ]
        )
        _discard(netfilter, chains)

    try:
        netfilter.update(missing)
    except OSError:
        _discard(netfilter, chains)
        raise
    if chains:
        # Those of earlier subnets go when a new one comes, so that they do not pile up on a host
        # whose runtime has no GC. DEL leaves its own to the next container of the subnet.
        try:
            _collect_subnets(netfilter)
        except OSError:
            pass  # the next one will, or GC
    return undo if made else None


def _set_up(netfilter: NetfilterSocket, addresses: Collection[IPNetwork]) -> Collection[str]:
    """Make the table, the maps and the chains unless they are whole; return the chains made."""
    subnets = {subnet_chain(network): network.network for network in addresses}
    needed = {POSTROUTING: _POSTROUTING_RULES}
    needed.update((chain, _subnet_rules(subnet)) for chain, subnet in subnets.items())
    broken = {chain: rules for chain, rules in needed.items() if _lacking(netfilter, chain, rules)}
    if not broken:
        return ()
    from pycni.kernel import nftables

    commands = [
        f"add table inet {TABLE}",
        f"add map inet {TABLE} {MAPS[AF_INET]} {{ type ipv4_addr : verdict; }}",
        f"add map inet {TABLE} {MAPS[AF_INET6]} {{ type ipv6_addr : verdict; }}",
    ]
    for chain, rules in broken.items():
        hook = " { type nat hook postrouting priority srcnat; }" if chain == POSTROUTING else ""
        commands.append(f"add chain inet {TABLE} {chain}{hook}")
        commands.append(f"flush chain inet {TABLE} {chain}")
        commands += (
            f'add rule inet {TABLE} {chain} {rule} comment "{comment}"'
            for comment, rule in rules.items()
        )
    nftables.run("\n".join(commands))
    return broken


def _discard(netfilter: NetfilterSocket, chains: Collection[str]) -> None:
    """Take away chains, and the table and maps that came with them, unless others use them."""
    for chain in chains:
        if chain != POSTROUTING:
            nfnetlink.discard(netfilter, nfnetlink.delete_chain(NFPROTO_INET, TABLE, chain))
    if POSTROUTING in chains:
        nfnetlink.discard(
            netfilter,
            nfnetlink.delete_chain(NFPROTO_INET, TABLE, POSTROUTING),
            *(nfnetlink.delete_set(NFPROTO_INET, TABLE, name) for name in MAPS.values()),
        )
        nfnetlink.discard(netfilter, nfnetlink.delete_table(NFPROTO_INET, TABLE))


def _lacking(netfilter: NetfilterSocket, chain: str, rules: dict[str, str]) -> list[str]:
    """Of a chain's constant rules, the comments of those that are not there."""
    present = {rule.comment for rule in nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, chain)}
    return [comment for comment in rules if comment not in present]


def _is_owned(found: Element | None, step: Masquerade) -> bool:
    return found is not None and found.comment.startswith(step.owner.tag)


def _elements_of(step: Masquerade, netfilter: NetfilterSocket) -> list[Request]:
    """What deletes the owner's elements."""
    found: list[tuple[str, bytes]] = []
    if step.addresses:
        for network in step.addresses:
            name, key = MAPS[network.family], network.address.packed
            if _is_owned(nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key), step):
                found.append((name, key))
    else:
        found += (
            (name, item.key)
            for name in MAPS.values()
            for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, step.owner.tag)
            if _is_owned(item, step)
        )
    return [nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key) for name, key in found]


def _check_nftables(step: Masquerade, netfilter: NetfilterSocket) -> list[str]:
    differences = [
        f"nftables: {_inet(POSTROUTING)} lacks the rule: {_POSTROUTING_RULES[comment]}"
        for comment in _lacking(netfilter, POSTROUTING, _POSTROUTING_RULES)
    ]
    if len(differences) == len(_POSTROUTING_RULES):
        exists = nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, POSTROUTING)
        state = "is empty" if exists else "is not there"
        differences = [f"nftables: {_inet(POSTROUTING)} {state}: no container is masqueraded"]
    for network in step.addresses:
        chain = subnet_chain(network)
        rules = _subnet_rules(network)
        differences += (
            f"nftables: {_inet(chain)} lacks the rule: {rules[comment]}"
            for comment in _lacking(netfilter, chain, rules)
        )
        name, key = MAPS[network.family], network.address.packed
        found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key)
        if found is None:
            differences.append(f"nftables: {network.address} is not in map inet {TABLE} {name}")
        elif not _is_owned(found, step):
            differences.append(
                f"nftables: {network.address} in map inet {TABLE} {name} belongs to another"
                f" attachment: {found.comment}"
            )
        elif found.chain != chain:
            differences.append(
                f"nftables: {network.address} in map inet {TABLE} {name} goes to"
                f" {found.chain or 'nowhere'}, not to {chain}"
            )
    return differences


def _inet(chain: str) -> str:
    return f"chain inet {TABLE} {chain}"


def _collect_subnets(netfilter: NetfilterSocket) -> None:
    """Delete the chains of subnets that no address refers to."""
    from pycni.kernel import constant_rules

    constant_rules.delete_unused(netfilter, PREFIX, MAPS.values(), keep=POSTROUTING)


# --- the reference's nftables table --------------------------------------------------------------


def _reference_rules(netfilter: NetfilterSocket, matches: Callable[[str], bool]) -> list[Request]:
    return [
        nfnetlink.delete_rule(NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN, rule.handle)
        for rule in nfnetlink.rules(netfilter, NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN)
        if matches(rule.comment)
    ]


def _reference_made(step: Masquerade, netfilter: NetfilterSocket) -> bool:
    """Whether the reference's nftables table masquerades for the owner."""
    found = nfnetlink.rules(netfilter, NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN)
    owned = [rule for rule in found if rule.comment.startswith(step.owner.tag)]
    return len(owned) >= len(step.addresses)
