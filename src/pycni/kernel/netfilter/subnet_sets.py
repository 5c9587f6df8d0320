"""Sets of table `inet pycni` that say who is masqueraded: one per subnet, with a rule of its own.

    set masquerade-10.1.0.0/24 { 10.1.0.2 comment "<owner>" }
    chain masquerade-postrouting { ip saddr @masquerade-10.1.0.0/24 ... comment "10.1.0.0/24" }

One map for all subnets, whose elements go to chains, would do as well, but grow with the host: at
each change that adds such an element the kernel checks all there are. A plain set it does not.

- A key of an owner is in one set of a feature. An address that two networks gave out is both's:
  the second one waits beside the set, see `shared_elements`, or has it in another subnet's.
- Rules stand in any order, so one that is missing is appended. Two ADDs at once may both do that:
  the second rule does no harm, and goes when one of them looks for what is not used.
- A set goes together with its rules, and not if it has got a member meanwhile. An ADD that finds
  its set gone makes it again, see `NetfilterSocket.update`.

Used by the steps `masquerade` and `port_map`, which say what the members and the rules are.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import constant_rules, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE, ConstantChain
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pycni.kernel.netfilter.nfnetlink import Element, NetfilterSocket, Rule
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.spec.ip import IPNetwork
    from pycni.spec.owner import Owner

_HOOK = "type nat hook postrouting priority srcnat"


class Feature(Record):
    """The sets of a feature, and the chains of their rules.

    prefix: of the sets' names, before the subnet. types: of their keys, by the subnet's family, in
    nft's words. chain, rules: a base chain where packets leave, and a subnet's rule there, by
    family, with {set} and {subnet} to be filled in; mark_chain, mark_rules: the same of a chain
    that others jump to, "" for none. label: follows the subnet in the comments of rules, "" for
    none; rules whose comment lacks it are of an earlier release, and replaced.
    """

    prefix: str
    types: Mapping[int, str]
    chain: str
    rules: Mapping[int, str]
    mark_chain: str = ""
    mark_rules: Mapping[int, str] | None = None
    label: str = ""

    @property
    def chains(self) -> dict[str, Mapping[int, str]]:
        """The templates of a subnet's rules by chain."""
        chains = {self.chain: self.rules}
        return chains if self.mark_rules is None else {self.mark_chain: self.mark_rules, **chains}

    def comment(self, subnet: IPNetwork | str) -> str:
        """The comment that a subnet's rules are known by."""
        return f"{subnet} {self.label}".rstrip()


class Member(Record):
    """A key that is to be in the set of a subnet. text: what it stands for, for people."""

    subnet: IPNetwork
    key: bytes
    text: str


