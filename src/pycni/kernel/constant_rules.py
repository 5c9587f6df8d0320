"""Rules that a feature needs once on a host, in chains of table `inet pycni`.

They are the same however many containers there are, so each is known by its comment, read over
netlink, and written with libnftables only where one is missing. Used by the steps that keep their
elements in nftables.
"""

from __future__ import annotations

import errno

from pycni.kernel import nfnetlink
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pycni.kernel.nfnetlink import NetfilterSocket

TABLE = "pycni"


class Chain(Record):
    """A chain with its rules, each with the comment it is known by; without, others write them.

    hook: what stands in a base chain's braces, "" for a chain that others jump to.
    """

    name: str
    rules: Mapping[str, str]
    hook: str = ""


def set_up(
    netfilter: NetfilterSocket, declarations: Iterable[str], chains: Collection[Chain]
) -> bool:
    """Make the chains that are not whole, after what they refer to. Raises NftError.

    Returns whether there were any.

    declarations: the sets, maps and further chains, such as `map NAME { type ...; }`.
    """
    broken = [
        chain
        for chain in chains
        if (_lacking(netfilter, chain) if chain.rules else not _exists(netfilter, chain))
    ]
    if not broken:
        return False
    from pycni.kernel import nftables

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


def differences(netfilter: NetfilterSocket, chains: Iterable[Chain], harm: str) -> list[str]:
    """The rules that are missing, a sentence each. harm: what comes of a chain without any."""
    found = []
    for chain in chains:
        lacking = _lacking(netfilter, chain)
        place = f"nftables: chain inet {TABLE} {chain.name}"
        if len(lacking) < len(chain.rules):
            found += [f"{place} lacks the rule: {chain.rules[comment]}" for comment in lacking]
        elif _exists(netfilter, chain):
            found.append(f"{place} is empty: {harm}")
        else:
            found.append(f"{place} is not there: {harm}")
    return found


def delete_unused(
    netfilter: NetfilterSocket, prefix: str, maps: Iterable[str], keep: str = ""
) -> None:
    """Delete the chains with a prefix, but for `keep`, that no element of these maps goes to.

    An ADD that finds its chain gone makes it again, see `NetfilterSocket.update`.
    """
    used = {
        item.chain
        for name in maps
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name)
    }
    used.add(keep)
    for chain in nfnetlink.chains(netfilter, NFPROTO_INET, TABLE):
        if chain.startswith(prefix) and chain not in used:
            try:
                netfilter.commit([nfnetlink.delete_chain(NFPROTO_INET, TABLE, chain)])
            except OSError as error:
                # An element came, or another collection was faster.
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise


def _lacking(netfilter: NetfilterSocket, chain: Chain) -> list[str]:
    """The comments of the chain's rules that are not there."""
    found = nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, chain.name)
    present = {rule.comment for rule in found}
    return [comment for comment in chain.rules if comment not in present]


def _exists(netfilter: NetfilterSocket, chain: Chain) -> bool:
    return nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, chain.name)
