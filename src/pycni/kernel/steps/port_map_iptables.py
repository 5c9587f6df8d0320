"""The iptables backend of `port_map`: the chains and rules of the reference, in table `nat`.

PREROUTING and OUTPUT lead what is for the host to CNI-HOSTPORT-DNAT, whose rules lead to a chain
for each container of a network, named by a hash of both (the interface is not part of it). What
must be masqueraded is marked there, on its way to POSTROUTING.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import iptables, nfnetlink
from pycni.kernel.steps.port_map_layout import applicable, conditions, host_address
from pycni.spec.owner import Owner, containers_named
from pycni.spec.versions import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPNetwork

FAMILIES = (AF_INET, AF_INET6)
TABLE = "nat"
DNAT = "CNI-HOSTPORT-DNAT"
MARK = "CNI-HOSTPORT-SETMARK"
MASQUERADE = "CNI-HOSTPORT-MASQ"
OLD_SNAT = "CNI-HOSTPORT-SNAT"  # of early releases of the reference

PORTS_OF_A_RULE = 15  # that the multiport match takes
COMMENT_LENGTH = 255

_ENTRY = f"-A {DNAT} "
_ANYWHERE = {AF_INET: "0.0.0.0/0", AF_INET6: "::/0"}


def apply(step: PortMap, netfilter: NetfilterSocket) -> Callable[[], None] | None:
    """Make the shared rules that are missing, and the container's own afresh."""
    made: list[tuple[int, list[str]]] = []

    def undo() -> None:
        for family, lines in made:
            iptables.undo(family, TABLE, lines)

    own = own_chain(step.owner)
    try:
        for network in step.addresses:
            family = network.family
            chains, shared = _shared(step)
            present = iptables.present(netfilter, family, TABLE, [*chains, own])
            mine = [*_own_rules(step, network), *_entries(step, network)]
            iptables.restore(
                family,
                TABLE,
                [
                    f":{own} - [0:0]",
                    *iptables.missing(present, chains, shared),
                    *(f"-D{line[2:]}" for line in present if iptables.jump_of(line) == own),
                    *mine,
                ],
            )
            made.append((family, [f":{own} - [0:0]", *mine]))
    except OSError:
        undo()
        raise
    return undo


def check(step: PortMap) -> list[str]:
    """The rules that are missing, a sentence each."""
    differences: list[str] = []
    for network in step.addresses:
        family = network.family
        present = {*iptables.save(family, TABLE), *iptables.legacy_lines(family, TABLE)}
        wanted = [*_shared(step)[1], *_own_rules(step, network)]
        lacking = [rule for rule in wanted if f"-A{rule[2:]}" not in present]
        # How conditions are printed is the program's choice, so the rest of the rule must do.
        entries = [line for line in present if iptables.jump_of(line) == own_chain(step.owner)]
        lacking += [
            f"{_ENTRY}-p {protocol} -m multiport --dports {ports} -j {own_chain(step.owner)}"
            for protocol, ports in _blocks(step)
            if not any(
                line.startswith(_ENTRY)
                and f" -p {protocol} " in line
                and f" --dports {ports} " in line
                for line in entries
            )
        ]
        program = "iptables" if family == AF_INET else "ip6tables"
        differences += (f"{program}: table {TABLE} lacks the rule: {rule}" for rule in lacking)
    return differences


def made(step: PortMap, netfilter: NetfilterSocket) -> bool:
    """Whether the owner's container has its chain."""
    return any(
        iptables.has_chain(netfilter, network.family, TABLE, own_chain(step.owner))
        for network in step.addresses
    )


def own_chain(owner: Owner) -> str:
    """The chain of the owner's container."""
    return owner.chain("CNI-DN-")


def leftovers(owner: Owner, netfilter: NetfilterSocket) -> list[Request]:
    """What deletes the owner's chains and the jumps to them, where iptables-nft keeps them."""
    return [
        request
        for family in FAMILIES
        for chain, caller in ((own_chain(owner), DNAT), (owner.chain("CNI-SN-"), OLD_SNAT))
        for request in iptables.removal(netfilter, family, TABLE, chain, [caller])
    ]


def remove_legacy(owner: Owner) -> None:
    """Delete the owner's chains and the jumps to them, where iptables-legacy keeps them."""
    for family in FAMILIES:
        iptables.remove_legacy(family, TABLE, [own_chain(owner), owner.chain("CNI-SN-")])


