"""Port mappings with conditions, in nftables: rules in a chain of the container's own.

The chain port-map-conditional jumps there if the conditions, words of nft, are met. This is the
one part of port mappings whose rules grow with the containers. Used by `port_map_nftables`.
"""

from __future__ import annotations

from pycni.kernel import constant_rules, nfnetlink
from pycni.kernel.constant_rules import TABLE, Chain
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.kernel.steps.port_map_layout import (
    CONDITIONAL,
    OWN,
    TAG_LENGTH,
    applicable,
    conditional,
    conditions,
    host_address,
)
from pycni.spec.errors import INVALID_CONFIG, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket, Rule
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPNetwork
    from pycni.spec.owner import Owner


def apply(step: PortMap, netfilter: NetfilterSocket) -> bool:
    """Write the rules of a step's mappings with conditions; returns whether there are any."""
    networks = conditional(step)
    if not networks:
        return False
    from pycni.kernel import nftables

    commands = []
    for network in networks:
        chain = OWN[network.family] + step.owner.tag
        words = " ".join(conditions(step, network.family))
        commands += [
            f"delete rule inet {TABLE} {CONDITIONAL} handle {rule.handle}"
            for rule in _jumps(netfilter)
            if rule.chain == chain
        ]
        commands += [f"add chain inet {TABLE} {chain}", f"flush chain inet {TABLE} {chain}"]
        commands += [
            f'add rule inet {TABLE} {chain} {rule} comment "{comment}"'
            for comment, rule in _rules(step, network).items()
        ]
        version = "ipv4" if network.is_ipv4 else "ipv6"
        commands.append(
            f"add rule inet {TABLE} {CONDITIONAL} meta nfproto {version} {words}"
            f' jump {chain} comment "{step.owner.comment}"'
        )
    try:
        nftables.run("\n".join(commands))
    except nftables.NftError as error:
        raise CNIError(
            INVALID_CONFIG,
            f"nftables refuses the conditions: {error.text}",
            'see "conditionsV4" and "conditionsV6": the words of an nft match, in order',
        ) from error
    return True


def check(step: PortMap, netfilter: NetfilterSocket) -> list[str]:
    """What is not as `apply` leaves it, a sentence each."""
    differences = []
    for network in conditional(step):
        chain = OWN[network.family] + step.owner.tag
        differences += constant_rules.differences(
            netfilter, [Chain(chain, _rules(step, network))], "no port leads to the container"
        )
        if not any(rule.chain == chain for rule in _jumps(netfilter)):
            differences.append(
                f"nftables: chain inet {TABLE} {CONDITIONAL} lacks the rule that jumps to {chain}"
            )
    return differences


def leftovers(owner: Owner, netfilter: NetfilterSocket) -> list[Request]:
    """What deletes the owner's own chains and the jumps to them."""
    requests: list[Request] = []
    for prefix in OWN.values():
        if nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, prefix + owner.tag):
            requests += _delete(prefix + owner.tag, netfilter)
    return requests


def stale(is_stale: Callable[[str], bool], netfilter: NetfilterSocket) -> list[Request]:
    """The same for all owners whose tag is stale."""
    requests: list[Request] = []
    for chain in {rule.chain for rule in _jumps(netfilter)}:
        if is_stale(chain[-TAG_LENGTH:]):
            requests += _delete(chain, netfilter)
    return requests


def _rules(step: PortMap, network: IPNetwork) -> dict[str, str]:
    """The rules of a container's own chain, each with the comment it is known by."""
    protocol = "ip" if network.is_ipv4 else "ip6"
    target = f"{network.address}" if network.is_ipv4 else f"[{network.address}]"
    rules = {}
    for mapping in applicable(step, network.family):
        host = host_address(mapping)
        match = "" if host is None else f"{protocol} daddr {host} "
        match += f"{mapping.protocol} dport {mapping.host_port}"
        rules[match] = f"{match} dnat {protocol} to {target}:{mapping.container_port}"
    return rules


def _jumps(netfilter: NetfilterSocket) -> list[Rule]:
    return nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, CONDITIONAL)


def _delete(chain: str, netfilter: NetfilterSocket) -> list[Request]:
    return [
        *(
            nfnetlink.delete_rule(NFPROTO_INET, TABLE, CONDITIONAL, rule.handle)
            for rule in _jumps(netfilter)
            if rule.chain == chain
        ),
        nfnetlink.delete_chain(NFPROTO_INET, TABLE, chain),
    ]
