"""Who owns what is left on the host: the key of an attachment, and the names derived from it.

Rules, chains and set elements carry these names, so that DEL, CHECK and GC find what belongs to an
attachment whoever made it. They are the reference's names, since other programs match on them.
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

__all__ = ["MAX_COMMENT", "Owner", "containers_named", "hashed_name", "network_tag", "sha512"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_COMMENT = 128  # bytes of a comment that nftables keeps


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
        return f"{network_tag(self.network)}-{_hash(f'{self.ifname}:{self.container_id}')}"

    @property
    def comment(self) -> str:
        """The comment of an nftables object: tag, then names for people; cut to what fits."""
        text = f"{self.tag}, net: {self.network}, if: {self.ifname}, id: {self.container_id}"
        text = text.replace('"', "")
        return text.encode("utf-8", "replace")[:MAX_COMMENT].decode("utf-8", "ignore")

    @property
    def iptables_comment(self) -> str:
        """The comment of an iptables rule."""
        return f"name: {quote(self.network)} id: {quote(self.container_id)}"

    def chain(self, prefix: str = "CNI-", length: int = 28) -> str:
        """The name of an iptables chain; the interface is not part of it."""
        return hashed_name(prefix, self.network + self.container_id, length)


def containers_named(comments: Iterable[str], network: str, prefix: str = "") -> set[str]:
    """The containers of a network that comments of iptables rules name: `iptables_comment` read.

    prefix: what stands before it in these comments.
    """
    before, after = f'{prefix}name: {quote(network)} id: "', '"'
    return {
        comment[len(before) : -len(after)]
        for comment in comments
        if comment.startswith(before) and comment.endswith(after)
    }


def hashed_name(prefix: str, text: str, length: int) -> str:
    """A name of fixed length: the prefix, then hexadecimal digits of SHA-512 of the text."""
    if not len(prefix) < length <= 128:
        raise ValueError(f"a length of {length} is not between {len(prefix)} and 128")
    digits: str = sha512(text.encode("utf-8", "surrogateescape")).hexdigest()
    return (prefix + digits)[:length]


def network_tag(network: str) -> str:
    """The hash that all comments of one network start with."""
    return _hash(network)


def _hash(text: str) -> str:
    return hashed_name("", text, 16)
