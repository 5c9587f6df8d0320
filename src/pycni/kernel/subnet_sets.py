"""Sets of table `inet pycni` that say who is masqueraded: one per subnet, with a rule of its own.

    set masquerade-10.1.0.0/24 { 10.1.0.2 comment "<owner>" }
    chain masquerade-postrouting { ip saddr @masquerade-10.1.0.0/24 ... comment "10.1.0.0/24" }

One map for all subnets, whose elements go to chains, would do as well, but grow with the host: at
each change that adds such an element the kernel checks all there are. A plain set it does not.

- A key is in one set of a feature: who enters it takes it out of those of other subnets.
- Rules stand in any order, so one that is missing is appended. Two ADDs at once may both do that:
  the second rule does no harm, and goes when one of them looks for what is not used.
- A set goes together with its rule, and not if it has got a member meanwhile. An ADD that finds its
  set gone makes it again, see `NetfilterSocket.update`.

Used by the steps `masquerade` and `port_map`, which say what the members and the rules are.
"""

from __future__ import annotations

from pycni.kernel import constant_rules, nfnetlink
from pycni.kernel.constant_rules import TABLE, Chain
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import Element, NetfilterSocket
    from pycni.spec.ip import IPNetwork

_HOOK = "type nat hook postrouting priority srcnat"


class Feature(Record):
    """The sets of a feature, and the base chain of their rules.

    prefix: of the sets' names, before the subnet. types, rules: by the subnet's family, in nft's
    words; a rule has {set} and {subnet} to be filled in.
    """

    prefix: str
    chain: str
    types: Mapping[int, str]
    rules: Mapping[int, str]


class Member(Record):
    """A key that is to be in the set of a subnet. text: what it stands for, for people."""

    subnet: IPNetwork
    key: bytes
    text: str


class Change(Record):
    """What `enter` finds to do: requests, the members they make, the subnets whose rule is new."""

    requests: list[Request]
    members: list[Member]
    fresh: list[str]


def set_name(feature: Feature, subnet: IPNetwork | str) -> str:
    """The name of a subnet's set. Names of sets may hold no colon."""
    return f"{feature.prefix}{subnet}".replace(":", "_")


def enter(
    netfilter: NetfilterSocket, feature: Feature, members: Collection[Member], comment: str
) -> Change:
    """What makes keys members, with this comment, of their sets and no others. Raises NftError.

    Rules and sets that are missing are made at once.
    """
    change = Change([], [], [])
    if not members:
        return change
    present = _subnets(netfilter, feature)
    missing = {str(one.subnet): one.subnet for one in members if str(one.subnet) not in present}
    if missing:
        _make(feature, missing.values())
        change.fresh.extend(missing)
    for member in members:
        own = set_name(feature, member.subnet)
        found = _find(netfilter, feature, member, present)
        if [*found] == [own] and found[own].comment == comment:
            continue
        # The lease is the caller's, so whoever had the address before is gone.
        change.requests.extend(_delete(name, member.key) for name in found)
        change.requests.append(nfnetlink.add_element(NFPROTO_INET, TABLE, own, member.key, comment))
        change.members.append(member)
    return change


def leave(
    netfilter: NetfilterSocket, feature: Feature, members: Iterable[Member], tag: str
) -> list[Request]:
    """What takes those keys out of their sets that are an owner's (its tag)."""
    places = [(set_name(feature, member.subnet), member.key) for member in members]
    return [
        _delete(name, key)
        for name, key in places
        if (found := nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key))
        and found.comment.startswith(tag)
    ]


def elements(
    netfilter: NetfilterSocket, names: Iterable[str], tag: str
) -> list[tuple[str, Element]]:
    """The elements of these sets whose comment contains a tag, each with its set's name."""
    return [
        (name, item)
        for name in names
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
    ]


def sets(netfilter: NetfilterSocket, feature: Feature) -> list[str]:
    """The names of a feature's sets, whether or not they have their rule."""
    found = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    return [name for name in found if name.startswith(feature.prefix)]


