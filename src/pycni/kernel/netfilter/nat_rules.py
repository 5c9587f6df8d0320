"""Rules that lead ports of the host elsewhere, of ours and of other programs.

iptables-nft and nft keep rules as expressions, which netlink gives; iptables-legacy's are read as
lines of its `-save`. Either way a rule becomes a `NatRule`, so that nothing depends on the program
that made it, and none has to run to read what nftables keeps. Formats: linux/netfilter/nf_tables.h,
nf_tables_compat.h, xt_multiport.h, xt_tcpudp.h, xt_sctp.h, nf_nat.h. Used by the steps that have an
iptables backend.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from _struct import Struct, unpack_from

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netlink.codec import BE32, BYTES, STRING, Schema
from pycni.spec.ip import IPAddress, IPNetwork, host_network, parse_address, parse_network
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from typing import Any

    from pycni.kernel.netfilter.nfnetlink import Expression, NetfilterSocket

_PAYLOAD = Schema(base=(2, BE32), offset=(3, BE32), length=(4, BE32))
_BITWISE = Schema(mask=(4, Schema(value=(1, BYTES))), xor=(5, Schema(value=(1, BYTES))))
_COMPARE = Schema(operation=(2, BE32), data=(3, Schema(value=(1, BYTES))))
_META = Schema(key=(2, BE32))
_EXTENSION = Schema(name=(1, STRING), revision=(2, BE32), info=(3, BYTES))
_VERDICT = Schema(code=(1, BE32), chain=(2, STRING))
_IMMEDIATE = Schema(data=(2, Schema(value=(1, BYTES), verdict=(2, _VERDICT))))

# NFT_META_L4PROTO, and NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER with the offsets
# of protocol, addresses and the destination port. Since 1.8.11 iptables-nft loads the protocol of
# IPv4 from there; before, and of IPv6, from meta.
_L4PROTO = 16
_LOADED = {
    AF_INET: {(1, 9): "protocol", (1, 12): "source", (1, 16): "destination", (2, 2): "ports"},
    AF_INET6: {(1, 8): "source", (1, 24): "destination", (2, 2): "ports"},
}

_ATTRIBUTE = Struct("=HH")  # struct nlattr: length and NFTA_DATA_VALUE
_RANGE = Struct("=HH")
_ANY_PORT = _RANGE.pack(0, 0xFFFF)
_CONDITIONS = {"source", "destination", "conditional"}  # fields of a rule
_PLAIN = ("comment", "multiport")  # matches that are of the container, not of its conditions
_MULTIPORT = Struct("=BB15H15BB")  # struct xt_multiport_v1
_RETURN = 0xFFFFFFFB  # NFT_RETURN
RETURN = "RETURN"
_TO_DESTINATION = 1  # XT_MULTIPORT_DESTINATION
# Where the structures of single protocols have the range of destination ports, and what inverts.
_SINGLE = {"tcp": (4, 11), "udp": (4, 8), "sctp": (0, -1)}


class NatRule(Record):
    """A rule: what it matches, and where it leads.

    protocol, ports: of the destination, "" and () for any; source, destination: None for any;
    jump: a chain or target, "" if none; target, target_port: what a DNAT leads to; conditional:
    whether it matches more than is said here; matches: all that it matches but its ports, to be
    compared with that of another rule of the same program, "" for protocol and ports alone. handle:
    of a rule of nftables; line: of text.
    """

    chain: str
    protocol: str = ""
    ports: tuple[int, ...] = ()
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    jump: str = ""
    target: IPAddress | None = None
    target_port: int = 0
    comment: str = ""
    conditional: bool = False
    matches: str = ""
    handle: int = 0
    line: str = ""

    @property
    def traffic(self) -> tuple[str, tuple[int, ...], IPNetwork | None]:
        """What it matches, of any sender."""
        return self.protocol, self.ports, self.destination


def read(
    netfilter: NetfilterSocket, family: int, table: str, chain: str, *wanted: bytes
) -> list[NatRule]:
    """The rules of a chain in nftables, in order; of all chains of the table for "".

    wanted: bytes, some of which a rule must contain if any are named; the others are not decoded.
    """
    return [
        parse_expressions(family, place, rule.handle, expressions).replace(comment=rule.comment)
        for rule, place, expressions in nfnetlink.expressions(
            netfilter, family, table, chain, wanted or (b"",)
        )
    ]


def port_bytes(port: int) -> tuple[bytes, ...]:
    """What rules contain, one or the other, that match a single destination port."""
    ranged = _RANGE.pack(port, port)
    return (
        # An attribute of nf_tables of six bytes; structures of x_tables with any source port, as
        # those of TCP and UDP are, and of SCTP.
        _ATTRIBUTE.pack(6, 1) + port.to_bytes(2, "big"),
        _ANY_PORT + ranged,
        ranged + _ANY_PORT,
    )


def parse_lines(lines: Iterable[str], chain: str, jumps: Collection[str] = ()) -> list[NatRule]:
    """The rules of a chain among lines of iptables-save; those with some jumps only, if named."""
    beginning = f"-A {chain} "
    found = (
        parse_line(line)
        for line in lines
        if line.startswith(beginning)
        and (not jumps or line.rpartition(" -j ")[2].partition(" ")[0] in jumps)
    )
    return [rule for rule in found if rule is not None]


# --- nftables ------------------------------------------------------------------------------------


def parse_expressions(
    family: int, chain: str, handle: int, expressions: Sequence[Expression]
) -> NatRule:
    """A rule by its expressions. What is not understood makes it conditional.

    Raises MalformedMessage.
    """
    found: dict[str, Any] = {}
    loaded, prefix = "", None
    values: list[bytes] = []
    for name, data in expressions:
        if name in ("meta", "payload"):
            loaded, prefix = _loaded(family, name, data), None
        elif name == "bitwise":
            loaded, prefix = _masked(loaded, _BITWISE.decode(data))
        elif name == "cmp":
            said = _COMPARE.decode(data)
            value = said.get("data", {}).get("value", b"")
            equal = said.get("operation", 0) == 0
            found.update(_compared(family, loaded if equal else "", prefix, value))
        elif name in ("match", "target"):
            found.update(_extension(family, _EXTENSION.decode(data)))
        elif name == "immediate":
            said = _IMMEDIATE.decode(data).get("data", {})
            values += [said["value"]] if "value" in said else []
            verdict = said.get("verdict", {})
            is_return = verdict.get("code") == _RETURN
            found["jump"] = RETURN if is_return else verdict.get("chain", found.get("jump", ""))
        elif name == "nat":
            found.update(_translation(values))
        elif name != "counter":
            found["conditional"] = True
    if found.keys() & _CONDITIONS:
        found["matches"] = " ".join(
            f"{name}:{data.hex()}"
            for name, data in expressions
            if name not in ("counter", "immediate", "target", "nat")
            and not (name == "match" and _EXTENSION.decode(data).get("name") in _PLAIN)
        )
    return NatRule(chain, handle=handle, **found)


def _loaded(family: int, name: str, data: bytes) -> str:
    """What meta or payload loads, "" for what is of no interest."""
    if name == "meta":
        return "protocol" if _META.decode(data).get("key") == _L4PROTO else ""
    said = _PAYLOAD.decode(data)
    return _LOADED.get(family, {}).get((said.get("base", 0), said.get("offset", 0)), "")


def _masked(loaded: str, said: dict[str, Any]) -> tuple[str, int | None]:
    """What is left of what was loaded: of an address a network, with the length of its prefix."""
    bits = "".join(f"{byte:08b}" for byte in said.get("mask", {}).get("value", b""))
    is_prefix = "01" not in bits and not any(said.get("xor", {}).get("value", b""))
    is_network = is_prefix and loaded in ("source", "destination")
    return (loaded, bits.count("1")) if is_network else ("", None)


def _compared(family: int, loaded: str, prefix: int | None, value: bytes) -> dict[str, Any]:
    """What a rule matches that compares what it loaded with a value."""
    if loaded == "protocol" and len(value) == 1:
        return {"protocol": nfnetlink.PROTOCOL_NAMES.get(value[0], str(value[0]))}
    if loaded == "ports" and len(value) == 2:
        return {"ports": (int.from_bytes(value, "big"),)}
    size = 4 if family == AF_INET else 16
    if loaded in ("source", "destination") and 0 < len(value) <= size:
        # A prefix of whole bytes is compared as such, without a mask.
        length = 8 * len(value) if prefix is None else prefix
        return {loaded: IPNetwork(IPAddress(value.ljust(size, b"\0")), length)}
    return {"conditional": True}


def _translation(values: Sequence[bytes]) -> dict[str, Any]:
    """What nft's own `dnat to ADDRESS:PORT` leads to, by the values loaded for it."""
    found: dict[str, Any] = {"jump": "DNAT"}
    for value in values:
        if len(value) in (4, 16):
            found["target"] = IPAddress(value)
        elif len(value) == 2:
            found["target_port"] = int.from_bytes(value, "big")
    return found


