"""Conditions of portmap: words of a match that a configuration adds to a rule of the host.

The rule stands where all that is for the host comes by, so these words may match, and nothing else:
in nft's language a verdict or a statement may stand among them, and iptables takes options there
that choose another program, table or chain.
"""

from __future__ import annotations

from pycni.spec.errors import invalid_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_LENGTH = 4096  # bytes of all words together

# What begins or makes a statement of nft that is no match (nft(8), "STATEMENTS").
_STATEMENTS = frozenset((
    "accept", "add", "comment", "continue", "delete", "destroy", "dnat", "drop", "dup", "flow",
    "fwd", "goto", "include", "jump", "log", "masquerade", "meter", "notrack", "queue", "redirect",
    "reject", "reset", "return", "set", "snat", "synproxy", "tproxy", "update", "vmap",
))  # fmt: skip
# A digit ends a word for nft: `22accept` are two.
_IN_A_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-./")
# Options of iptables that match by themselves; those of `-m` are long. All take a value, so that
# no further option can stand in the same word.
_MATCHING = frozenset("psdiom")
# Long options of iptables that do something else. A part of one, from the front, is one too.
_OTHER = (
    "append", "check", "delete", "delete-chain", "exact", "flush", "goto", "help", "insert", "ipv4",
    "ipv6", "jump", "line-numbers", "list", "list-rules", "modprobe", "new-chain", "numeric",
    "policy", "rename-chain", "replace", "set-counters", "table", "verbose", "version", "wait",
    "wait-interval", "zero",
    "comment", "object-pinned",
)  # fmt: skip
_OF_MATCHES = ("set", "pol")  # of `-m recent` and `-m policy`, which are whole as they are


def check_conditions(key: str, words: Iterable[str]) -> None:
    """Refuse words that do more than match (code 7)."""
    listed = [*words]
    if sum(len(word.encode("utf-8", "replace")) + 1 for word in listed) > MAX_LENGTH:
        raise invalid_config(
            f'the words of "{key}" are too long', f"all together have {MAX_LENGTH} bytes at most"
        )
    for word in listed:
        if not word or not word.isprintable() or any(sign in word for sign in ";#"):
            raise _refused(key, word)
    is_iptables = bool(listed) and listed[0][0] in "-!"
    for word in _not_matching(listed) if is_iptables else _statements(" ".join(listed)):
        raise _refused(key, word)


def _statements(text: str) -> Iterator[str]:
    """What in the words of nft makes them more than a match."""
    parts = text.split('"')
    if len(parts) % 2 == 0:
        yield '"'
    for part in parts[::2]:
        plain = "".join(sign if sign in _IN_A_WORD else " " for sign in part)
        yield from _STATEMENTS.intersection(word.lstrip("-./") for word in plain.split())


def _not_matching(words: Iterable[str]) -> Iterator[str]:
    """The words that are an option of iptables, and not of a match."""
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            if name not in _OF_MATCHES and any(other.startswith(name) for other in _OTHER):
                yield word
        elif word.startswith("-") and word[1:2] not in _MATCHING:
            yield word


def _refused(key: str, word: str) -> Exception:
    return invalid_config(
        f'"{word}" is no part of a match',
        f'see "{key}": words that match packets, in the language of the backend',
    )