def differences(
    netfilter: NetfilterSocket,
    feature: Feature,
    members: Collection[Member],
    is_own: Callable[[Element], bool],
    harm: str,
) -> list[str]:
    """What is not as `enter` leaves it, a sentence each.

    is_own: whether an element is the caller's. harm: see `constant_rules`.
    """
    if not members:
        return []
    rules = {str(member.subnet): _rule(feature, member.subnet) for member in members}
    told = constant_rules.differences(netfilter, [Chain(feature.chain, rules)], harm)
    present = _subnets(netfilter, feature)
    for member in members:
        own = set_name(feature, member.subnet)
        found = _find(netfilter, feature, member, present)
        if not found:
            told.append(f"nftables: {member.text} is not in set inet {TABLE} {own}")
        for name, item in found.items():
            place = f"nftables: {member.text} in set inet {TABLE} {name}"
            if not is_own(item):
                told.append(f"{place} belongs to another attachment: {item.comment}")
            elif name != own:
                told.append(f"{place} should be in {own}")
    return told


def delete_unused(netfilter: NetfilterSocket, feature: Feature) -> None:
    """Delete the sets that have no members, with their rules."""
    _delete_unused(netfilter, feature, sets(netfilter, feature))


def discard(netfilter: NetfilterSocket, feature: Feature, subnets: Iterable[str]) -> None:
    """Take fresh sets away, and the chain and the table made for them, unless others use them."""
    names = [set_name(feature, subnet) for subnet in subnets]
    if not names:
        return
    _delete_unused(netfilter, feature, names)
    if not nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, feature.chain):
        chain = nfnetlink.delete_chain(NFPROTO_INET, TABLE, feature.chain, empty=True)
        nfnetlink.discard(netfilter, chain)
        nfnetlink.discard(netfilter, nfnetlink.delete_table(NFPROTO_INET, TABLE))


def _delete_unused(netfilter: NetfilterSocket, feature: Feature, names: Iterable[str]) -> None:
    rules = nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, feature.chain)
    for name in names:
        unused = [
            nfnetlink.delete_rule(NFPROTO_INET, TABLE, feature.chain, rule.handle)
            for rule in rules
            if set_name(feature, rule.comment) == name
        ]
        if nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name):
            del unused[:1]
        else:
            unused.append(nfnetlink.delete_set(NFPROTO_INET, TABLE, name))
        if unused:
            nfnetlink.discard(netfilter, *unused)


def _make(feature: Feature, subnets: Iterable[IPNetwork]) -> None:
    from pycni.kernel import nftables

    commands = [
        f"add table inet {TABLE}",
        f"add chain inet {TABLE} {feature.chain} {{ {_HOOK}; }}",
    ]
    for subnet in subnets:
        name, kind = set_name(feature, subnet), feature.types[subnet.family]
        commands += [
            f"add set inet {TABLE} {name} {{ type {kind}; }}",
            f'add rule inet {TABLE} {feature.chain} {_rule(feature, subnet)} comment "{subnet}"',
        ]
    nftables.run("\n".join(commands))


def _rule(feature: Feature, subnet: IPNetwork) -> str:
    template = feature.rules[subnet.family]
    return template.format(set=set_name(feature, subnet), subnet=subnet)


def _subnets(netfilter: NetfilterSocket, feature: Feature) -> list[str]:
    """The subnets that have a rule: the rules' comments."""
    found = nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, feature.chain)
    return [rule.comment for rule in found]


def _find(
    netfilter: NetfilterSocket, feature: Feature, member: Member, present: Iterable[str]
) -> dict[str, Element]:
    """The elements with a member's key, by set: its own set, and those of the subnets present."""
    others = (subnet for subnet in present if (":" in subnet) != member.subnet.is_ipv4)
    names = [set_name(feature, member.subnet), *(set_name(feature, subnet) for subnet in others)]
    return {
        name: found
        for name in dict.fromkeys(names)
        if (found := nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, member.key))
    }


def _delete(name: str, key: bytes) -> Request:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)
