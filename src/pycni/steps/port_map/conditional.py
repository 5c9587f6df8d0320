"""Port mappings with conditions, in nftables: rules in a chain of the container's own.

The chain port-map-conditional jumps there if the conditions, words of nft, are met. This is the
one part of port mappings whose rules grow with the containers. Two containers share a port if their
conditions are not the same; which they are can be compared when both are rules. Used by
`nftables`.
"""

from __future__ import annotations

import errno

from pycni.kernel.netfilter import constant_rules, nfnetlink, shared_elements
from pycni.kernel.netfilter.constant_rules import TABLE, ConstantChain
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.kernel.netlink.codec import STRING, Schema
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.owner import names_in
from pycni.steps.ownership import is_same_container
from pycni.steps.port_map.layout import (
    CONDITIONAL,
    NOT_ANY6,
    OWN,
    applicable,
    conditional,
    conditions,
    host_address,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pycni.kernel.netfilter.nfnetlink import Expression, NetfilterSocket, Rule
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap, PortMapping
    from pycni.spec.ip import IPNetwork
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox
    from pycni.steps.port_map.held_port import HeldPort

_LOOKUP = Schema(set=(1, STRING))

# How nftables refuses words: by itself, or as the kernel knows nothing of that name or kind.
_ABOUT_INPUT = (errno.EIO, errno.ENOENT, errno.EOPNOTSUPP)


def apply(step: PortMap, kernel: HostAndSandbox) -> list[str] | None:
    """Write the rules of a step's mappings with conditions; None if there are no such mappings.

    Returns the chains that were not there before, for `deletions`. Raises CNIError if another
    container has one of the ports under the same conditions; these chains are then deleted.
    """
    networks = conditional(step)
    if not networks:
        return None
    netfilter = kernel.host.netfilter
    chains = {_chain(step, network): network for network in networks}
    before = [rule for rule in _jumps(netfilter) if rule.chain in chains]
    _write(step, networks, before, netfilter)
    known = {rule.chain for rule in before}
    new = {chain: network for chain, network in chains.items() if chain not in known}
    try:
        for network in new.values():
            _require_free(step, network, kernel)
    except BaseException:
        netfilter.update(lambda: deletions(new, netfilter))
        raise
    return [*new]


def _write(
    step: PortMap,
    networks: Sequence[IPNetwork],
    jumps: Sequence[Rule],
    netfilter: NetfilterSocket,
) -> None:
    """Write the rules in one transaction. jumps: what leads to their chains now.

    Raises NftError; CNIError (code 7) if it is the conditions that nftables refuses.
    """
    from pycni.kernel.netfilter import nftables

    try:
        nftables.run(_commands(step, networks, jumps))
    except nftables.NftError as error:
        if error.errno not in _ABOUT_INPUT:
            raise
        chains = {_chain(step, network) for network in networks}
        now = [rule for rule in _jumps(netfilter) if rule.chain in chains]
        if now != jumps:  # one that was to be replaced has gone
            _write(step, networks, now, netfilter)
            return
        raise CNIError(
            INVALID_CONFIG,
            f"nftables refuses the conditions: {error.text}",
            'see "conditionsV4" and "conditionsV6": the words of an nft match, in order',
        ) from error


def _commands(step: PortMap, networks: Iterable[IPNetwork], jumps: Iterable[Rule]) -> str:
    """The commands of nft that write the rules."""
    commands = []
    for network in networks:
        chain = _chain(step, network)
        words = " ".join(conditions(step, network.family))
        own = [rule.handle for rule in jumps if rule.chain == chain]
        # In its place, so that repair takes nothing from who came later.
        change = f"replace rule inet {TABLE} {CONDITIONAL} handle {own[0]}" if own else ""
        commands += [
            f"delete rule inet {TABLE} {CONDITIONAL} handle {handle}" for handle in own[1:]
        ]
        commands += [f"add chain inet {TABLE} {chain}", f"flush chain inet {TABLE} {chain}"]
        commands += [
            f'add rule inet {TABLE} {chain} {rule} comment "{comment}"'
            for comment, rule in _rules(step, network).items()
        ]
        version = "ipv4" if network.is_ipv4 else "ipv6"
        commands.append(
            f"{change or f'add rule inet {TABLE} {CONDITIONAL}'} meta nfproto {version} {words}"
            f' jump {chain} comment "{step.owner.comment}"'
        )
    return "\n".join(commands)


def check(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """What is not as `apply` leaves it, a sentence each."""
    netfilter = kernel.host.netfilter
    differences = []
    for network in conditional(step):
        chain = _chain(step, network)
        differences += constant_rules.differences(
            netfilter,
            [ConstantChain(chain, _rules(step, network))],
            "no port leads to the container",
        )
        if not any(rule.chain == chain for rule in _jumps(netfilter)):
            differences.append(
                f"nftables: chain inet {TABLE} {CONDITIONAL} lacks the rule that jumps to {chain}"
            )
        for mapping, held_port, _ in _held(step, network, kernel):
            from pycni.steps.port_map.held_port import port_of

            differences.append(f"{port_of(mapping, network.family)} is taken by {held_port}")
    return differences


def leftovers(owners: Owners, netfilter: NetfilterSocket) -> list[NetlinkRequest]:
    """What deletes the owners' own chains and the jumps to them."""
    listed = owners.listed
    if len(listed) == 1:
        return deletions((prefix + listed[0].tag for prefix in OWN.values()), netfilter)
    # By name: what jumps to one may have been deleted.
    jumps = _jumps(netfilter)
    return [
        request
        for chain in nfnetlink.chains(netfilter, NFPROTO_INET, TABLE)
        for prefix in OWN.values()
        if chain.startswith(prefix) and owners.includes(chain.removeprefix(prefix))
        for request in deletion(chain, jumps)
    ]


def deletions(chains: Iterable[str], netfilter: NetfilterSocket) -> list[NetlinkRequest]:
    """What deletes those of some containers' own chains that are there."""
    requests: list[NetlinkRequest] = []
    for chain in chains:
        if nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, chain):
            requests += deletion(chain, _jumps(netfilter))
    return requests


def _rules(step: PortMap, network: IPNetwork) -> dict[str, str]:
    """The rules of a container's own chain, each with the comment it is known by."""
    protocol = "ip" if network.is_ipv4 else "ip6"
    target = f"{network.address}" if network.is_ipv4 else f"[{network.address}]"
    rules = {}
    for mapping in applicable(step, network.family):
        host = host_address(mapping)
        if host is not None:
            match = f"{protocol} daddr {host} "
        else:
            match = "" if network.is_ipv4 else f"{NOT_ANY6} "
        match += f"{mapping.protocol} dport {mapping.host_port}"
        rules[match] = f"{match} dnat {protocol} to {target}:{mapping.container_port}"
    return rules


def _jumps(netfilter: NetfilterSocket) -> list[Rule]:
    return nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, CONDITIONAL)


