"""Who owns what is left on the host: the key of an attachment, and the names derived from it.

Rules, chains and set elements carry these names, so that DEL, CHECK and GC find what belongs to an
attachment, whichever plugin made it. They are the reference's, since other programs match on them.
"""

from __future__ import annotations

import sys

from pycni.spec.config import Attachment
from pycni.spec.record import Record
from pycni.spec.versions import quote

# The C modules behind hashlib, which itself loads OpenSSL.
if sys.version_info >= (3, 12):
    from _sha2 import sha512  # type: ignore[import-not-found,unused-ignore]
else:
    from _sha512 import sha512  # type: ignore[import-not-found,unused-ignore]

__all__ = [
    "MAX_COMMENT",
    "Owner",
    "Owners",
    "hashed_name",
    "is_whole",
    "names_in",
    "network_tag",
    "sha512",
    "tag_of",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

MAX_COMMENT = 128  # bytes of a comment that nftables keeps
MAX_IPTABLES_COMMENT = 255  # bytes: XT_MAX_COMMENT_LEN of linux/netfilter/xt_comment.h, less a NUL
_CUT = "..."  # how the reference's portmap ends a comment that was longer
_TAG_LENGTH = 33  # two hashes of 16 digits, and what joins them


# One operation asks for one owner's many times.
_last_tag: tuple[tuple[str, str, str], str] = (("", "", ""), "")
_last_network: tuple[str, str] = ("", "")


class Owner(Record):
    """An attachment of a network: what the specification lets plugins key their state by."""

    network: str
    container_id: str
    ifname: str

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container_id, self.ifname)

    @property
    def tag(self) -> str:
        """Two hashes, the network's and the attachment's, that a comment starts with."""
        global _last_tag  # noqa: PLW0603
        key = self.network, self.container_id, self.ifname
        known, tag = _last_tag
        if known != key:
            tag = f"{network_tag(self.network)}-{_hash(f'{self.ifname}:{self.container_id}')}"
            _last_tag = key, tag
        return tag

    def owns(self, comment: str) -> bool:
        """Whether a comment, or an interface's alias, starts with its tag."""
        return comment.startswith(self.tag)

    @property
    def comment(self) -> str:
        """The comment of an nftables object: tag, then names for people; cut to what fits."""
        text = f"{self.tag}, net: {self.network}, if: {self.ifname}, id: {self.container_id}"
        text = text.replace('"', "")
        return text.encode("utf-8", "replace")[:MAX_COMMENT].decode("utf-8", "ignore")

    @property
    def iptables_comment(self) -> str:
        """The comment of an iptables rule; cut to what iptables keeps."""
        return self.iptables_comment_after("")

    def iptables_comment_after(self, prefix: str) -> str:
        """The same with something before it."""
        return _cut(f"{prefix}name: {quote(self.network)} id: {quote(self.container_id)}")

    def chain(self, prefix: str = "CNI-", length: int = 28) -> str:
        """The name of an iptables chain; the interface is not part of it."""
        return hashed_name(prefix, self.network + self.container_id, length)


def _none(_tag: str) -> bool:
    return False