class Membership:
    """An owner's keys in the sets of their subnets, as they should be.

    made: the members that `missing` last asked for; replaced: those of them that were another's;
    fresh: the subnets whose rules it made. new: the keys are probably in no set yet, as a new
    container's; the kernel's refusal shows otherwise. is_attached: see
    `steps.context.HostAndSandbox`.
    """

    def __init__(
        self,
        netfilter: NetfilterSocket,
        feature: Feature,
        members: Collection[Member],
        owner: Owner,
        is_attached: Callable[[str], bool | None],
        *,
        new: bool = False,
    ) -> None:
        self.made: list[Member] = []
        self.replaced: list[Member] = []
        self.fresh: set[str] = set()
        self._waiting: list[Member] = []
        self._new = new
        self._netfilter = netfilter
        self._feature = feature
        self._members = members
        self._owner = owner
        self._is_attached = is_attached

    def missing(self, *, thorough: bool = False) -> list[NetlinkRequest]:
        """What makes the keys members of their sets. Raises NftError.

        Rules and sets that are missing are made at once. thorough: look for rules in each chain;
        they are made together, so an ADD looks in one.
        """
        new, self._new = self._new, False  # asked again, they were not: `NetfilterSocket.update`
        for record in (self.made, self.replaced, self._waiting):
            record.clear()
        if not self._members:
            return []
        present = self._have_rules(thorough)
        requests: list[NetlinkRequest] = []
        for member in self._members:
            own = set_name(self._feature, member.subnet)
            found = self._find(member, present, own_too=not new)
            requests += self._into_own_set(member, own, found.pop(own, None))
            for name, item in found.items():
                # It is of another subnet now, or was left by an earlier holder of the address.
                if self._is_stale(item) or self._owner.owns(item.comment):
                    requests += self._deletions(name, [item])
        return requests

    def renew(self) -> None:
        """Replace rules of an earlier release, of all subnets. Raises NftError."""
        self._have_rules(thorough=False)

    def leftovers(self) -> list[NetlinkRequest]:
        """What takes the keys out of their sets that are the owner's."""
        return self._leave(self._members)

    def undone(self) -> list[NetlinkRequest]:
        """The same, of those keys that `missing` asked for."""
        return self._leave([*self.made, *self._waiting])

    @property
    def has_changed(self) -> bool:
        """Whether `missing` asked for anything."""
        return bool(self.made or self._waiting or self.fresh)

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
        differences = constant_rules.differences(
            self._netfilter,
            [
                ConstantChain(
                    chain,
                    {
                        feature.comment(member.subnet): _rule(feature, chain, member.subnet)
                        for member in self._members
                    },
                )
                for chain in feature.chains
            ],
            harm,
        )
        present = [_subnet(rule) for rule in self._rules(feature.chain)]
        for member in self._members:
            own = set_name(feature, member.subnet)
            found = self._find(member, present, own_too=True)
            if own not in found and not any(is_own(item) for item in found.values()):
                differences.append(f"nftables: {member.text} is not in set inet {TABLE} {own}")
            for name, item in found.items():
                place = f"nftables: {member.text} in set inet {TABLE} {name}"
                if is_own(item):
                    is_right, fault = name == own, f"should be in {own}"
                else:
                    fault = f"belongs to another attachment: {item.comment}"
                    is_right = not self._is_stale(item) if name != own else self._is_waiting(member)
                if not is_right:
                    differences.append(f"{place} {fault}")
        return differences

    def _into_own_set(
        self, member: Member, name: str, found: Element | None
    ) -> list[NetlinkRequest]:
        """What makes a key a member of its set, or has the owner wait for it."""
        comment = self._owner.comment
        if found is not None and found.comment == comment:
            return []
        if found is not None and not self._owner.owns(found.comment):
            if not self._is_stale(found):
                if self._is_waiting(member):
                    return []
                from pycni.kernel.netfilter import shared_elements

                self._waiting.append(member)
                kind = self._feature.types[member.subnet.family]
                return [shared_elements.wait(name, kind, member.key, self._owner)]
            self.replaced.append(member)
        self.made.append(member)
        requests = [] if found is None else [_delete(name, member.key)]
        add = nfnetlink.add_element(NFPROTO_INET, TABLE, name, member.key, comment)
        return [*requests, add]

    def _is_stale(self, item: Element) -> bool:
        from pycni.kernel.netfilter import shared_elements

        return shared_elements.is_stale(item.comment, self._owner, self._is_attached)

    def _is_waiting(self, member: Member) -> bool:
        from pycni.kernel.netfilter import shared_elements

        name = set_name(self._feature, member.subnet)
        return shared_elements.is_waiting(self._netfilter, name, member.key, self._owner)

    def _leave(self, members: Iterable[Member]) -> list[NetlinkRequest]:
        keys: dict[str, list[bytes]] = {}
        for member in members:
            keys.setdefault(set_name(self._feature, member.subnet), []).append(member.key)
        requests: list[NetlinkRequest] = []
        for name, own in keys.items():
            elements = (_element(self._netfilter, name, key) for key in own)
            requests += self._deletions(
                name,
                [item for item in elements if item and self._owner.owns(item.comment)],
            )
        return requests

    def _deletions(self, name: str, items: Iterable[Element]) -> list[NetlinkRequest]:
        from pycni.kernel.netfilter import shared_elements

        return shared_elements.deletions(
            self._netfilter,
            name,
            items,
            self._owner.owns,
            self._is_attached,
        )

    def _rules(self, chain: str) -> list[Rule]:
        return nfnetlink.rules(self._netfilter, NFPROTO_INET, TABLE, chain)

    def _have_rules(self, thorough: bool) -> list[str]:
        """Make rules and sets that are missing. Returns the subnets that had a rule before."""
        feature = self._feature
        rules = self._rules(feature.chain)
        subnets = [_subnet(rule) for rule in rules]
        earlier = [rule for rule in rules if feature.label and rule.comment == _subnet(rule) != ""]
        present = {_subnet(rule) for rule in rules if rule not in earlier}
        if thorough and feature.mark_chain:
            present &= {_subnet(rule) for rule in self._rules(feature.mark_chain)}
        missing = [str(one.subnet) for one in self._members if str(one.subnet) not in present]
        self.fresh.update(missing)
        missing += [_subnet(rule) for rule in earlier if _subnet(rule) not in present]
        if missing:
            _make(feature, dict.fromkeys(missing))
        if earlier:
            nfnetlink.discard(
                self._netfilter,
                *(
                    nfnetlink.delete_rule(NFPROTO_INET, TABLE, feature.chain, rule.handle)
                    for rule in earlier
                ),
            )
        return subnets

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
    """The names of a feature's sets, whether or not they have their rule, and of those beside."""
    found = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    return [name for name in found if name.startswith(feature.prefix)]