def deletion(chain: str, jumps: Iterable[Rule]) -> list[NetlinkRequest]:
    """What deletes a container's own chain, and the rules that jump there."""
    return [
        *(
            nfnetlink.delete_rule(NFPROTO_INET, TABLE, CONDITIONAL, rule.handle)
            for rule in jumps
            if rule.chain == chain
        ),
        nfnetlink.delete_chain(NFPROTO_INET, TABLE, chain),
    ]


def _chain(step: PortMap, network: IPNetwork) -> str:
    return OWN[network.family] + step.owner.tag


# --- the same conditions -------------------------------------------------------------------------


def _require_free(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> None:
    """Raise CNIError if another container has a port; what one left that is gone is removed."""
    netfilter = kernel.host.netfilter
    stale = set()
    for mapping, held_port, jump in _held(step, network, kernel):
        if held_port.target != network.address or not shared_elements.is_stale(
            jump.comment, step.owner, kernel.is_attached
        ):
            from pycni.steps.port_map.held_port import port_of, taken

            raise taken(port_of(mapping, network.family), held_port)
        stale.add(jump.chain)
    netfilter.update(
        lambda: [request for chain in stale for request in deletion(chain, _jumps(netfilter))]
    )


def _held(
    step: PortMap, network: IPNetwork, kernel: HostAndSandbox
) -> Iterator[tuple[PortMapping, HeldPort, Rule]]:
    """The mappings that another container's rules leave nothing of, with the rule that jumps there.

    Those come first that were there first, under the same conditions. What is for one address
    leaves what is for all.
    """
    netfilter = kernel.host.netfilter
    found = nfnetlink.expressions(netfilter, NFPROTO_INET, TABLE, CONDITIONAL, (b"",))
    matches = [(rule, _match(netfilter, expressions)) for rule, _, expressions in found]
    chain = _chain(step, network)
    own = next((match for rule, match in matches if rule.chain == chain), None)
    for rule, match in matches:
        if rule.chain == chain:
            return
        if match != own or is_same_container(kernel, rule.comment, step.owner):
            continue
        for held_port in ports_of_chain(netfilter, network.family, rule.chain, rule.comment):
            for mapping in applicable(step, network.family):
                if held_port.covers(mapping) and held_port.host in (None, host_address(mapping)):
                    yield mapping, held_port, rule


def ports_of_chain(
    netfilter: NetfilterSocket, family: int, chain: str, comment: str
) -> list[HeldPort]:
    """What the chain of a container with conditions holds. comment: of the rule that jumps."""
    from pycni.kernel.netfilter import nat_rules
    from pycni.steps.port_map.held_port import HeldPort

    name, ifname, container = names_in(comment)
    rules = [
        nat_rules.parse_expressions(family, chain, rule.handle, expressions)
        for rule, _, expressions in nfnetlink.expressions(
            netfilter, NFPROTO_INET, TABLE, chain, (b"",)
        )
    ]
    return [
        HeldPort(
            rule.protocol, port, None if rule.destination is None else rule.destination.address,
            rule.target, rule.target_port, container, name, ifname,
        )
        for rule in rules
        for port in rule.ports
        if rule.target is not None
    ]  # fmt: skip


def _match(netfilter: NetfilterSocket, expressions: Iterable[Expression]) -> list[Expression]:
    """What a rule matches; sets without a name are said by what is in them."""
    match = []
    for name, data in expressions:
        if name in ("counter", "immediate"):
            continue
        where = _LOOKUP.decode(data).get("set", "") if name == "lookup" else ""
        content = data
        if where.startswith("__"):
            elements = nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, where)
            content = b"".join(sorted(item.key for item in elements))
        match.append((name, content))
    return match
