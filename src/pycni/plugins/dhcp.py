"""dhcp: addresses from a DHCP server on the network that the container's interface is on.

A lease has to be renewed for as long as the container runs, so the plugin only asks a daemon,
`pycni dhcp daemon` (`pycni.dhcp`), which keeps the leases. The plugin reads the configuration,
makes the result and gives the interface its MTU; so that has to be there (`needs_link`).
"""

from __future__ import annotations

import posix
from _socket import AF_INET6

from pycni.kernel.netlink.constants import MIN_IPV4_MTU, MIN_IPV6_MTU
from pycni.plugins.shared.dhcp import SOCKET, NoDaemon, ask
from pycni.sdk.execute import write_or_give_up
from pycni.sdk.plugin import Plugin
from pycni.spec.config import DNS, NetConf
from pycni.spec.errors import CHECK_FAILED, INVALID_CONFIG, CNIError, invalid_config
from pycni.spec.ip import IPAddress, parse_address, parse_network
from pycni.spec.jsontext import lookup
from pycni.spec.result import LINK_SCOPE, IPConfig, Result, Route
from pycni.spec.schema import Config, Fault, Flag, Integer, Kind, ListOf, Object, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar

    from pycni.kernel.link import Link
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment

# The names of dhcp-options(5); the first of each code is the one that is documented.
OPTIONS = {
    "subnet-mask": 1,
    "routers": 3,
    "domain-name-servers": 6,
    "host-name": 12,
    "domain-name": 15,
    "interface-mtu": 26,
    "broadcast-address": 28,
    "static-routes": 33,
    "ntp-servers": 42,
    "vendor-class-identifier": 60,
    "dhcp-client-identifier": 61,
    "user-class": 77,
    "domain-search": 119,
    "classless-static-routes": 121,
}

_MAX_VALUE = 255
_DEFAULTS = (OPTIONS["routers"], OPTIONS["subnet-mask"])
_DNS = {
    "nameservers": OPTIONS["domain-name-servers"],
    "domain": OPTIONS["domain-name"],
    "search": OPTIONS["domain-search"],
}
_NO_GATEWAY = IPAddress(bytes(4))


class Option(Kind):
    """A DHCP option, by name or number; decoded to its code."""

    expected = "the number of a DHCP option, 1 to 254, or one of " + ", ".join(OPTIONS)

    def decode(self, value: Any, path: str, faults: list[Fault]) -> int:
        code: Any = value
        if isinstance(value, str):
            code = OPTIONS.get(value)
            if code is None and value.isascii() and value.isdigit():
                code = int(value)
        if isinstance(code, bool) or not isinstance(code, int) or not 1 <= code <= 254:
            text = value if isinstance(value, str | int) else "a value of another type"
            problem = f'Can not parse option "{text}"'
            faults.append(Fault(path, problem, f"expected {self.expected}"))
            return 0
        return code

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "enum": list(OPTIONS)},
                {"type": "string", "pattern": "^[0-9]{1,3}$"},
                {"type": "integer", "minimum": 1, "maximum": 254},
            ]
        }


class Provided(Config):
    """An option that the container sends."""

    option: int = field(
        "option",
        Option(),
        required=True,
        doc="its number from 1 to 254, or name in dhcp-options(5)",
    )
    value: str = field("value", Text(), "", doc="its value, as text")
    from_arg: str = field(
        "fromArg", Text(), "", doc="the key of CNI_ARGS that holds the value; goes before `value`"
    )


class Requested(Config):
    """An option that the server is asked for."""

    option: int = field(
        "option",
        Option(),
        0,
        doc="its number from 1 to 254, or name in dhcp-options(5)",
        default_doc="none",
    )
    skip_default: bool = field("skipDefault", Flag(), False, doc="ask for none but those listed")


