"""Rules that a feature needs once on a host, in chains of table `inet pycni`.

They are the same however many containers there are, so each is known by its comment, read over
netlink, and written with libnftables only where one is missing. Used by the steps that keep their
elements in nftables.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket

TABLE = "pycni"


class ConstantChain(Record):
    """A chain with its rules, each with the comment it is known by; without, others write them.

    hook: what stands in a base chain's braces, "" for a chain that others jump to.
    """

    name: str
    rules: Mapping[str, str]
    hook: str = ""


def set_up(
    netfilter: NetfilterSocket, declarations: Iterable[str], chains: Collection[ConstantChain]
) -> bool:
    """Make the chains that are not whole, after what they refer to. Raises NftError.

    declarations: the sets, maps and further chains, such as `map NAME { type ...; }`. One that no
    rule refers to may have been deleted, which an element's refusal shows; then they are looked
    for too. Returns whether there was anything to make.
    """
    broken = [chain for chain in chains if not _is_whole(netfilter, chain)]
    if not broken and not (netfilter.refused and missing(netfilter, declarations)):
        return False
    from pycni.kernel.netfilter import nftables

    commands = [f"add table inet {TABLE}"]
    for declaration in declarations:
        kind, _, rest = declaration.partition(" ")
        commands.append(f"add {kind} inet {TABLE} {rest}")
    for chain in broken:
        hook = f" {{ {chain.hook}; }}" if chain.hook else ""
        commands.append(f"add chain inet {TABLE} {chain.name}{hook}")
    for chain in broken:
        if not chain.rules:
            continue
        commands.append(f"flush chain inet {TABLE} {chain.name}")
        commands += (
            f'add rule inet {TABLE} {chain.name} {rule} comment "{comment}"'
            for comment, rule in chain.rules.items()
        )
    nftables.run("\n".join(commands))
    return True


def differences(
    netfilter: NetfilterSocket, chains: Iterable[ConstantChain], harm: str
) -> list[str]:
    """The rules that are missing, a sentence each. harm: what comes of a chain without any."""
    found = []
    for chain in chains:
        present = _comments(netfilter, chain)
        lacking = [comment for comment in chain.rules if comment not in present]
        place = f"nftables: chain inet {TABLE} {chain.name}"
        if present or not lacking:
            found += [f"{place} lacks the rule: {chain.rules[comment]}" for comment in lacking]
        elif _exists(netfilter, chain):
            found.append(f"{place} is empty: {harm}")
        else:
            found.append(f"{place} is not there: {harm}")
    return found


def missing(netfilter: NetfilterSocket, declarations: Iterable[str]) -> list[str]:
    """Those of the declarations whose set, map or chain is not there."""
    sets = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    found = []
    for declaration in declarations:
        kind, name, *_ = declaration.split()
        if kind == "chain":
            is_there = nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, name)
        else:
            is_there = name in sets
        if not is_there:
            found.append(declaration)
    return found


def _is_whole(netfilter: NetfilterSocket, chain: ConstantChain) -> bool:
    if chain.rules:
        return _comments(netfilter, chain).issuperset(chain.rules)
    return _exists(netfilter, chain)


def _comments(netfilter: NetfilterSocket, chain: ConstantChain) -> set[str]:
    """The comments of a chain's rules that are there."""
    found = nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, chain.name)
    return {rule.comment for rule in found}


def _exists(netfilter: NetfilterSocket, chain: ConstantChain) -> bool:
    return nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, chain.name)
