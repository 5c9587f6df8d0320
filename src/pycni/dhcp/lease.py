"""Leases, and what is kept of an attachment on disk so that a restarted daemon goes on with it.

One file per attachment in the state directory, which is on a file system that a boot empties: a
container does not outlive that either. Times are in seconds of the boot's own clock
(CLOCK_BOOTTIME), which no one sets and a restart of the daemon does not touch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pycni.dhcp.message import Option, Reply
from pycni.dhcp.wire import ClientIdentity
from pycni.state.files import (
    boot_id,
    make_directories,
    read_file,
    remove_file,
    write_file,
    writer_of,
)

LOG = logging.getLogger(__name__)

_INFINITE = 0xFFFFFFFF  # RFC 2131, section 3.3
_DEFAULT_DURATION = 3600
_SHORTEST = 2  # seconds: whatever a server says, it is not asked more often than each second
_SUFFIX = ".json"
_FORMAT = 1
_OWN = re.compile(r"[0-9a-f]{40}\.json")


def now() -> float:
    """The clock that leases are timed by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Lease:
    """What a server granted: addresses as text, `obtained` and the other times by `now()`.

    renew_at, rebind_at, expires_at: None for a lease without an end. routes: destination and
    router, "" for a router means on the link. dns: as in a result. mtu: as the server says, bytes.
    """

    address: str
    prefix: int
    server: str
    server_mac: str
    obtained: float
    renew_at: float | None
    rebind_at: float | None
    expires_at: float | None
    routers: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    dns: dict[str, Any] = field(default_factory=dict)
    mtu: int | None = None

    @classmethod
    def from_ack(cls, ack: Reply, server_mac: str, asked_at: float) -> Lease:
        """The lease of an ACK. Raises ValueError if it names no usable subnet mask."""
        prefix = ack.prefix
        if prefix is None:
            raise ValueError("DHCP option Subnet Mask not found in DHCPACK")
        duration = ack.seconds(Option.LEASE_TIME)
        if duration is None:
            duration = _DEFAULT_DURATION
        renew_at = rebind_at = expires_at = None
        if duration != _INFINITE:
            duration = max(duration, _SHORTEST)
            renew = ack.seconds(Option.RENEWAL_TIME) or duration * 0.5
            rebind = ack.seconds(Option.REBINDING_TIME) or duration * 0.875
            if not renew <= rebind <= duration:
                renew, rebind = duration * 0.5, duration * 0.875
            renew_at, rebind_at = asked_at + max(renew, 1), asked_at + max(rebind, 1)
            expires_at = asked_at + duration
        return cls(
            address=str(ack.yiaddr),
            prefix=prefix,
            server=str(ack.server or ""),
            server_mac=server_mac,
            obtained=asked_at,
            renew_at=renew_at,
            rebind_at=rebind_at,
            expires_at=expires_at,
            routers=tuple(map(str, ack.routers)),
            routes=tuple((str(route.dst), str(route.router or "")) for route in ack.routes),
            dns=_dns(ack),
            mtu=ack.mtu,
        )


@dataclass(frozen=True)
class LeaseRecord:
    """An attachment with its lease, as it is kept on disk.

    options: what the configuration provides, by code; wanted: the codes it requests. withheld: the
    routes (kernel terms, as JSON) that go with an address that is not ours at present and has been
    taken off the interface or is about to be; None while the address belongs there.
    """

    network: str
    container_id: str
    ifname: str
    netns: str
    options: dict[int, bytes]
    wanted: tuple[int, ...]
    identity: ClientIdentity
    mac: str
    lease: Lease
    withheld: tuple[dict[str, Any], ...] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.network, self.container_id, self.ifname

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["options"] = {str(code): value.hex() for code, value in self.options.items()}
        return {"format": _FORMAT, "boot": boot_id(), **document}

    @classmethod
    def from_json(cls, document: Any) -> LeaseRecord:
        """Raises ValueError, TypeError, KeyError for what is none."""
        if document.pop("format") != _FORMAT:
            raise ValueError("of another format")
        if document.pop("boot") != boot_id():
            raise ValueError("from before this machine was started")
        lease = document["lease"]
        lease["routers"] = tuple(lease["routers"])
        lease["routes"] = tuple((dst, router) for dst, router in lease["routes"])
        withheld = document["withheld"]
        return cls(
            **{
                **document,
                "options": {
                    int(code): bytes.fromhex(value) for code, value in document["options"].items()
                },
                "wanted": tuple(document["wanted"]),
                "identity": _identity(document["identity"]),
                "lease": Lease(**lease),
                "withheld": None if withheld is None else tuple(withheld),
            }
        )


def _identity(value: Any) -> ClientIdentity:
    """An identity as `to_json` writes it, or the list of an earlier release."""
    return ClientIdentity(**value) if isinstance(value, dict) else ClientIdentity(*value)


class Store:
    """The files of a state directory, which is made when missing."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        make_directories(directory, 0o700)

    def save(self, record: LeaseRecord) -> None:
        """Raises OSError."""
        text = json.dumps(record.to_json(), indent=1)
        write_file(self._path(record.key), text.encode(), 0o600)

    def remove(self, key: tuple[str, str, str]) -> None:
        """Raises OSError; a file that is not there is none."""
        remove_file(self._path(key))

    def load(self) -> Iterator[LeaseRecord]:
        """Every record of this boot; files of such a name that hold none are removed.

        So is what a crash left of one that was being written. What has other names is another's.
        """
        for name in sorted(os.listdir(self.directory)):
            path = os.path.join(self.directory, name)
            if not _OWN.match(name):
                continue
            if writer_of(name) is not None:
                remove_file(path)
                continue
            if not name.endswith(_SUFFIX):
                continue
            try:
                yield LeaseRecord.from_json(json.loads(read_file(path, own=True)))
            except OSError as error:
                LOG.warning("%s is not a file to read a lease from: %s", path, error.strerror)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                LOG.warning("removed %s, which holds no lease to go on with: %s", path, error)
                remove_file(path)

    def _path(self, key: tuple[str, str, str]) -> str:
        digest = hashlib.sha256("/".join(key).encode("utf-8", "surrogateescape"))
        return os.path.join(self.directory, digest.hexdigest()[:40] + _SUFFIX)


def _dns(ack: Reply) -> dict[str, Any]:
    found = {
        "nameservers": [str(address) for address in ack.addresses(Option.NAME_SERVER)],
        "domain": ack.text(Option.DOMAIN_NAME),
        "search": list(ack.domains(Option.DOMAIN_SEARCH)),
    }
    return {key: value for key, value in found.items() if value}
