"""The file in which tuning notes, for its DEL, what an attachment had before its ADD.

`<dataDir>/<containerID>_<ifName>.json`, in the reference's form; besides it has the sysctls, whose
it is, and what is in force, for a list may have several tunings. Used by tuning.
"""

from __future__ import annotations

from pycni.kernel import sysctl
from pycni.plan.steps import SANDBOX, LinkSettings, Sysctl
from pycni.spec.errors import CNIError, invalid_config
from pycni.spec.jsontext import dumps
from pycni.spec.owner import Owner
from pycni.spec.schema import Config, Flag, Integer, MACAddress, MapOf, Object, Text, field
from pycni.spec.versions import quote
from pycni.state.files import is_file_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    from pycni.plan.plan import Plan
    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.state.attachment_files import Documents

# How many ADDs have noted something, and how many DELs have failed: a list may have more tunings.
_ADDED, _TRIED = "pycni.added", "pycni.tried"
MAX_MTU = (1 << 31) - 1
ATTRIBUTES = ("mac", "promisc", "mtu", "allmulti", "txqlen")


class Settings(Config):
    """What can be asked for, and what is noted of it; None for nothing."""

    sysctl: dict[str, str] | None = field(
        "sysctl",
        MapOf(Text()),
        None,
        doc="values by key, only of keys below `net.`; `IFNAME` stands for the interface",
    )
    mac: str | None = field(
        "mac", MACAddress(), None, doc="the interface's address, which the result has too"
    )
    promisc: bool | None = field(
        "promisc",
        Flag(),
        None,
        doc="true: the interface is promiscuous; false leaves it",
        default_doc="leave it",
    )
    mtu: int | None = field(
        "mtu", Integer(0, MAX_MTU), None, doc="bytes; 0 leaves it", default_doc="leave it"
    )
    allmulti: bool | None = field(
        "allmulti", Flag(), None, doc="receive all multicast frames, or not", default_doc="leave it"
    )
    txqlen: int | None = field(
        "txQLen",
        Integer(0, MAX_MTU),
        None,
        doc="length of the transmit queue, packets",
        default_doc="leave it",
    )


class Saved(Settings):
    """What a backup file holds: what was there before ADD, and whose it is.

    applied: what the attachment's tunings have set since, the last one's values.
    """

    network: str = field("network", Text(), "", doc="the network's name")
    container_id: str = field("containerID", Text(), "", doc="the container's id")
    ifname: str = field("ifname", Text(), "", doc="the interface's name")
    applied: Settings = field("applied", Object(Settings), Settings(), doc="what is in force")

    def is_of(self, owner: Owner, name: str) -> bool:
        """Whether the file of this name is the attachment's; the reference's does not say so."""
        if not self.container_id:
            return name == file_name(owner.container_id, owner.ifname)
        return owner == Owner(self.network or owner.network, self.container_id, self.ifname)