class Owners:
    """Attachments of a network whose leftovers are to be removed: those of `only`, or all but some.

    keep: those to spare; is_attached: whether to spare the one with a tag as well; addresses: the
    noted ones, as text, of attachments that a kind of step is noted for, by kind; noted: returns
    the containers that anything is noted of. tag: a part of all their tags, to search by.
    """

    def __init__(
        self,
        network: str,
        only: Collection[Attachment] | None = None,
        keep: Collection[Attachment] = (),
        is_attached: Callable[[str], bool] = _none,
        addresses: Mapping[str, Collection[str]] | None = None,
        noted: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.network = network
        self._noted = noted
        self._addresses = addresses or {}
        self.tag = network_tag(network)
        self._named = keep if only is None else only
        self._is_listed = only is not None
        self._is_attached = is_attached
        self._tags = frozenset(
            Owner(network, item.container_id, item.ifname).tag for item in self._named
        )
        if only is not None and len(self._tags) == 1:
            (self.tag,) = self._tags

    @property
    def listed(self) -> list[Owner]:
        """Those of `only`; none where it is all but some."""
        if not self._is_listed:
            return []
        return [Owner(self.network, item.container_id, item.ifname) for item in self._named]

    def includes(self, comment: str) -> bool:
        """Whether a comment, or an interface's alias, starts with the tag of one of them."""
        tag = tag_of(comment)
        if self._is_listed:
            return tag in self._tags
        is_of_network = tag.startswith(f"{self.tag}-")
        return is_of_network and tag not in self._tags and not self._is_attached(tag)

    def may_include(self, container_id: str, interfaces: int) -> bool:
        """Whether a container of which so many interfaces left something may have one of them."""
        named = sum(item.container_id == container_id for item in self._named)
        return named > 0 if self._is_listed else interfaces > named or not named

    def addresses(self, kind: str) -> Collection[str]:
        """The addresses of those that a kind of step is noted for."""
        return self._addresses.get(kind, ())

    def spared(self, container_id: str) -> set[str]:
        """The interfaces of a container that are spared by name."""
        if self._is_listed:
            return set()
        return {item.ifname for item in self._named if item.container_id == container_id}

    def chains(
        self,
        marked: Iterable[tuple[str, str]],
        chain_of: Callable[[Owner], str],
        prefix: str = "",
    ) -> dict[str, str]:
        """The chains of the network's containers, by container.

        marked: comments of iptables rules, which name no interface, each with the container's
        chain; prefix: what stands before `Owner.iptables_comment`; chain_of: names a container's
        chain. Where a comment was cut, the chain identifies the container, if it is a known one;
        else a text that is no container's id stands for it.
        """
        before, after = f'{prefix}name: {quote(self.network)} id: "', '"'
        found: dict[str, str] = {}
        known: dict[str, str] | None = None
        for comment, chain in marked:
            if comment.startswith(before) and comment.endswith(after):
                container = comment[len(before) : -len(after)]
                found[container] = chain_of(Owner(self.network, container, ""))
            elif comment.endswith(_CUT) and comment.startswith(before[: -len(_CUT)]) and chain:
                if known is None:
                    ids = {*(item.container_id for item in self._named), *self._noted()}
                    known = {chain_of(Owner(self.network, one, "")): one for one in ids}
                found[known.get(chain, f"{comment} {chain}")] = chain
        return dict(sorted(found.items()))


def tag_of(comment: str) -> str:
    """The owner's tag that a comment or alias starts with, "" if it starts with something else."""
    tag = comment[:_TAG_LENGTH]
    return tag if len(tag) == _TAG_LENGTH and tag[16] == "-" else ""


def names_in(comment: str) -> tuple[str, str, str]:
    """Network, interface and container in `Owner.comment`, as far as they were not cut."""
    network, _, rest = comment.partition(", net: ")[2].partition(", if: ")
    ifname, _, container = rest.partition(", id: ")
    return network, ifname, container


def is_whole(comment: str) -> bool:
    """Whether nothing of `Owner.comment` was cut, which may be within a character."""
    return len(comment.encode()) <= MAX_COMMENT - 4


def hashed_name(prefix: str, text: str, length: int) -> str:
    """A name of fixed length: the prefix, then hexadecimal digits of SHA-512 of the text."""
    if not len(prefix) < length <= 128:
        raise ValueError(f"a length of {length} is not between {len(prefix)} and 128")
    digits: str = sha512(text.encode("utf-8", "surrogateescape")).hexdigest()
    return (prefix + digits)[:length]


def network_tag(network: str) -> str:
    """The hash that all comments of one network start with."""
    global _last_network  # noqa: PLW0603
    known, tag = _last_network
    if known != network:
        tag = _hash(network)
        _last_network = network, tag
    return tag


def _cut(comment: str) -> str:
    """A comment as iptables keeps it: by itself it cuts one that is longer, or refuses it."""
    data = comment.encode("utf-8", "surrogateescape")
    if len(data) <= MAX_IPTABLES_COMMENT:
        return comment
    return data[: MAX_IPTABLES_COMMENT - len(_CUT)].decode("utf-8", "ignore") + _CUT


def _hash(text: str) -> str:
    return hashed_name("", text, 16)
