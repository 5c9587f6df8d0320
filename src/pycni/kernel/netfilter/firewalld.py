"""firewalld over D-Bus: which addresses are sources of which zone.

What is changed is its running configuration, which a reload of firewalld forgets. Needs the package
jeepney, of the extra `firewalld`, which is imported when there is something to say. Used by the
firewall step.
"""

from __future__ import annotations

import errno
import posix

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET, NFPROTO_IPV4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket

NAME = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"
PROGRAM = "/usr/sbin/firewalld"
BUS = "/var/run/dbus/system_bus_socket"  # unless DBUS_SYSTEM_BUS_ADDRESS names another
TIMEOUT = 20.0  # seconds; a reload keeps it busy

# The chains it makes with its two backends.
_CHAINS = (
    (NFPROTO_INET, "firewalld", "filter_FORWARD"),
    (NFPROTO_IPV4, "filter", "FORWARD_direct"),
)


class FirewalldError(OSError):
    """firewalld refused a request, or cannot be reached.

    errno: ENOPKG without jeepney, ENOTCONN without D-Bus, EIO for a refusal; code: firewalld's
    own, such as INVALID_ZONE, "" if it did not answer.
    """

    def __init__(self, number: int, text: str, code: str = "") -> None:
        super().__init__(number, posix.strerror(number))
        self.text = text
        self.code = code

    def __str__(self) -> str:
        return f"firewalld: {self.text}"


class Firewalld:
    """A connection to firewalld for the length of a `with` block. Raises FirewalldError."""

    def __enter__(self) -> Self:
        try:
            from jeepney import DBusAddress
            from jeepney.io.blocking import open_dbus_connection
        except ImportError:
            raise FirewalldError(
                errno.ENOPKG, "to reach it takes the Python package jeepney, which is not installed"
            ) from None
        self._zones = DBusAddress(PATH, NAME, f"{NAME}.zone")
        self._bus = DBusAddress(
            "/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus"
        )
        try:
            self._connection: Any = open_dbus_connection(bus="SYSTEM")
        except (OSError, EOFError, RuntimeError) as error:
            raise FirewalldError(
                errno.ENOTCONN, f"the system's D-Bus cannot be reached: {error}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def is_running(self) -> bool:
        """Whether firewalld is on the bus."""
        return bool(self._ask(self._bus, "NameHasOwner", NAME))

    def add(self, zone: str, source: str) -> bool:
        """Make an address (`10.1.0.2/32`) a source of a zone; whether it was not one before."""
        try:
            self._ask(self._zones, "addSource", zone, source)
        except FirewalldError as error:
            if error.code not in ("ZONE_ALREADY_SET", "ALREADY_ENABLED"):
                raise
            return False
        return True

    def has(self, zone: str, source: str) -> bool:
        """Whether an address is a source of a zone."""
        return bool(self._ask(self._zones, "querySource", zone, source))

    def zone_of(self, source: str) -> str:
        """The zone that an address is a source of, "" for none."""
        return str(self._ask(self._zones, "getZoneOfSource", source))

    def remove(self, zone: str, source: str) -> None:
        """Have an address be no source of a zone any more; one that is none is no error."""
        try:
            self._ask(self._zones, "removeSource", zone, source)
        except FirewalldError as error:
            if error.code not in ("UNKNOWN_SOURCE", "NOT_ENABLED", "ZONE_CONFLICT", "INVALID_ZONE"):
                raise

    def _ask(self, where: Any, method: str, *arguments: str) -> Any:
        from jeepney import HeaderFields, MessageType, new_method_call

        question = new_method_call(where, method, "s" * len(arguments), arguments)
        try:
            answer = self._connection.send_and_get_reply(question, timeout=TIMEOUT)
        except (OSError, EOFError) as error:
            raise FirewalldError(errno.EIO, f"no answer to {method}: {error!r}") from error
        if answer.header.message_type == MessageType.error:
            name = answer.header.fields.get(HeaderFields.error_name, "")
            said = str(answer.body[0]) if answer.body else name
            code = said.partition(":")[0] if name.startswith(NAME) else ""
            raise FirewalldError(errno.EIO, f"{method}({', '.join(arguments)}): {said}", code)
        return answer.body[0] if answer.body else None


def is_active(netfilter: NetfilterSocket) -> bool:
    """Whether firewalld decides what this host, that is, this network namespace forwards.

    Its chains show it; where they are missing, it may just be reloading them, so it is asked too
    if it is installed and there is a D-Bus.
    """
    if any(nfnetlink.chain_exists(netfilter, *chain) for chain in _CHAINS):
        return True
    if not (posix.access(PROGRAM, posix.F_OK) and _has_bus()):  # jeepney takes long to load
        return False
    try:
        with Firewalld() as firewalld:
            return firewalld.is_running()
    except FirewalldError:
        return False


def _has_bus() -> bool:
    import os  # posix.environ is that of the start

    return "DBUS_SYSTEM_BUS_ADDRESS" in os.environ or posix.access(BUS, posix.F_OK)
