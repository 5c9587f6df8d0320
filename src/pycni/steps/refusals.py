"""What the kernel refuses, in words for people: what was asked, why not, and the way out.

An index says nothing outside of its namespace, so the interface's name is given, which the
socket that was refused knows. Called by the executor, only when something has failed.
"""

from __future__ import annotations

import errno

from pycni.kernel import link
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import (
    ALREADY_EXISTS,
    INVALID_ENVIRONMENT,
    KERNEL_REFUSED,
    NEEDS_ROOT,
    CNIError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket

_RIGHTS = (errno.EPERM, errno.EACCES)
_BEFORE_INDEX = ("dev", "link", "master")
_NO_SUPPORT = "this kernel cannot do it, or a module that it needs is not loaded"

# The way out, by what the kernel says of a request by netlink.
_WAYS_OUT = {
    errno.EBUSY: "the interface it would be on is in use already: as a bridge's or bond's port, or "
    "by interfaces of another kind or mode (macvlan, ipvlan, passthru); take another one",
    errno.ENETUNREACH: "a gateway must be in the network of an address of that interface; check "
    '"gw" of the route against "ips", or the range',
    errno.EHOSTUNREACH: "there is no route to it from here; check the addresses and the gateway",
    errno.ENODEV: "the interface has gone meanwhile; try again",
    errno.EOPNOTSUPP: _NO_SUPPORT,
    errno.EAFNOSUPPORT: _NO_SUPPORT,
    errno.EXFULL: "a bridge has 1023 ports at most; attach to another one, with another subnet",
    errno.ENOSPC: "a table of the kernel is full; detach what is not needed",
    errno.ENOMEM: "the kernel has no memory for it; try again later",
    errno.ENOBUFS: "the kernel has no memory for it; try again later",
    errno.EADDRNOTAVAIL: "the address does not fit the interface; is IPv6 disabled on it?",
}


def translate(error: OSError) -> CNIError:
    """The kernel's refusal as an error object."""
    message = words(error)
    if error.errno in _RIGHTS:
        return CNIError(INVALID_ENVIRONMENT, message, NEEDS_ROOT)
    if error.errno == errno.EEXIST:
        return CNIError(
            ALREADY_EXISTS,
            message,
            "it is there already: left by an earlier attachment, or made by another program",
        )
    return CNIError(KERNEL_REFUSED, message, _way_out(error))


def words(error: OSError) -> str:
    """What was refused and why, without numbers that say nothing."""
    if isinstance(error, NetlinkError):
        reason = str(error).removeprefix(error.what)
        return _with_names(error.what, error.netlink) + reason
    if type(error).__str__ is OSError.__str__ and error.strerror:
        # What Python writes begins with "[Errno 2]".
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _way_out(error: OSError) -> str:
    hint = getattr(error, "way_out", "")
    if hint:
        return str(hint)
    return _WAYS_OUT.get(error.errno or 0, "") if isinstance(error, NetlinkError) else ""


def _with_names(what: str, netlink: NetlinkSocket | None) -> str:
    """A request in words, with the names of interfaces in place of their indexes."""
    if netlink is None:
        return what
    words: list[str] = []
    for word in what.split(" "):
        number = word.rstrip(":,")
        name = ""
        if words and words[-1] in _BEFORE_INDEX and number.isdigit():
            name = _name(netlink, int(number))
        words.append(name + word[len(number) :] if name else word)
    return " ".join(words)


def _name(netlink: NetlinkSocket, index: int) -> str:
    try:
        found = link.find(netlink, index)
    except OSError:
        return ""
    return found.name if found is not None else ""