def _extension(family: int, said: dict[str, Any]) -> dict[str, Any]:
    """What a match or target of x_tables says."""
    name, info = said.get("name", ""), said.get("info", b"")
    if name == "comment":
        return {"comment": STRING.decode(info.partition(b"\0")[0])}
    if name == "multiport" and len(info) >= _MULTIPORT.size:
        flags, count, *rest = _MULTIPORT.unpack_from(info)
        ranges, inverted = rest[15:30], rest[30]
        if flags == _TO_DESTINATION and not inverted and not any(ranges) and count <= 15:
            return {"ports": tuple(rest[:count])}
    elif name in _SINGLE:
        place, inversion = _SINGLE[name]
        if len(info) > max(place + 4, inversion):
            first, last = unpack_from("=HH", info, place)
            if first == last and not (inversion > 0 and info[inversion]):
                return {"ports": (first,), "protocol": name}
    elif name == "DNAT":
        # struct nf_nat_range, or for IPv4 nf_nat_ipv4_multi_range_compat, of one range.
        single = family == AF_INET and said.get("revision", 0) == 0
        place, port = (8, 16) if single else (4, 36)
        size = 4 if family == AF_INET else 16
        if len(info) >= port + 2:
            address = IPAddress(info[place : place + size])
            number = int.from_bytes(info[port : port + 2], "big")
            return {"jump": "DNAT", "target": address, "target_port": number}
    return {"conditional": True}


