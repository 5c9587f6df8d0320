"""What makes an attachment itself: its owner, its namespace, its links. Plain data, no I/O.

A path says where a namespace is found now, a name what a container calls its interface now; both
are reused later. The kernel's own numbers are not, as long as it runs. They are noted at
ADD, on the host, where no container can write (`pycni.state.attachments`), and every later
operation compares them before it touches anything (`pycni.steps.ownership`).
"""

from __future__ import annotations

import time
from _json import encode_basestring

from pycni.spec.jsontext import JSONError, loads
from pycni.spec.owner import Owner
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self


FOUND = "found"
_EPOCHAL = 1e9  # seconds that no machine has been up for: an earlier version noted the date


def now() -> float:
    """The seconds since the machine was started, a clock that no one can set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NetnsID(Record):
    """What distinguishes a network namespace from all others.

    device and inode: of its file; a namespace that comes later may have the same inode. cookie:
    the kernel's number, never reused; 0 where the kernel gives none (before 5.14).
    """

    device: int
    inode: int
    cookie: int = 0

    def is_same(self, other: NetnsID) -> bool:
        """Whether both are one namespace, as far as is known of them."""
        if self.cookie and other.cookie:
            return self.cookie == other.cookie
        return (self.device, self.inode) == (other.device, other.inode)


class OwnLink(Record):
    """A link that was made for an attachment.

    where: `plan.steps.HOST` or `SANDBOX`, or FOUND for an interface of the sandbox that another
    project's plugin made; name: what it was called at ADD. kind: of an interface whose other end is
    not noted, "" for one whose is; parent: the index of the host's link that it is on, 0 for none;
    inode: of its directory in sysfs, which never changes, 0 where it is not known.
    """

    where: str
    name: str
    index: int
    kind: str = ""
    parent: int = 0
    mac: str = ""
    inode: int = 0


class OwnDevice(Record):
    """A device of the host that an attachment has in its sandbox, as it was on the host.

    inside: what it was called in the sandbox at ADD; the others as of `kernel.marks.Marks`.
    link_netnsid: of the namespace of its other end, as the host numbers that, None for the host.
    """

    inside: str
    name: str
    index: int
    mac: str = ""
    mtu: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    kind: str = ""
    permanent_mac: str = ""
    bus: str = ""
    bus_address: str = ""
    link: int = 0
    link_netnsid: int | None = None


class Part(Record):
    """What one plugin has made and not removed yet.

    plugin: its type; kinds: of its steps, those that can outlive the interface; files: that it
    keeps for its DEL; awaits_delete: whether only its own DEL can remove what it made.
    """

    plugin: str
    kinds: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    awaits_delete: bool = False


class Identity(Record):
    """What is known of one attachment since its ADD.

    path: of its namespace, as the runtime gave it; host: the namespace that its host links are in;
    since: when it was attached, by `now`; parts: of the plugins that have
    attached it and not detached it yet; detaching: whether a DEL of it has begun; devices: of the
    host that it has.
    """

    owner: Owner
    path: str = ""
    netns: NetnsID | None = None
    host: NetnsID | None = None
    since: float = 0.0
    links: tuple[OwnLink, ...] = ()
    addresses: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    detaching: bool = False
    devices: tuple[OwnDevice, ...] = ()

    @property
    def plugins(self) -> tuple[str, ...]:
        """The types of the plugins that have a part in it."""
        return tuple(part.plugin for part in self.parts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of steps of all parts."""
        return tuple(dict.fromkeys(kind for part in self.parts for kind in part.kinds))

    def with_part(
        self,
        plugin: str,
        kinds: Iterable[str] = (),
        files: Iterable[str] = (),
        *,
        awaits_delete: bool = False,
    ) -> Self:
        """The same with what a plugin has made besides."""
        parts = {part.plugin: part for part in self.parts}
        known = parts.get(plugin, Part(plugin))
        kinds, files = _joined(known.kinds, kinds), _joined(known.files, files)
        parts[plugin] = Part(plugin, kinds, files, awaits_delete)
        return self.replace(parts=tuple(parts.values()))

    def without_parts(self, is_gone: Callable[[Part], bool]) -> Self | None:
        """The same without parts that have been removed, as DEL leaves it; None for no part."""
        left = tuple(part for part in self.parts if not is_gone(part))
        return self.replace(parts=left, detaching=True) if left else None

    @property
    def has_made_links(self) -> bool:
        """Whether the attachment's interface was made under this note."""
        return any(link.where != FOUND for link in self.links)

    def link(self, where: str, name: str) -> OwnLink | None:
        """The link that was made under a name."""
        for link in self.links:
            if (link.where, link.name) == (where, name):
                return link
        return None

    def device(self, inside: str) -> OwnDevice | None:
        """The device of the host that was put into the sandbox under a name."""
        for device in self.devices:
            if device.inside == inside:
                return device
        return None


