"""What can go wrong between a netlink request and its answer. Translated one level up."""

from __future__ import annotations

from posix import strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket


class NetlinkError(OSError):
    """The kernel refused a request.

    errno: its error number; text: its explanation ("" if it gave none); what: the request, as
    in: create link "eth0"; offset: of the attribute it complains about, from the start of the
    message, or None; netlink: the socket of routing that was refused, which knows what indexes
    mean; done: of a batch, the positions of the requests that were carried out (the kernel goes on
    behind a failure, so later ones may be among them); way_out: what to do, "" where the number
    says it.
    """

    def __init__(self, errno: int, text: str, what: str, offset: int | None = None) -> None:
        super().__init__(errno, strerror(errno))
        self.text = text
        self.what = what
        self.offset = offset
        self.way_out = ""
        self.netlink: NetlinkSocket | None = None
        self.done: tuple[int, ...] = ()

    def __str__(self) -> str:
        reason = f"{self.strerror} ({self.text})" if self.text else self.strerror
        return f"{self.what}: {reason}"


class EventsLost(Exception):
    """The kernel dropped notifications (ENOBUFS): read the state again, then go on waiting."""
