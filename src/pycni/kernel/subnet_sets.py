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
    from pycni.spec.owner import Owner

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


class Membership:
    """An owner's keys in the sets of their subnets, as they should be.

    made: the members that `missing` last asked for; fresh: the subnets whose rules it made. new:
    the keys are probably in no set yet, as a new container's; the kernel's refusal tells otherwise.
    """

    def __init__(
        self,
        netfilter: NetfilterSocket,
        feature: Feature,
        members: Collection[Member],
        owner: Owner,
        *,
        new: bool = False,
    ) -> None:
        self.made: list[Member] = []
        self.fresh: set[str] = set()
        self._new = new
        self._netfilter = netfilter
        self._feature = feature
        self._members = members
        self._owner = owner

    def missing(self) -> list[Request]:
        """What makes the keys members of their sets, and of no others. Raises NftError.

        Rules and sets that are missing are made at once.
        """
        new, self._new = self._new, False  # asked again, they were not: `NetfilterSocket.update`
        self.made.clear()
        if not self._members:
            return []
        feature, comment = self._feature, self._owner.comment
        present = self._subnets()
        missing = {
            str(one.subnet): one.subnet for one in self._members if str(one.subnet) not in present
        }
        if missing:
            _make(feature, missing.values())
            self.fresh.update(missing)
        requests: list[Request] = []
        for member in self._members:
            own = set_name(feature, member.subnet)
            found = self._find(member, present, own_too=not new)
            if [*found] == [own] and found[own].comment == comment:
                continue
            # The lease is the owner's, so whoever had the address before is gone.
            requests += (_delete(name, member.key) for name in found)
            requests.append(nfnetlink.add_element(NFPROTO_INET, TABLE, own, member.key, comment))
            self.made.append(member)
        return requests

    def leftovers(self) -> list[Request]:
        """What takes the keys out of their sets that are the owner's."""
        return self._deletions(self._members)

    def undone(self) -> list[Request]:
        """The same, of those keys that `missing` asked for."""
        return self._deletions(self.made)

    def discard_fresh(self) -> None:
        """Take away what `missing` made besides members, unless others use it by now."""
        if not self.fresh:
            return
        netfilter, feature = self._netfilter, self._feature
        _delete_unused(netfilter, feature, [set_name(feature, subnet) for subnet in self.fresh])
        if not nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, feature.chain):
            chain = nfnetlink.delete_chain(NFPROTO_INET, TABLE, feature.chain, empty=True)
            nfnetlink.discard(netfilter, chain)
            nfnetlink.discard(netfilter, nfnetlink.delete_table(NFPROTO_INET, TABLE))

    def collect_earlier(self) -> None:
        """When a subnet is new, delete the sets of earlier ones that are not used any more.

        So they do not pile up on a host whose runtime has no GC. DEL leaves a set to the next
        container of the subnet.
        """
        if self.fresh:
            try:
                delete_unused(self._netfilter, self._feature)
            except OSError:
                pass  # the next one will, or GC

    def differences(self, is_own: Callable[[Element], bool], harm: str) -> list[str]:
        """What is not as `missing` has it, a sentence each.

        is_own: whether an element is the owner's. harm: see `constant_rules`.
        """
        if not self._members:
            return []
        feature = self._feature
        rules = {str(member.subnet): _rule(feature, member.subnet) for member in self._members}
        told = constant_rules.differences(self._netfilter, [Chain(feature.chain, rules)], harm)
        present = self._subnets()
        for member in self._members:
            own = set_name(feature, member.subnet)
            found = self._find(member, present, own_too=True)
            if not found:
                told.append(f"nftables: {member.text} is not in set inet {TABLE} {own}")
            for name, item in found.items():
                place = f"nftables: {member.text} in set inet {TABLE} {name}"
                if not is_own(item):
                    told.append(f"{place} belongs to another attachment: {item.comment}")
                elif name != own:
                    told.append(f"{place} should be in {own}")
        return told

    def _deletions(self, members: Iterable[Member]) -> list[Request]:
        places = [(set_name(self._feature, member.subnet), member.key) for member in members]
        return [
            _delete(*place)
            for place in places
            if (found := _element(self._netfilter, *place)) is not None
            and found.comment.startswith(self._owner.tag)
        ]

    def _subnets(self) -> list[str]:
        """The subnets that have a rule: the rules' comments."""
        found = nfnetlink.rules(self._netfilter, NFPROTO_INET, TABLE, self._feature.chain)
        return [rule.comment for rule in found]

    def _find(self, member: Member, present: Iterable[str], *, own_too: bool) -> dict[str, Element]:
        """The elements with a member's key, by set: those of the subnets present, and its own."""
        own, found = str(member.subnet), {}
        for subnet in dict.fromkeys((own, *present)):
            same_family = (":" in subnet) != member.subnet.is_ipv4
            if not same_family or (subnet == own and not own_too):
                continue
            name = set_name(self._feature, subnet)
            element = _element(self._netfilter, name, member.key)
            if element is not None:
                found[name] = element
        return found


def set_name(feature: Feature, subnet: IPNetwork | str) -> str:
    """The name of a subnet's set. Names of sets may hold no colon."""
    return f"{feature.prefix}{subnet}".replace(":", "_")


def sets(netfilter: NetfilterSocket, feature: Feature) -> list[str]:
    """The names of a feature's sets, whether or not they have their rule."""
    found = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    return [name for name in found if name.startswith(feature.prefix)]


def delete_unused(netfilter: NetfilterSocket, feature: Feature) -> None:
    """Delete the sets that have no members, with their rules."""
    _delete_unused(netfilter, feature, sets(netfilter, feature))


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


def _element(netfilter: NetfilterSocket, name: str, key: bytes) -> Element | None:
    return nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key)


def _delete(name: str, key: bytes) -> Request:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)
