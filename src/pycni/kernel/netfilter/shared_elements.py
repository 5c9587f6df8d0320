"""Elements of table `inet pycni` that several attachments have a right to.

A key is in a set or map once, with one owner in its comment: a port of the host that a container
maps in two networks, or an address that two networks give out. Who has a right to it as well is
waits beside it, in a set that is made when first needed, whose keys end with the owner's tag:

    map port-map4 { tcp . 8080 comment "<owner>" : 10.1.0.2 . 80 }
    map port-map4-waiting { tcp . 8080 . <tag> comment "<another owner>" : 10.2.0.2 . 80 }

When the owner goes, another one that waits gets the element, in the same transaction. So such
elements are deleted by what `deletions` returns. Used by `subnet_sets` and the steps of port
mappings and of `firewall`.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.owner import network_tag, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netfilter.nfnetlink import Element, NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.spec.owner import Owner

_SUFFIX = "-waiting"
_TAG = "ipv6_addr"  # a type of as many bytes as a tag stands for
_TAG_SIZE = 16


def is_waiting_set(name: str) -> bool:
    """Whether a set is one of those beside others."""
    return name.endswith(_SUFFIX)


def is_stale(comment: str, owner: Owner, is_attached: Callable[[str], bool | None]) -> bool:
    """Whether who has an element, by its comment, has no right to its address any more.

    The owner has that now: within a network each address is given out once, and here that was to
    the owner. is_attached: see `steps.context.HostAndSandbox`.
    """
    tag = tag_of(comment)
    return not tag or tag.startswith(network_tag(owner.network)) or not is_attached(tag)


def waiting(netfilter: NetfilterSocket, name: str) -> list[tuple[bytes, Element]]:
    """Who waits beside a set: keys of the set, each with an element that names the owner."""
    found = nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name + _SUFFIX)
    return [(item.key[:-_TAG_SIZE], item) for item in found]


def is_waiting(netfilter: NetfilterSocket, name: str, key: bytes, owner: Owner) -> bool:
    """Whether an owner waits for an element of a set that another one has."""
    return _element(netfilter, name, key, owner) is not None


def wait(
    name: str, kind: str, key: bytes, owner: Owner, data: tuple[str, bytes] = ("", b"")
) -> NetlinkRequest:
    """What has an owner wait for an element of a set. Raises NftError.

    kind: the type of the set's keys; data: for a map, the type of its data, and what the element
    shall hold. The set beside it is made at once where it is missing.
    """
    from pycni.kernel.netfilter import nftables

    what, suffix = ("map", f" : {data[0]}") if data[0] else ("set", "")
    nftables.run(f"add {what} inet {TABLE} {name}{_SUFFIX} {{ type {kind} . {_TAG}{suffix}; }}")
    return nfnetlink.add_element(
        NFPROTO_INET, TABLE, name + _SUFFIX, key + _bytes(owner), owner.comment, data[1]
    )


def deletions(
    netfilter: NetfilterSocket,
    name: str,
    elements: Iterable[Element],
    goes: Callable[[str], bool],
    is_attached: Callable[[str], bool | None],
) -> list[NetlinkRequest]:
    """What deletes elements of a set or hands them on, and who waits beside it no longer.

    goes: whether an owner, by a comment, waits no longer; is_attached: which of those that stay
    come first, by their tags. Who is known to be gone gets nothing and waits no longer: what it
    would get may be another one's by now.
    """
    staying: dict[bytes, list[Element]] = {}
    requests: list[NetlinkRequest] = []
    for key, item in waiting(netfilter, name):
        if goes(item.comment):
            requests.append(_delete(name + _SUFFIX, item.key))
        else:
            staying.setdefault(key, []).append(item)
    for item in elements:
        requests.append(_delete(name, item.key))
        unknown: list[Element] = []
        heir = None
        for one in staying.pop(item.key, ()):
            state = is_attached(tag_of(one.comment))
            if state is None:
                unknown.append(one)
            elif not state:
                requests.append(_delete(name + _SUFFIX, one.key))
            elif heir is None:
                heir = one
        heir = heir or next(iter(unknown), None)
        if heir is not None:
            requests += (
                nfnetlink.add_element(NFPROTO_INET, TABLE, name, item.key, heir.comment, heir.data),
                _delete(name + _SUFFIX, heir.key),
            )
    return requests


def deletions_of_owners(
    netfilter: NetfilterSocket,
    names: Collection[str],
    tag: str,
    goes: Callable[[str], bool],
    is_attached: Callable[[str], bool | None],
) -> tuple[list[NetlinkRequest], list[Element]]:
    """What takes some owners out of sets and of those beside them, and their elements.

    names: of the sets, with those beside them; tag: what the comments of all the owners contain.
    For the rest see `deletions`.
    """
    requests: list[NetlinkRequest] = []
    found: list[Element] = []
    for name in names:
        if is_waiting_set(name):
            continue
        elements = nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
        gone = [item for item in elements if goes(item.comment)]
        if gone or name + _SUFFIX in names:
            requests += deletions(netfilter, name, gone, goes, is_attached)
        found += gone
    return requests, found


def delete_unused(netfilter: NetfilterSocket, names: Iterable[str]) -> None:
    """Delete those of some sets that are beside others and hold nothing."""
    for name in names:
        if is_waiting_set(name) and not nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name):
            nfnetlink.discard(netfilter, nfnetlink.delete_set(NFPROTO_INET, TABLE, name))


def _element(netfilter: NetfilterSocket, name: str, key: bytes, owner: Owner) -> Element | None:
    place = name + _SUFFIX
    return nfnetlink.element(netfilter, NFPROTO_INET, TABLE, place, key + _bytes(owner))


def _delete(name: str, key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)


def _bytes(owner: Owner) -> bytes:
    return bytes.fromhex(owner.tag.replace("-", ""))