# --- text ----------------------------------------------------------------------------------------


def parse_line(line: str) -> NatRule | None:
    """A rule of iptables-save; None for another line, or one that cannot be understood."""
    words = _words(line)
    found: dict[str, Any] = {"line": line}
    matches: list[str] = []
    try:
        for word in words:
            if word == "-A":
                found["chain"] = next(words)
            elif word in ("-p", "-s", "-d"):
                value = next(words)
                matches += word, value
                name = {"-p": "protocol", "-s": "source", "-d": "destination"}[word]
                found[name] = value if word == "-p" else _network(value)
            elif word in ("-j", "--comment"):
                found["jump" if word == "-j" else "comment"] = next(words)
            elif word in ("--dport", "--dports"):
                found["ports"] = tuple(map(int, next(words).split(",")))
            elif word == "--to-destination":
                found["target"], found["target_port"] = _target(next(words))
            elif word != "-m":
                found["conditional"] = True
                matches.append(word)
            elif (extension := next(words)) not in (*_PLAIN, *_SINGLE):
                found["conditional"] = True
                matches.append(extension)
    except (ValueError, StopIteration):
        return None
    if found.keys() & _CONDITIONS:
        found["matches"] = " ".join(matches)
    return NatRule(**found) if "chain" in found else None


def _network(text: str) -> IPNetwork:
    return parse_network(text) if "/" in text else host_network(parse_address(text))


def _target(text: str) -> tuple[IPAddress, int]:
    """What `--to-destination` leads to: ADDRESS:PORT, an IPv6 address in brackets."""
    address, _, port = text.rpartition(":")
    return parse_address(address.strip("[]")), int(port)


def _words(line: str) -> Iterator[str]:
    """The words of a line, some of them in quotes, in which a backslash keeps what follows."""
    word, quoted, escaped, begun = "", False, False, False
    for character in line:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted, begun = not quoted, True
        elif character == " " and not quoted:
            if word or begun:
                yield word
            word, begun = "", False
        else:
            word += character
    if word or begun:
        yield word
