"""What port mappings are in iptables: the reference's chains and rules as text. No I/O.

A rule for the host's own addresses is what the reference has not: ::1 and link-local addresses are
left to the host.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import iptables
from pycni.kernel.netfilter.nat_rules import RETURN
from pycni.steps.port_map.layout import DNAT, NOT_FOR_ALL, applicable, conditions, host_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPNetwork
    from pycni.spec.owner import Owner

    Block = tuple[str, tuple[int, ...]]  # a protocol, and ports that one rule matches

OWN = "CNI-DN-"
OLD_OWN = "CNI-SN-"  # of early releases of the reference
OLD_SNAT = "CNI-HOSTPORT-SNAT"  # what led there
MARK = "CNI-HOSTPORT-SETMARK"
MASQUERADE = "CNI-HOSTPORT-MASQ"

PORTS_OF_A_RULE = 15  # that the multiport match takes

ENTRY = f"-A {DNAT} "
PREFIX = "dnat "  # of the comments of what leads to a container's chain
_ANYWHERE = {AF_INET: "0.0.0.0/0", AF_INET6: "::/0"}


def own_chain(owner: Owner) -> str:
    """The chain of the owner's container."""
    return owner.chain(OWN)


def shared(step: PortMap) -> tuple[list[str], list[str]]:
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


def own_rules(step: PortMap, network: IPNetwork) -> list[str]:
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
        if family == AF_INET6 and host is None:
            rules += [f"{chain} -d {own} {match} -j {RETURN}" for own in NOT_FOR_ALL]
        if step.snat:
            rules += [
                f"{chain} {_source(source)}{match} -j {step.mark_chain or MARK}"
                for source in sources
            ]
        rules.append(f"{chain} {match} -j DNAT --to-destination {target}:{mapping.container_port}")
    return rules


def is_exempting(line: str) -> bool:
    """Whether a rule leaves packets to the host."""
    return line.endswith(f" -j {RETURN}")


def _source(source: str) -> str:
    return "" if source in _ANYWHERE.values() else f"-s {source} "


def entries(step: PortMap, network: IPNetwork) -> list[str]:
    """The rules that lead to the container's own chain."""
    words = "".join(f"{iptables.quoted(word)} " for word in conditions(step, network.family))
    owner = step.owner
    text = owner.iptables_comment_after(PREFIX)
    return [
        f"{ENTRY}-p {protocol} {iptables.comment(text)} -m multiport --dports {ports} {words}"
        f"-j {own_chain(owner)}"
        for protocol, ports in map(text_of, blocks(step))
    ]


def text_of(block: Block) -> tuple[str, str]:
    return block[0], ",".join(map(str, block[1]))


def blocks(step: PortMap) -> list[Block]:
    """The host's ports by protocol, as many together as fit into a rule."""
    blocks: list[Block] = []
    for protocol in sorted({mapping.protocol for mapping in step.mappings}):
        ports = [mapping.host_port for mapping in step.mappings if mapping.protocol == protocol]
        blocks += [
            (protocol, tuple(ports[first : first + PORTS_OF_A_RULE]))
            for first in range(0, len(ports), PORTS_OF_A_RULE)
        ]
    return blocks
