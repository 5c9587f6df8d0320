"""What there is: the host's links and rules, containers' interfaces, and files, read at once.

Rules, elements and chains become `Mark`s: what names a container's address, or carries an owner's
tag. Who made a mark, and in which form, does not matter: whatever has an address of a container's
network in it is one, so that a new kind of rule is seen without being known here.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sequences.lab import CACHE, LEASES, RUN, Lab, inside
from sequences.netlink import Address, Link, Neighbour, Qdisc, Reader, Route

_TAG = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
_OWNER = re.compile(r'name: "([^"]*)" id: "([^"]*)"')
_OWN_CHAIN = re.compile(r"CNI-(?:DN-|SN-)?[0-9a-f]{12,}")
_SHARED_CHAINS = ("CNI-HOSTPORT", "CNI-FORWARD", "CNI-ADMIN", "CNI-ISOLATION")
_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON


@dataclass(frozen=True)
class Mark:
    """A rule, element or chain. tag: its owner's, "" for none; owner: network and container as
    rules of iptables name them; port: of the host, that leads to the address."""

    place: str
    text: str
    tag: str = ""
    addresses: tuple[str, ...] = ()
    owner: tuple[str, str] | None = None
    chain: str = ""
    port: int = 0


@dataclass(frozen=True)
class Tracked:
    """A UDP entry of connection tracking, its two tuples as (source, destination)."""

    original: tuple[str, str]
    reply: tuple[str, str]
    text: str


@dataclass
class Sandbox:
    """A container's namespace. interfaces: those besides lo; value: of `SYSCTL`."""

    interfaces: dict[str, Link]
    addresses: dict[str, list[str]]
    defaults: list[str]  # the interfaces that default routes leave by
    value: str


@dataclass
class World:
    """All of it."""

    links: dict[int, Link]
    addresses: list[Address]
    routes: list[Route]
    neighbours: list[Neighbour]
    qdiscs: list[Qdisc]
    marks: list[Mark]
    tracked: list[Tracked]
    leases: dict[tuple[str, str], tuple[str, str]]  # (network, address): container, interface
    cached: list[str]
    files: list[str]
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)

    @property
    def leased(self) -> set[tuple[str, str, str]]:
        """Who has a lease: network, container, interface."""
        return {(network, *holder) for (network, _), holder in self.leases.items()}


