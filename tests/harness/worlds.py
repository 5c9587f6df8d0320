"""A host of its own for a plugin, ready for an attachment, and all that can be seen of it.

Used where a plugin is tried over and over: a world is made, looked at and left in some 50 ms.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from harness.attachment import Attachment
from harness.chained import make_veth, previous_result
from harness.host import NOTES, Snapshot, forget_attachments, ipset_elements, run_in
from harness.namespaces import Namespace, enter_new_netns, inside
from harness.plugin import PluginRun, call_plugin

Config = dict[str, Any]

# Any program that as much as lists rules with iptables makes its tables; counters move on their
# own.
_TABLES_OF_IPTABLES = {
    "table ip nat {",
    "table ip6 nat {",
    "table ip filter {",
    "table ip6 filter {",
}
_LEASE_HELPERS = ("lock", "last_reserved_ip.")
_GATEWAYS = ("10.8.0.1/24", "fd00:8::1/64")
_SETTLING = 40  # looks, 25 ms apart
_numbers = itertools.count()


@dataclass(frozen=True)
class Case:
    """A plugin with a configuration, and what it finds.

    prepare: makes on the host what the plugin needs; chained: it works on an interface that is
    there already, and its prevResult; alone: it has no neighbour on the same host, which keeps what
    attachments share; neighbour: keys that the neighbour has otherwise;
    spends: DEL leaves routes of the sandbox or disciplines of its link to go with it, so each
    attachment needs a new one; variant: it does for the most part what another case does.
    """

    name: str
    plugin: str
    keys: Config = field(default_factory=dict)
    prepare: Callable[[World], None] | None = None
    chained: bool = False
    alone: bool = False
    neighbour: Config = field(default_factory=dict)
    spends: bool = False
    variant: bool = False

    @property
    def delegates(self) -> bool:
        """Whether it has its addresses from host-local, besides its own work."""
        return "ipam" in self.keys and self.plugin != "host-local"

    @property
    def reserves(self) -> bool:
        """Whether its addresses are reserved for it in files."""
        return self.delegates and self.keys["ipam"].get("type") == "host-local"


class World:
    """A host's network namespace, which the thread is in, with a sandbox for one attachment.

    shared: another container is attached first, so that what is shared is there already; call,
    version: how plugins are called, and the configuration's version.
    """

    def __init__(
        self,
        case: Case,
        plugins: Path,
        folder: Path,
        *,
        shared: bool,
        call: Callable[..., PluginRun] = call_plugin,
        version: str = "1.1.0",
    ) -> None:
        self.case = case
        self._call = call
        self._version = version
        self.folder = folder / f"world-{next(_numbers)}"
        self.shared = shared and not case.alone
        self._plugins = plugins
        self.stack = ExitStack()
        self._chained = itertools.count()
        # The host's links that are one with the sandbox: they go when it goes.
        self.tied: set[str] = {"lan0"} if case.plugin == "host-device" else set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(enter_new_netns())
            forget_attachments()
            quiet()
            self.folder.mkdir(parents=True)
            self.stack = stack.pop_all()
        try:
            if self.case.prepare is not None:
                self.case.prepare(self)
            if self.shared:
                self.neighbour = self.attachment("neighbour")
                self.neighbour.add()
            self.one = self.attachment("one")
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def sandbox(self) -> Namespace:
        made = Namespace.create(f"sandbox-{os.getpid()}-{next(_numbers)}")
        self.stack.callback(made.delete)
        with inside(made):
            quiet()
        return made

    def attachment(self, container: str) -> Attachment:
        config: Config = {
            "cniVersion": self._version,
            "name": "net",
            "type": self.case.plugin,
            **_placed(self.case.keys, self.folder),
            **(self.case.neighbour if container == "neighbour" else {}),
        }
        sandbox = self.sandbox()
        if self.case.chained:
            config["prevResult"] = self._on_bridge(sandbox, container)
        return Attachment(
            self._plugins / self.case.plugin, config, sandbox, container, call=self._call
        )

    def _on_bridge(self, sandbox: Namespace, container: str) -> Any:
        """What a bridge plugin would have made, and its result."""
        number = next(self._chained)
        if number == 0:
            run_in(None, ["ip", "link", "add", "br0", "address", "02:00:00:00:00:08",
                          "type", "bridge"])  # fmt: skip
            for gateway in _GATEWAYS:
                nodad = ["nodad"] if ":" in gateway else []
                run_in(None, ["ip", "address", "add", gateway, "dev", "br0", *nodad])
            run_in(None, ["ip", "link", "set", "br0", "up"])
        name = f"veth{number}"
        if container != "neighbour":
            self.tied.add(name)
        own = (f"10.8.0.{number + 2}/24", f"fd00:8::{number + 2}/64")
        make_veth(sandbox, *own, host_name=name)
        run_in(None, ["ip", "link", "set", name, "master", "br0"])
        ips = [
            (address, way.partition("/")[0]) for address, way in zip(own, _GATEWAYS, strict=True)
        ]
        result = previous_result(self._version, sandbox, *ips, host_name=name)
        result["interfaces"].insert(0, {"name": "br0", "mac": "02:00:00:00:00:08"})
        for ip in result["ips"]:
            ip["interface"] = 2
        return result

    def keep(self) -> Config:
        """The key of a GC's configuration that says who is alive: the neighbour, if any."""
        living = [{"containerID": "neighbour", "ifname": "eth0"}] if self.shared else []
        return {"cni.dev/valid-attachments": living}

    def gc(self) -> PluginRun:
        return self.one.run("GC", **self.keep())

    def lose_sandbox(self) -> None:
        """The container is gone, with its namespace, and so are the links that lead there."""
        assert self.one.sandbox is not None
        self.one.sandbox.delete()

    def look(self) -> Snapshot:
        """Everything that an attachment could have left, of host, sandbox and files."""
        sandbox = self.one.sandbox
        seen: Snapshot = {"host": _look(None), "files": self._files()}
        if sandbox is not None and os.path.exists(sandbox.path):
            with inside(sandbox):
                seen["sandbox"] = _look("sandbox")
            if self.case.spends:
                del seen["sandbox"]["routes"]
        if self.case.spends:
            qdiscs = seen["host"]["qdiscs"]
            seen["host"]["qdiscs"] = [one for one in qdiscs if one["dev"] not in self.tied]
            for link in seen["host"]["links"]:
                if link["ifname"] in self.tied:
                    del link["qdisc"]
        return seen

    def settled(self) -> Snapshot:
        """The look of it once two in a row are the same."""
        seen = self.look()
        for _ in range(_SETTLING):
            time.sleep(0.025)
            now = self.look()
            if now == seen:
                return now
            seen = now
        raise AssertionError("it does not come to rest")

    def differs(self, before: Snapshot, *, host_only: bool = False) -> dict[str, Any]:
        """What is not as before, by section, after the kernel has had a moment to finish.

        host_only: the sandbox is gone, and with it what is tied to it.
        """
        if host_only:
            before = self._without_sandbox(before)
        now: Snapshot = {}
        for pause in (0, 0.01, 0.05, 0.1, 0.3):
            time.sleep(pause)
            now = self.look()
            if host_only:
                now = self._without_sandbox(now)
            if now == before:
                return {}
        return {
            f"{place} {section}": difference(before[place].get(section), now[place].get(section))
            for place in before
            if place in now
            for section in {**before[place], **now[place]}
            if before[place].get(section) != now[place].get(section)
        }

    def _without_sandbox(self, seen: Snapshot) -> Snapshot:
        host = {
            section: [
                item
                for item in found
                if not (
                    isinstance(item, dict) and {item.get("ifname"), item.get("dev")} & self.tied
                )
            ]
            if isinstance(found, list)
            else found
            for section, found in seen["host"].items()
        }
        return {"host": host, "files": seen["files"]}

    def _files(self) -> dict[str, bytes]:
        """Files below the folder.

        What a lease directory holds besides leases, or a server for itself, is no trace. Of the
        notes of attachments it counts whether there are any.
        """
        notes = [path for folder in NOTES for path in sorted(folder.glob("*"))]
        return {f"notes/{path.name}": b"" for path in notes} | {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and not path.name.startswith(_LEASE_HELPERS)
            and not {".pycni", "firewalld", "server"} & set(path.parts)
            and path.suffix != ".log"
        }


