"""The file in which tuning notes, for its DEL, what an attachment had before its ADD.

`<dataDir>/<containerID>_<ifName>.json`, in the reference's form, with the sysctls and the network's
name besides. Used by tuning.
"""

from __future__ import annotations

from pycni.plan.steps import SANDBOX, LinkSettings, Sysctl
from pycni.spec.errors import invalid_config
from pycni.spec.fields import Config, Flag, Integer, MACAddress, MapOf, Text, field
from pycni.spec.jsontext import dumps
from pycni.spec.versions import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from pycni.plan.plan import Plan
    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.fields import Fault
    from pycni.state.documents import Documents

_TRIED = "pycni.tried"
MAX_MTU = (1 << 31) - 1


class Settings(Config):
    """What can be asked for, and what is noted of it; None for nothing."""

    sysctl: dict[str, str] | None = field(
        "sysctl", MapOf(Text()), None, doc="by key below net.; IFNAME stands for the interface"
    )
    mac: str | None = field("mac", MACAddress(), None, doc="the interface's MAC address")
    promisc: bool | None = field(
        "promisc", Flag(), None, doc="true: set the interface promiscuous; false: leave it"
    )
    mtu: int | None = field("mtu", Integer(0, MAX_MTU), None, doc="bytes; 0: leave it")
    allmulti: bool | None = field("allmulti", Flag(), None, doc="receive all multicast frames")
    txqlen: int | None = field(
        "txQLen", Integer(0, MAX_MTU), None, doc="length of the transmit queue, packets"
    )


class Saved(Settings):
    """What a backup file holds: what was there before ADD. The network is for GC."""

    network: str = field("network", Text(), "", doc="the network's name")


class Backup:
    """The file in which ADD notes for DEL what an attachment had before.

    Used in a `with` block: an exception in it takes back what was saved.
    """

    def __init__(self, documents: Documents, request: Request) -> None:
        self._documents = documents
        self._request = request
        self._name = file_name(request.container_id, request.ifname)
        self._before: dict[str, Any] | None = None
        self._written = False

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

        What an earlier ADD noted stays where its setting is in force: what there was before it
        counts.
        """
        if not plan.steps:
            return
        values = _values(present)
        self._before = self._documents.read(self._name)
        earlier, wanted = _saved(self._before), _values(plan)
        for name in ("mac", "promisc", "mtu", "allmulti", "txqlen"):
            noted = getattr(earlier, name)
            if noted is not None and values.get(name) in (None, wanted.get(name)):
                values[name] = noted
        for key, noted in (earlier.sysctl or {}).items():
            if values["sysctl"].get(key) in (None, wanted["sysctl"].get(key)):
                values["sysctl"][key] = noted
        values["sysctl"] = values["sysctl"] or None
        saved = Saved(**values, network=self._request.network)
        self._written = True
        self._documents.write(self._name, dumps(saved.to_json(), indent=1))

    def restoration(self, asked: Settings) -> list[Step]:
        """The steps that put everything back; one each, so that they fail alone."""
        saved = _saved(self._documents.read(self._name))
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
        # The file is not the configuration: whoever could write it may not set others than ADD may.
        own = {key: value for key, value in (saved.sysctl or {}).items() if _is_net_path(key)}
        if not own:
            return own
        ifname = self._request.ifname
        wanted = {sysctl_key(key, ifname): value for key, value in (asked.sysctl or {}).items()}
        for name in self._documents.names():
            if name == self._name or not name.startswith(f"{self._request.container_id}_"):
                continue
            document = self._documents.read(name) or {}
            theirs = _saved(document).sysctl or {}
            above = [key for key in own if key in theirs and theirs[key] == wanted.get(key)]
            if above:
                document["sysctl"] = {**theirs, **{key: own.pop(key) for key in above}}
                self._documents.write(name, dumps(document, indent=1))
        return own

    def keep_once(self) -> bool:
        """Keep what is noted for another DEL; False if one has failed before.

        What passes in a moment is then put right, and what does not holds nobody up for good.
        """
        document = self._documents.read(self._name) or {}
        if document.get(_TRIED):
            return False
        self._documents.write(self._name, dumps({**document, _TRIED: True}, indent=1))
        return True

    def remove(self) -> None:
        self._documents.remove(self._name)


def sysctl_key(key: str, ifname: str) -> str:
    """A key as the kernel's path below /proc/sys, for this interface. Raises CNIError.

    Dots and slashes mean what they do for sysctl(8).
    """
    dot, slash = key.find("."), key.find("/")
    path = key
    if dot >= 0 and (slash < 0 or dot < slash):
        path = key.translate({ord("."): "/", ord("/"): "."})
    path = path.replace("IFNAME", ifname, 1)
    if not _is_net_path(path):
        raise invalid_config(
            f"invalid net sysctl key: {quote(key)}",
            "keys of the network namespace can be set, such as net.ipv4.conf.IFNAME.arp_filter",
        )
    return path


def _is_net_path(path: str) -> bool:
    """Whether this is the path of a parameter of network namespaces, below /proc/sys."""
    parts = path.split("/")
    return parts[0] == "net" and len(parts) > 2 and not {"", ".", ".."}.intersection(parts)


def file_name(container_id: str, ifname: str) -> str:
    """The name of an attachment's file."""
    return f"{container_id}_{ifname}.json"


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


def _saved(document: dict[str, Any] | None) -> Saved:
    faults: list[Fault] = []
    return Saved.read(document or {}, "", faults)