class IPAM(Config):
    """The `ipam` section."""

    type: str = field("type", Text(), "", doc="`dhcp`", default_doc="required")
    daemon_socket_path: str = field(
        "daemonSocketPath",
        Text(),
        SOCKET,
        doc="where the daemon listens; in `/run/cni` or where the administrator allows",
    )
    provide: tuple[Provided, ...] = field(
        "provide", ListOf(Object(Provided)), (), doc="options to send to servers"
    )
    request: tuple[Requested, ...] = field(
        "request", ListOf(Object(Requested)), (), doc="options to ask servers for"
    )
    priority: int = field(
        "priority",
        Integer(0, (1 << 32) - 1),
        0,
        doc="metric of the routes",
        default_doc="the kernel's",
    )

    @property
    def wanted(self) -> tuple[int, ...]:
        """The codes to request, in order."""
        asked = [item.option for item in self.request if item.option]
        if not any(item.skip_default for item in self.request):
            asked += _DEFAULTS
        return tuple(dict.fromkeys(asked))

    def provided(self, args: str) -> dict[int, bytes]:
        """The options to send, by code. Raises CNIError for a value that is too long."""
        given = _lenient_args(args)
        found: dict[int, bytes] = {}
        for item in self.provide:
            text = given.get(item.from_arg, item.value) if item.from_arg else item.value
            value = text.encode("utf-8", "surrogateescape")
            if len(value) > _MAX_VALUE:
                raise invalid_config(
                    f'value too long for option {item.option}: "{text[:40]}..."',
                    f"a DHCP option that is sent has {_MAX_VALUE} bytes at most",
                )
            if value:
                found[item.option] = value
        return found


class DHCPConf(NetConf):
    """The configuration of a plugin that delegates to dhcp, as far as it reads it."""

    ipam: IPAM | None = field("ipam", Object(IPAM), None, doc="the daemon, and what to ask for")

    def validate(self) -> None:
        if self.ipam is None:
            raise invalid_config(
                "IPAM config missing 'ipam' key", '"ipam" is an object with "type": "dhcp"'
            )
        for index, item in enumerate(self.ipam.request):
            if not item.option and not item.skip_default:
                raise invalid_config(
                    f"ipam.request[{index}]: neither option nor skipDefault",
                    "expected an object such as " + '{"option": "classless-static-routes"}',
                )


class DHCP(Plugin):
    """The dhcp plugin."""

    type: ClassVar[str] = "dhcp"
    config = DHCPConf
    needs_link: ClassVar[bool] = True

    def add(self, request: Request) -> Result:
        ipam = DHCPConf.decode(request.document).ipam
        assert ipam is not None
        wanted, netns = ipam.wanted, request.netns
        question = {
            "command": "ADD",
            **_attachment(request),
            "netns": netns if netns.startswith("/") else f"{posix.getcwd()}/{netns}",
            "options": {
                str(code): value.hex() for code, value in ipam.provided(request.args).items()
            },
            "request": list(wanted),
        }
        lease = ask(_socket_path(request), question, request.cancel)["lease"]
        mtu = lease.get("mtu") if OPTIONS["interface-mtu"] in wanted else None
        if isinstance(mtu, int) and not lookup(request.document, "mtu"):
            _set_mtu(request, mtu)
        return make_result(lease, wanted, ipam.priority)

    def check(self, request: Request) -> None:
        DHCPConf.decode(request.document)
        question = {"command": "CHECK", **_attachment(request)}
        lease = ask(_socket_path(request), question, request.cancel)["lease"]
        previous = request.prev_result
        if previous is None:
            return
        listed = [str(entry.address) for entry in previous.ips]
        if lease["address"] not in listed:
            raise CNIError(
                CHECK_FAILED,
                f"dhcp: the lease of container {request.container_id}, interface "
                f"{request.ifname} is {lease['address']}, which prevResult does not list",
                f"prevResult has {', '.join(listed) or 'no addresses'}; delete and add it again",
            )

    def delete(self, request: Request) -> None:
        _ask_if_there(request, {"command": "DEL", **_attachment(request)})

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        kept = [item.to_json() for item in keep]
        _ask_if_there(request, {"command": "GC", "network": request.network, "keep": kept})

    def status(self, request: Request) -> None:
        DHCPConf.decode(request.document)
        ask(_socket_path(request), {"command": "STATUS"}, request.cancel)