def stale(network: str, keep: Collection[str], netfilter: NetfilterSocket) -> list[Request]:
    """What deletes the network's chains of containers that are not kept (iptables-nft)."""
    requests: list[Request] = []
    for family in FAMILIES:
        comments = (rule.comment for rule in nfnetlink.rules(netfilter, family, TABLE, DNAT))
        for chain in sorted(_chains_of(comments, network, keep)):
            requests += iptables.removal(netfilter, family, TABLE, chain, [DNAT])
    return requests


def collect_legacy(network: str, keep: Collection[str]) -> None:
    """Delete the network's chains of containers that are not kept (iptables-legacy)."""
    iptables.collect_legacy(TABLE, lambda comments: _chains_of(comments, network, keep))


def _shared(step: PortMap) -> tuple[list[str], list[str]]:
    """The chains and rules that all containers share."""
    chains = [DNAT]
    rules = [
        f"-A {hook} -m addrtype --dst-type LOCAL -j {DNAT}" for hook in ("PREROUTING", "OUTPUT")
    ]
    if step.snat and not step.mark_chain:
        mark = f"{1 << step.mark_bit:#x}/{1 << step.mark_bit:#x}"
        comment = iptables.comment("CNI portfwd masquerade mark")
        masquerade = iptables.comment("CNI portfwd requiring masquerade")
        chains += [MARK, MASQUERADE]
        rules += [
            f"-A {MARK} {comment} -j MARK --set-xmark {mark}",
            f"-A {MASQUERADE} -m mark --mark {mark} -j MASQUERADE",
            # First, since the masquerading of bridge accepts what stays in its subnet.
            f"-I POSTROUTING {masquerade} -j {MASQUERADE}",
        ]
    return chains, rules


def _own_rules(step: PortMap, network: IPNetwork) -> list[str]:
    """The rules of the container's own chain."""
    family, target = network.family, str(network.address)
    sources = [_ANYWHERE[family] if step.masquerade_all else str(network.network)]
    if family == AF_INET and not step.masquerade_all:
        sources.append("127.0.0.1/32")
    if family == AF_INET6:
        target = f"[{target}]"
    chain = f"-A {own_chain(step.owner)}"
    rules = []
    for mapping in applicable(step, family):
        host, protocol = host_address(mapping), mapping.protocol
        match = "" if host is None else f"-d {host}/{host.bits} "
        match += f"-p {protocol} -m {protocol} --dport {mapping.host_port}"
        if step.snat:
            rules += [
                f"{chain} {_source(source)}{match} -j {step.mark_chain or MARK}"
                for source in sources
            ]
        rules.append(f"{chain} {match} -j DNAT --to-destination {target}:{mapping.container_port}")
    return rules


def _source(source: str) -> str:
    return "" if source in _ANYWHERE.values() else f"-s {source} "


def _entries(step: PortMap, network: IPNetwork) -> list[str]:
    """The rules that lead to the container's own chain."""
    words = "".join(f"{iptables.quoted(word)} " for word in conditions(step, network.family))
    owner = step.owner
    text = f"dnat name: {quote(owner.network)} id: {quote(owner.container_id)}"
    if len(text) > COMMENT_LENGTH:
        text = text[: COMMENT_LENGTH - 3] + "..."
    return [
        f"{_ENTRY}-p {protocol} {iptables.comment(text)} -m multiport --dports {ports} {words}"
        f"-j {own_chain(owner)}"
        for protocol, ports in _blocks(step)
    ]


def _blocks(step: PortMap) -> list[tuple[str, str]]:
    """The host's ports by protocol, as lists with commas that fit into a rule."""
    blocks = []
    for protocol in sorted({mapping.protocol for mapping in step.mappings}):
        ports = [
            str(mapping.host_port) for mapping in step.mappings if mapping.protocol == protocol
        ]
        blocks += [
            (protocol, ",".join(ports[first : first + PORTS_OF_A_RULE]))
            for first in range(0, len(ports), PORTS_OF_A_RULE)
        ]
    return blocks


def _chains_of(comments: Iterable[str], network: str, keep: Collection[str]) -> set[str]:
    """The chains of the containers, among those that comments name, that are not kept."""
    containers = containers_named(comments, network, "dnat ")
    return {own_chain(Owner(network, item, "")) for item in containers.difference(keep)}