class Backup:
    """The file in which ADD notes for DEL what an attachment had before.

    Used in a `with` block: an exception in it takes back what was saved.
    """

    def __init__(self, documents: Documents, request: Request) -> None:
        self._documents = documents
        self._request = request
        self._name = _name_of(documents, request)
        self._before: dict[str, Any] | None = None
        self._written = False

    @property
    def path(self) -> str:
        return self._documents.path(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None or not self._written:
            return
        if self._before is None:
            self.remove()
        else:
            self._documents.write(self._name, dumps(self._before, indent=1))

    def save(self, plan: Plan, present: Plan) -> None:
        """Note the present values of what a plan will set.

        Where what was set before is in force still, what is noted of it stays: what there was
        before the first tuning of the attachment counts.
        """
        if not plan.steps:
            return
        values = _values(present)
        self._before = self._documents.read(self._name)
        earlier, wanted = saved_in(self._before), _values(plan)
        applied = earlier.applied
        for name in ATTRIBUTES:
            noted, in_force = getattr(earlier, name), getattr(applied, name)
            if noted is not None and values.get(name) in (None, wanted.get(name), in_force):
                values[name] = noted
        sysctls = applied.sysctl or {}
        for key, noted in (earlier.sysctl or {}).items():
            in_force = sysctls.get(key)
            if values["sysctl"].get(key) in (None, wanted["sysctl"].get(key), in_force):
                values["sysctl"][key] = noted
        values["sysctl"] = values["sysctl"] or None
        given = {name: wanted.get(name) for name in ATTRIBUTES if wanted.get(name) is not None}
        now = applied.replace(**given, sysctl={**sysctls, **wanted["sysctl"]} or None)
        owner = self._request.owner
        saved = Saved(
            **values,
            network=owner.network,
            container_id=owner.container_id,
            ifname=owner.ifname,
            applied=now,
        )
        self._written = True
        document = saved.to_json()
        if self._before is not None:
            document[_ADDED] = max(_count(self._before, _ADDED), 1) + 1
        self._documents.write(self._name, dumps(document, indent=1))

    def hold(self, present: Plan) -> None:
        """Note in which form the kernel shows what has been set, for CHECK to compare with."""
        held = _values(present)["sysctl"]
        document = self._documents.read(self._name)
        applied = saved_in(document).applied
        shown = {**(applied.sysctl or {}), **held}
        if document is not None and shown != (applied.sysctl or {}):
            now = applied.replace(sysctl=shown).to_json()
            self._documents.write(self._name, dumps({**document, "applied": now}, indent=1))

    def restoration(self, asked: Settings) -> list[Step]:
        """The steps that put everything back; one each, so that they fail alone."""
        saved = saved_in(self._documents.read(self._name))
        ifname = self._request.ifname
        steps: list[Step] = [
            Sysctl(SANDBOX, key, value, required=True)
            for key, value in self._own_sysctls(saved, asked).items()
        ]
        for change in (
            {"mtu": saved.mtu or 0},
            {"mac": saved.mac or ""},
            {"promiscuous": saved.promisc},
            {"allmulti": saved.allmulti},
            {"txqlen": saved.txqlen},
        ):
            step = LinkSettings(SANDBOX, ifname, **change)
            if step != LinkSettings(SANDBOX, ifname):
                steps.append(step)
        return steps

    def _own_sysctls(self, saved: Saved, asked: Settings) -> dict[str, str]:
        """The sysctls to put back.

        Where another attachment of the container was set up on top of ours, its file gets what
        there was before, for its own DEL.
        """
        # The file is not the configuration: who could write it may not set others than ADD may.
        own = {key: value for key, value in (saved.sysctl or {}).items() if _is_net_path(key)}
        if not own:
            return own
        ifname = self._request.ifname
        wanted = {}
        for key, value in (asked.sysctl or {}).items():
            try:
                wanted[sysctl_key(key, ifname)] = value
            except CNIError:
                continue  # no ADD has set it
        wanted |= saved.applied.sysctl or {}
        for name in self._documents.names():
            document = self._documents.read(name) or {} if name != self._name else {}
            if _container_of(document, name) != self._request.container_id:
                continue
            theirs = saved_in(document).sysctl or {}
            above = [key for key in own if key in theirs and theirs[key] == wanted.get(key)]
            if above:
                document["sysctl"] = {**theirs, **{key: own.pop(key) for key in above}}
                self._documents.write(name, dumps(document, indent=1))
        return own

    def keep_once(self) -> bool:
        """Keep what is noted for another DEL; False if one of each tuning has failed before.

        What passes in a moment is then put right, and what does not delays no DEL for good.
        """
        document = self._documents.read(self._name) or {}
        tried = _count(document, _TRIED) + 1
        if tried > max(_count(document, _ADDED), 1):
            return False
        self._documents.write(self._name, dumps({**document, _TRIED: tried}, indent=1))
        return True

    def remove(self) -> None:
        self._documents.remove(self._name)


def _count(document: Mapping[str, Any], key: str) -> int:
    value = document.get(key)
    return value if isinstance(value, int) else 0


def in_force(documents: Documents, request: Request) -> Settings:
    """What the attachment's tunings have set, as far as is noted."""
    return saved_in(documents.read(_name_of(documents, request))).applied


def sysctl_key(key: str, ifname: str) -> str:
    """A key as the kernel's path below /proc/sys, for this interface. Raises CNIError.

    Dots and slashes mean what they do for sysctl(8).
    """
    path = sysctl.with_slashes(key).replace("IFNAME", ifname, 1)
    if not _is_net_path(path):
        raise invalid_config(
            f"invalid net sysctl key: {quote(key)}",
            "keys of the network namespace can be set, such as net.ipv4.conf.IFNAME.arp_filter",
        )
    return path


def _is_net_path(path: str) -> bool:
    """Whether this is the path of a parameter of network namespaces, below /proc/sys."""
    parts = path.split("/")
    return parts[0] == "net" and len(parts) > 2 and sysctl.NO_PARTS.isdisjoint(parts)


def file_name(container_id: str, ifname: str) -> str:
    """The name of an attachment's file."""
    return f"{container_id}_{ifname}.json"


def _name_of(documents: Documents, request: Request) -> str:
    """The file of an attachment: another one's may have its name, made of other parts."""
    name = file_name(request.container_id, request.ifname)
    if not is_file_name(name):
        return file_name(request.owner.tag, request.ifname)
    document = documents.read(name)
    if document is not None and saved_in(document).is_of(request.owner, name):
        return name
    second = file_name(request.owner.tag, request.ifname)
    return name if document is None and documents.read(second) is None else second


def _container_of(document: dict[str, Any], name: str) -> str:
    """Whose a file is; by its name where it does not say."""
    if not document:
        return ""
    container: str = saved_in(document).container_id
    return container or name.removesuffix(".json").rpartition("_")[0]


def _values(plan: Plan) -> dict[str, Any]:
    """What a plan sets, as the keys of `Settings`."""
    values: dict[str, Any] = {"sysctl": {}}
    for step in plan.steps:
        if isinstance(step, Sysctl):
            values["sysctl"][step.key] = step.value
        elif isinstance(step, LinkSettings):
            values.update(
                mac=step.mac or None,
                promisc=step.promiscuous,
                mtu=step.mtu or None,
                allmulti=step.allmulti,
                txqlen=step.txqlen,
            )
    return values


def saved_in(document: dict[str, Any] | None) -> Saved:
    """A backup file's document; what cannot be read of it counts as not noted."""
    return Saved.read_lenient(document or {}, "", [])