class Observer:
    """Reads the world; keeps a socket in each namespace for it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._readers: dict[int, Reader] = {}
        self._usable = re.compile(rf"\b{re.escape(lab.base)}\.\d+\.\d+\b")
        self._nft = _Nft()

    def forget(self) -> None:
        """Close what is open, so that namespaces can go."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def leave(self, slot: str) -> None:
        """The same for one container's, before it goes."""
        reader = self._readers.pop(self._lab.slots[slot], None)
        if reader is not None:
            reader.close()

    def links(self) -> list[Link]:
        """The host's, for who waits for one."""
        return self._reader(self._lab.host).links()

    def look(self) -> World:
        reader = self._reader(self._lab.host)
        return World(
            {link.index: link for link in reader.links()},
            reader.addresses(),
            reader.routes(),
            reader.neighbours(),
            reader.qdiscs(),
            [*self._nftables(), *self._iptables()],
            _tracked(),
            _leases(),
            sorted(_names(CACHE)),
            sorted(path for folder in RUN for path in _files(folder)),
            {slot: self._sandbox(slot) for slot in self._lab.slots},
        )

    def _reader(self, fd: int) -> Reader:
        if fd not in self._readers:
            with inside(fd):
                self._readers[fd] = Reader()
        return self._readers[fd]

    def _sandbox(self, slot: str) -> Sandbox:
        reader = self._reader(self._lab.slots[slot])
        links = {link.index: link for link in reader.links() if link.name != "lo"}
        addresses: dict[str, list[str]] = {link.name: [] for link in links.values()}
        for one in reader.addresses():
            if one.index in links and "." in one.address:
                addresses[links[one.index].name].append(one.address)
        defaults = [
            links[route.index].name
            for route in reader.routes()
            if route.destination == "default" and "." in route.gateway and route.index in links
        ]
        return Sandbox(
            {link.name: link for link in links.values()},
            addresses,
            defaults,
            self._lab.value(slot),
        )

    # --- rules -----------------------------------------------------------------------------------

    def _nftables(self) -> Iterator[Mark]:
        listing = json.loads(self._nft.list())
        self._has_iptables = False
        for item in listing["nftables"]:
            for kind, body in item.items():
                if kind in ("set", "map"):
                    place = f"nftables: {kind} {body['family']} {body['table']} {body['name']}"
                    for element in body.get("elem", ()):
                        yield from self._element(place, element)
                elif kind == "rule":
                    if body["family"] in ("ip", "ip6") and body["table"] in ("nat", "filter"):
                        self._has_iptables = True
                        continue
                    place = f"nftables: rule {body['family']} {body['table']} {body['chain']}"
                    yield from self._mark(place, body.get("expr"), body.get("comment", ""))

    def _element(self, place: str, element: Any) -> Iterator[Mark]:
        data = None
        if isinstance(element, list):
            element, data = element
        value, comment = element, ""
        if isinstance(element, dict) and "elem" in element:
            value, comment = element["elem"]["val"], element["elem"].get("comment", "")
        port = 0
        if data is not None and isinstance(value, dict):
            port = next((one for one in reversed(value["concat"]) if isinstance(one, int)), 0)
        yield from self._mark(place, [value, data], comment, port)

    def _mark(self, place: str, what: Any, comment: str, port: int = 0) -> Iterator[Mark]:
        text = json.dumps(what)
        tag = _TAG.match(comment)
        addresses = tuple(dict.fromkeys(self._addresses(text)))
        if tag or addresses:
            words = f"{place}: {text} {comment}".strip()
            yield Mark(place, words, tag.group() if tag else "", addresses, port=port)

    def _iptables(self) -> Iterator[Mark]:
        """What iptables keeps in nftables: its matches are not shown there."""
        if not self._has_iptables:
            return
        saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True)
        for line in saved.stdout.splitlines():
            place = "iptables"
            if line.startswith(":"):
                chain = line[1:].partition(" ")[0]
                if _OWN_CHAIN.fullmatch(chain):
                    yield Mark(place, line, chain=chain)
                continue
            addresses = tuple(dict.fromkeys(self._addresses(line)))
            owner = _OWNER.search(line)
            if addresses or owner:
                named = (owner.group(1), owner.group(2)) if owner else None
                yield Mark(f"{place}: {line.split()[1]}", line, "", addresses, named)

    def _addresses(self, text: str) -> Iterator[str]:
        """The addresses in it that are containers': neither a subnet's own nor its gateway's."""
        for found in self._usable.findall(text):
            if found.rpartition(".")[2] not in ("0", "1"):
                yield found


class _Nft:
    """`nft -j list ruleset` without a process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnftables.so.1")
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p

    def list(self) -> bytes:
        library = self._library
        context = ctypes.c_void_p(library.nft_ctx_new(0))
        try:
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            library.nft_ctx_output_set_flags(context, _JSON)
            assert library.nft_run_cmd_from_buffer(context, b"list ruleset") == 0
            listing: bytes = library.nft_ctx_get_output_buffer(context)
            return listing
        finally:
            library.nft_ctx_free(context)


# --- the rest ------------------------------------------------------------------------------------


def _tracked() -> list[Tracked]:
    found = []
    try:
        lines = Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split()
        if words[2] != "udp":
            continue
        sides = {"src": [""], "dst": [""]}
        for word in words:
            name, _, value = word.partition("=")
            if name in sides:
                sides[name].append(value)
        original, reply = zip(sides["src"][1:3], sides["dst"][1:3], strict=True)
        found.append(Tracked(original, reply, line))
    return found


def _leases() -> dict[tuple[str, str], tuple[str, str]]:
    found = {}
    for network in _names(LEASES):
        for name in _names(LEASES / network):
            if name.count(".") == 3 and name.replace(".", "").isdigit():
                content = (LEASES / network / name).read_bytes().decode()
                container, _, interface = content.partition("\r\n")
                found[network, name] = container.strip(), interface.strip()
    return found


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def _files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(root, name)