def encode(identity: Identity) -> bytes:
    """An identity as JSON."""
    owner = identity.owner
    links = ",".join(map(_link, identity.links))
    text = (
        f'{{"network":{encode_basestring(owner.network)},'
        f'"containerID":{encode_basestring(owner.container_id)},'
        f'"ifname":{encode_basestring(owner.ifname)},'
        f'"path":{encode_basestring(identity.path)},'
        f'"netns":{_numbers(identity.netns)},"host":{_numbers(identity.host)},'
        f'"since":{identity.since:.6f},'
        f'"links":[{links}],"addresses":[{_texts(identity.addresses)}],'
        f'"parts":[{",".join(map(_part, identity.parts))}],'
        f'"detaching":{"true" if identity.detaching else "false"}{_devices(identity.devices)}}}\n'
    )
    return text.encode("utf-8", "backslashreplace")


def decode(data: bytes) -> Identity | None:
    """An identity from JSON; None for anything else."""
    try:
        document = loads(data)
        owner = Owner(*(_text(document[key]) for key in ("network", "containerID", "ifname")))
        netns, host = (_netns_id(document[key]) for key in ("netns", "host"))
        since = round(float(document["since"]), 6)  # as it is written
        since = since if since < _EPOCHAL else 0.0
        links = [
            OwnLink(_text(where), _text(name), _number(index), *_link_details(*details))
            for where, name, index, *details in document["links"]
        ]
        addresses = _all_texts(document["addresses"])
        parts = [
            Part(
                _text(item["plugin"]),
                _all_texts(item["kinds"]),
                _all_texts(item["files"]),
                item.get("awaitsDelete") is True,
            )
            for item in document["parts"]
        ]
        path = _text(document["path"])
        detaching = document["detaching"] is True
        devices = tuple(map(_device, document.get("devices", ())))
    except (AttributeError, JSONError, KeyError, TypeError, ValueError):
        return None
    return Identity(
        owner, path, netns, host, since, tuple(links), addresses, tuple(parts), detaching, devices
    )


def _numbers(netns: NetnsID | None) -> str:
    if netns is None:
        return "null"
    return f"[{netns.device},{netns.inode},{netns.cookie}]"


def _netns_id(value: Any) -> NetnsID | None:
    if value is None:
        return None
    device, inode, cookie = map(_number, value)
    return NetnsID(device, inode, cookie)


def _link(link: OwnLink) -> str:
    text = f"{encode_basestring(link.where)},{encode_basestring(link.name)},{link.index}"
    if link.kind:
        kind, mac = encode_basestring(link.kind), encode_basestring(link.mac)
        text += f",{kind},{link.parent},{mac},{link.inode}"
    return f"[{text}]"


def _link_details(
    kind: Any = "", parent: Any = 0, mac: Any = "", inode: Any = 0
) -> tuple[str, int, str, int]:
    return _text(kind), _number(parent), _text(mac), _number(inode)


def _part(part: Part) -> str:
    kinds, files = _texts(part.kinds), _texts(part.files)
    more = ',"awaitsDelete":true' if part.awaits_delete else ""
    name = encode_basestring(part.plugin)
    return f'{{"plugin":{name},"kinds":[{kinds}],"files":[{files}]{more}}}'


_DEVICE_TEXTS = ("inside", "name", "mac", "alias", "kind", "permanent_mac", "bus", "bus_address")
_DEVICE_NUMBERS = ("index", "mtu", "link")


def _devices(devices: Iterable[OwnDevice]) -> str:
    """The entry for them; most attachments have none."""
    written = []
    for device in devices:
        texts = (f'"{key}":{encode_basestring(getattr(device, key))}' for key in _DEVICE_TEXTS)
        numbers = (f'"{key}":{getattr(device, key)}' for key in _DEVICE_NUMBERS)
        netnsid = "null" if device.link_netnsid is None else device.link_netnsid
        more = f'"altnames":[{_texts(device.altnames)}],"link_netnsid":{netnsid}'
        written.append(f"{{{','.join((*texts, *numbers, more))}}}")
    return f',"devices":[{",".join(written)}]' if written else ""


def _device(item: Any) -> OwnDevice:
    kept: dict[str, Any] = {key: _text(item[key]) for key in _DEVICE_TEXTS}
    kept.update((key, _number(item[key])) for key in _DEVICE_NUMBERS)
    netnsid = item["link_netnsid"]
    return OwnDevice(
        **kept,
        altnames=_all_texts(item["altnames"]),
        link_netnsid=None if netnsid is None else _number(netnsid),
    )


def _joined(before: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*before, *more)))


def _texts(texts: Iterable[str]) -> str:
    return ",".join(map(encode_basestring, texts))


def _all_texts(values: Any) -> tuple[str, ...]:
    return tuple(map(_text, values))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text was expected")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a number was expected")
    return value