def quiet() -> None:
    """Addresses are good at once, and interfaces give themselves none."""
    for kind in ("default", "all"):
        for name, value in (("accept_dad", "0"), ("router_solicitations", "0")):
            Path(f"/proc/sys/net/ipv6/conf/{kind}/{name}").write_text(value)
    if Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").exists():
        Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
    run_in(None, ["ip", "link", "set", "lo", "up"])


def _placed(value: Any, folder: Path) -> Any:
    """A configuration with FOLDER in its texts replaced."""
    if isinstance(value, str):
        return value.replace("FOLDER", str(folder))
    if isinstance(value, list):
        return [_placed(item, folder) for item in value]
    if isinstance(value, dict):
        return {key: _placed(item, folder) for key, item in value.items()}
    return value


# --- looking -----------------------------------------------------------------------------------

_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/arp_filter",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_port_range",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/accept_ra",
)
_MOVING = ("stats", "stats64", "hello_timer", "gc_timer", "tcn_timer", "topology_change_timer",
           "preferred_life_time", "valid_life_time", "expires", "bytes", "packets", "drops",
           "overlimits", "requeues", "backlog", "qlen", "hold_timer", "message_age_timer",
           "forward_delay_timer", "num_rx_queues", "age", "fdb_n_learned")  # fmt: skip