def make_result(lease: Mapping[str, Any], wanted: tuple[int, ...], priority: int) -> Result:
    """A lease as a result. DNS settings are in it only as far as they were asked for."""
    routers = lease["routers"]
    address = IPConfig(
        address=parse_network(lease["address"]),
        gateway=parse_address(routers[0]) if routers else None,
    )
    routes = tuple(
        Route(
            dst=parse_network(route["dst"]),
            gw=parse_address(route["gw"]) if route["gw"] else _NO_GATEWAY,
            # On the link: without an address here, the interface's plugin fills in a gateway.
            scope=None if route["gw"] else LINK_SCOPE,
            priority=priority,
        )
        for route in lease["routes"]
    )
    dns = {key: value for key, value in lease["dns"].items() if _DNS.get(key) in wanted}
    return Result(ips=(address,), routes=routes, dns=DNS.decode(dns))


def _set_mtu(request: Request, mtu: int) -> None:
    """Give the interface the MTU that a server says, or report why it is not used.

    The plugin of the interface lists it in the result, and puts it back.
    """
    from pycni.kernel import address, link, namespace  # few networks ask for it

    try:
        with namespace.open_path(request.netns) as space, space.netlink() as netlink:
            found = link.get(netlink, request.ifname)
            has_ipv6 = bool(address.dump(netlink, found.index, AF_INET6))
            reason = _why_not(mtu, found, has_ipv6)
            if not reason:
                netlink.batch([link.update(found, mtu=mtu)])
    except OSError as error:
        reason = str(error)
    if reason:
        note = f"dhcp: the server's MTU of {mtu} for {request.ifname} is not used: {reason}\n"
        write_or_give_up(request.stderr, note.encode())


def _why_not(mtu: int, found: Link, has_ipv6: bool) -> str:
    """What is wrong with a server's MTU for an interface, "" if nothing is.

    Servers are not to be trusted with more than their own network's IPv4. They may not raise it:
    what is below the interface carries as much as its plugin gave it, and more is for the
    configuration to say.
    """
    if mtu < MIN_IPV4_MTU:
        return f"it is {MIN_IPV4_MTU} bytes at least"
    if mtu > found.mtu:
        return f'{found.name} carries {found.mtu} bytes; for more, give "mtu"'
    if has_ipv6 and mtu < MIN_IPV6_MTU:
        return f"IPv6, which {found.name} has, needs {MIN_IPV6_MTU} bytes"
    return ""


def _attachment(request: Request) -> dict[str, str]:
    return {
        "network": request.network,
        "containerID": request.container_id,
        "ifname": request.ifname,
    }


def _ask_if_there(request: Request, question: Mapping[str, Any]) -> None:
    """Ask the daemon; where there is none there is nothing to be asked.

    Leases of a daemon that was stopped are on disk. Once it runs again and finds the interface
    gone, it lets them run out; a DEL that fails would hold up the container's end for that.
    """
    path = _socket_path(request)
    try:
        ask(path, question)
    except NoDaemon as error:
        note = f"dhcp: {question['command']} without a daemon: {error}\n"
        write_or_give_up(request.stderr, note.encode())


def _socket_path(request: Request) -> str:
    """The daemon's socket, of a configuration that may be wrong in everything else."""
    ipam = NetConf.read_lenient(request.document, "", []).ipam
    if not isinstance(ipam, dict):
        return SOCKET
    faults: list[Fault] = []
    path = _Socket.read_lenient(ipam, "ipam", faults).daemon_socket_path or SOCKET
    if faults or not path.startswith("/"):
        raise CNIError(
            INVALID_CONFIG,
            str(faults[0]) if faults else f'ipam.daemonSocketPath: "{path}" is not valid',
            f"expected the absolute path of a socket, by default {SOCKET}",
        )
    return request.allowed_path("dhcp.daemonSocketPath", path, SOCKET)


class _Socket(Config):
    daemon_socket_path: str = field("daemonSocketPath", Text(), SOCKET, doc="the daemon's socket")


def _lenient_args(args: str) -> dict[str, str]:
    """CNI_ARGS as this plugin reads them: what is no pair is passed over."""
    pairs = (pair.partition("=") for pair in args.split(";"))
    return {key: value for key, separator, value in pairs if separator}


plugin = DHCP()