def has_key(netfilter: NetfilterSocket, feature: Feature, key: bytes) -> bool:
    """Whether a key is in one of a feature's sets."""
    from pycni.kernel.netfilter import shared_elements

    return any(
        _element(netfilter, name, key) is not None
        for name in sets(netfilter, feature)
        if not shared_elements.is_waiting_set(name)
    )


def delete_unused(netfilter: NetfilterSocket, feature: Feature) -> None:
    """Delete the sets that have no members, with their rules."""
    from pycni.kernel.netfilter import shared_elements

    names = sets(netfilter, feature)
    shared_elements.delete_unused(netfilter, names)
    own = [name for name in names if not shared_elements.is_waiting_set(name)]
    _delete_unused(netfilter, feature, own)


def _delete_unused(netfilter: NetfilterSocket, feature: Feature, names: Iterable[str]) -> None:
    rules = {
        chain: nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, chain) for chain in feature.chains
    }
    for name in names:
        in_use = bool(nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name))
        unused = []
        for chain, present in rules.items():
            of_set = [rule for rule in present if set_name(feature, _subnet(rule)) == name]
            unused += [
                nfnetlink.delete_rule(NFPROTO_INET, TABLE, chain, rule.handle)
                for rule in (of_set[1:] if in_use else of_set)
            ]
        if not in_use:
            unused.append(nfnetlink.delete_set(NFPROTO_INET, TABLE, name))
        if unused:
            nfnetlink.discard(netfilter, *unused)


def _make(feature: Feature, subnets: Iterable[str]) -> None:
    from pycni.kernel.netfilter import nftables

    commands = [
        f"add table inet {TABLE}",
        f"add chain inet {TABLE} {feature.chain} {{ {_HOOK}; }}",
    ]
    if feature.mark_chain:
        commands.append(f"add chain inet {TABLE} {feature.mark_chain}")
    for subnet in subnets:
        name, kind = set_name(feature, subnet), feature.types[_family(subnet)]
        commands.append(f"add set inet {TABLE} {name} {{ type {kind}; }}")
        commands += [
            f"add rule inet {TABLE} {chain} {_rule(feature, chain, subnet)}"
            f' comment "{feature.comment(subnet)}"'
            for chain in feature.chains
        ]
    nftables.run("\n".join(commands))


def _family(subnet: str) -> int:
    return AF_INET6 if ":" in subnet else AF_INET


def _subnet(rule: Rule) -> str:
    """The subnet that a rule is for, by its comment."""
    return rule.comment.partition(" ")[0]


def _rule(feature: Feature, chain: str, subnet: IPNetwork | str) -> str:
    template = feature.chains[chain][_family(str(subnet))]
    return template.format(set=set_name(feature, subnet), subnet=subnet)


def _element(netfilter: NetfilterSocket, name: str, key: bytes) -> Element | None:
    return nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key)


def _delete(name: str, key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)