def _look(where: str | None) -> dict[str, Any]:
    links, addresses = _ask(["ip", "-d", "-j", "-batch", "-"], "link show\naddress show\n")
    routes, rules = _ask(["ip", "-j", "-batch", "-"], "route show table all\nrule show\n")
    routes6, rules6 = _ask(["ip", "-6", "-j", "-batch", "-"], "route show table all\nrule show\n")
    seen: dict[str, Any] = {
        "links": links,
        "addresses": [{key: link[key] for key in ("ifname", "addr_info")} for link in addresses],
        "routes": routes + routes6,
        "rules": rules + rules6,
        "qdiscs": _ask(["tc", "-j", "qdisc", "show"])[0],
        "sysctls": {key: Path("/proc/sys", key).read_bytes() for key in _SYSCTLS},
    }
    if where is None:
        listing = run_in(None, ["nft", "--stateless", "list", "ruleset"]).stdout
        seen["rules of nft"] = _without_shells(listing)
        seen["elements of ipset"] = ipset_elements()
    return seen


def _ask(argv: list[str], lines: str | None = None) -> list[Any]:
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, check=True)
    decoder, text, found = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(_without_moving([entry for entry in value if entry]))
        text = text[end:].lstrip()
    expected = (lines or "x").count("\n") or 1
    return found + [[]] * (expected - len(found))


def _without_moving(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_moving(item) for key, item in value.items() if key not in _MOVING}
    if isinstance(value, list):
        return [_without_moving(item) for item in value]
    return value


def _without_shells(listing: str) -> list[str]:
    """A ruleset's lines without the empty tables and base chains that iptables makes to look."""
    lines = [line for line in listing.splitlines() if line.strip()]
    while True:
        for index in range(len(lines) - 1, -1, -1):
            if not lines[index].endswith("{") or index + 1 >= len(lines):
                continue
            body = index + 1
            is_base = lines[body].lstrip().startswith("type ") and "hook" in lines[body]
            own = lines[index].lstrip().startswith("chain ")
            if own and is_base and index + 2 < len(lines) and lines[index + 2].strip() == "}":
                del lines[index : index + 3]
                break
            if lines[index] in _TABLES_OF_IPTABLES and lines[body] == "}":
                del lines[index : index + 2]
                break
        else:
            return lines


def difference(before: Any, now: Any) -> Any:
    if isinstance(before, list) and isinstance(now, list):
        return {
            "gone": [item for item in before if item not in now],
            "new": [item for item in now if item not in before],
        }
    if isinstance(before, dict) and isinstance(now, dict):
        return {
            key: (before.get(key), now.get(key))
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        }
    return before, now
