"""What must hold, whatever a container, a tenant or a second caller does.

1. Each operation ends: in success, or with an error object that is about what was found.
2. No link, address, route, rule, lease or file of another is touched: the host and the neighbour's
   namespace are as before, and the neighbour's CHECK finds nothing.
3. Nothing of the attacker's stays once it was deleted and is quiet.
4. An address is not free while somebody can still answer for it: no namespace of the attacker's has
   an interface that leads to the host's network any more.
5. What a tenant writes leads root nowhere but where SECURITY.md says: no other file is opened,
   made, removed or looked at, no program is run, nothing is connected to (`kept_within`), and no
   rule does more than it is for (`rules_are_plain`).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from adversary.witness import CONNECTION, LIBRARY, LOOK, PROGRAM, Touch
from harness.host import Snapshot, ip_json, nft_list, run_in
from harness.namespaces import Namespace
from harness.plugin import PluginRun
from harness.worlds import World, difference
from pycni.kernel.netfilter.iptables import SYSTEM_PATH
from pycni.spec.errors import INTERNAL

# Of the host's network, or of a part of it, wherever they are.
_LOWER = ("macvlan", "macvtap", "ipvlan", "ipvtap", "vlan")
_TIMEOUT = 5.0  # seconds for the kernel to take links apart


# The table "Where a configuration may lead root" of SECURITY.md.
_ALLOWED = {
    "host-local": ("/var/lib/cni", "/run/cni", "/run/cni-ipam-state", "/etc/resolv.conf",
                   "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/etc/cni"),
    "tuning": ("/run/cni/tuning", "/var/lib/cni/tuning", "/etc/cni/tuning/allowlist.conf"),
    "flannel": ("/var/lib/cni/flannel", "/run/cni/flannel", "/run/flannel", "/etc/cni"),
    "dhcp": ("/run/cni",),
    "debug": ("/var/log/pycni",),
    "noop": ("/run/cni/noop",),
    "tap": ("/dev/net/tun", "/proc/thread-self/attr"),
    "runtime": ("/var/lib/cni",),
}  # fmt: skip
# Of each call: its log, what is noted of attachments, namespaces, the administrator's file.
_OF_ALL = ("/var/log/pycni", "/var/log/cni", "/run/pycni", "/run/netns", "/dev/null",
           "/etc/cni/pycni/allowed-paths.conf")  # fmt: skip
_PACKAGES = tuple(
    {
        str(Path(path).resolve())
        for path in (sys.prefix, sys.base_prefix + "/lib", *sys.path)
        if path
    }
)
_KERNEL = re.compile(
    r"/proc(/sys|/self|/sys/kernel/random/boot_id|/sys/net/.+|/net/\w+"
    r"|/\d+(/(mountinfo|ns/net|root/run/netns/.+))?"
    r"|/(self|thread-self)/(mountinfo|(ns|net|task)/.+))?"
    r"|/sys/devices/.+|/sys/class/net/[^/]+|/sys/bus/(pci|auxiliary)/devices/[^/]+(/.+)?"
)
# What a rule of nftables may do with packets but send them to its container.
_MATCHES = {"match", "xt", "counter", "limit", "quota"}
# Where programs are looked for, and what says whether firewalld decides.
_PATH = (*os.environ["PATH"].split(":"), *SYSTEM_PATH.split(":"))
_LOOKED_FOR = re.compile(
    f"({'|'.join(map(re.escape, _PATH))})"
    "/(ip6?tables[a-z-]*|xtables-nft-multi|firewalld|ip)"
    "|/etc/alternatives/ip6?tables[a-z-]*|/var/run/dbus/system_bus_socket"
)
_PROGRAM = re.compile(
    r"(/usr)?/s?bin/ip6?tables(-nft|-legacy)?"
    r"(-save -t [a-z]+|-restore --noflush --wait=\d+| --version)"
)


_CONNECTIONS = ("('/var/run/dbus/system_bus_socket',)",)  # asked for firewalld


def ended(what: str, run: PluginRun) -> Iterator[str]:
    """1."""
    if not run.code:
        return
    error = run.result
    if error["code"] == INTERNAL or "internal error" in error["msg"] or not error["msg"]:
        yield f"{what} did not foresee what it found: {error}"


def answered(what: str, run: PluginRun) -> Iterator[str]:
    """1, where all that a caller sees is looked at: one document on stdout, and no traceback."""
    yield from ended(what, run)
    if "Traceback" in run.stdout + run.stderr:
        yield f"{what} has a traceback: {run.stdout}{run.stderr}"
    if run.code not in (0, 1):
        yield f"{what} ended with exit code {run.code}: {run.stderr}"
    try:
        run.stdout.encode()
        said = json.loads(run.stdout) if run.stdout.strip() else {}
    except ValueError as error:
        yield f"{what}: stdout is no document: {error}: {run.stdout!r}"
        return
    if not isinstance(said, dict) or (run.code and not _is_error(said)):
        yield f"{what}: neither a result nor an error object: {run.stdout!r}"
    elif run.code and "the system refused it at" in said.get("details", ""):
        yield f"{what} did not foresee what the system refused: {said}"


def _is_error(said: dict[str, Any]) -> bool:
    code, details = said.get("code"), said.get("details", "")
    return type(code) is int and isinstance(said.get("msg"), str) and isinstance(details, str)


def kept_within(
    touches: Iterable[Touch], plugins: Collection[str], also: Collection[str] = ()
) -> Iterator[str]:
    """5. plugins: those whose keys lead to files; also: what the caller has chosen itself."""
    roots = (*_OF_ALL, *also, *(root for name in plugins for root in _ALLOWED.get(name, ())))
    for touch in touches:
        if not _is_within(touch, roots, plugins):
            yield f"{touch.what}: {touch.path!r}"


def _is_within(touch: Touch, roots: Iterable[str], plugins: Collection[str]) -> bool:
    path = touch.path
    if touch.kind == PROGRAM:
        return _PROGRAM.fullmatch(path) is not None
    if touch.kind == LIBRARY:
        return path == "libnftables.so.1"
    if touch.kind == CONNECTION:
        is_daemon = "dhcp" in plugins and path.startswith(("('/run/cni/", "('/run/cni'"))
        is_daemon = is_daemon and "/.." not in path
        return is_daemon or path in _CONNECTIONS
    if touch.kind == LOOK:
        # Hooks by a mere name are looked for where programs are.
        is_hook = "debug" in plugins and path.rpartition("/")[0] in _PATH
        if is_hook or _LOOKED_FOR.fullmatch(path):
            return True
    return _leads_to(path, roots)


def _leads_to(path: str, roots: Iterable[str]) -> bool:
    if not {".", ".."}.isdisjoint(path.split("/")[:-1]) or path.endswith("/.."):
        return False
    if _KERNEL.fullmatch(path) or _is_below(path, _PACKAGES):
        return True
    normal = re.sub("/+", "/", path).replace("/var/run/", "/run/", 1)
    # Directories on the way to an allowed one may have to be made.
    return _is_below(normal, roots) or normal in ("/run/cni", "/var/lib/cni", "/run", "/var/log")


def _is_below(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def port(name: str) -> dict[str, Any]:
    """What a tenant must not change of a bridge's port that leads to another's container."""
    (link,) = ip_json("-d", "link", "show", "dev", name) or [{}]
    own = ("ifname", "mtu", "address", "master", "qdisc", "ifalias")
    of_port = link.get("linkinfo", {}).get("info_slave_data", {})
    return {key: link.get(key) for key in own} | {
        key: of_port.get(key) for key in ("isolated", "hairpin", "guard", "learning", "flood")
    }


def rules_are_plain() -> Iterator[str]:
    """5. Where a tenant's words are in a rule: it matches, and leads to its container's chain."""
    for item in nft_list():
        rule = item.get("rule", {})
        kinds = [next(iter(part)) for part in rule.get("expr", ())]
        if rule.get("chain") == "port-map-conditional" and (
            kinds.pop() != "jump" or set(kinds) - _MATCHES
        ):
            yield f"a rule of nftables does more than match: {rule}"
    for program in ("iptables-save", "ip6tables-save"):
        for line in run_in(None, [program, "-t", "nat"]).stdout.splitlines():
            jumps = re.findall(r" -[jg] (\S+)", line)
            if line.startswith("-A CNI-HOSTPORT-DNAT ") and (
                len(jumps) != 1 or not jumps[0].startswith("CNI-DN-")
            ):
                yield f"a rule of iptables does more than match: {line}"


def untouched(world: World, before: Snapshot, *, neighbour: Namespace | None) -> Iterator[str]:
    """2 and 3. before: `seen` of the time before the attack."""
    until = time.monotonic() + _TIMEOUT
    while True:
        now = seen(world, neighbour)
        wrong = [
            f"{place} {section}: {difference(before[place].get(section), now[place].get(section))}"
            for place in before
            for section in {**before[place], **now[place]}
            if before[place].get(section) != now[place].get(section)
        ]
        if not wrong or time.monotonic() > until:
            yield from wrong
            return
        time.sleep(0.05)


def seen(world: World, neighbour: Namespace | None) -> Snapshot:
    """All that is not the attacker's own."""
    found = world.look()
    mine = world.tied  # links that are one with the attacker's namespace
    host = {section: _without(items, mine) for section, items in found["host"].items()}
    whole: Snapshot = {"host": host, "files": found["files"]}
    if neighbour is not None:
        whole["neighbour"] = {
            "links": [_lasting(link) for link in ip_json("link", netns=neighbour)],
            "addresses": run_in(neighbour, ["ip", "-o", "address"]).stdout.split("valid_lft")[0],
            "routes": ip_json("route", netns=neighbour),
        }
    return whole


def unanswered(spaces: Iterable[Namespace]) -> Iterator[str]:
    """4."""
    theirs = {space.name: _with_another_end(space) for space in spaces}
    between = _ends(link for links in theirs.values() for link in links)
    on_host = _ends(_with_another_end(None))
    for name, links in theirs.items():
        for link in links:
            kind = link.get("linkinfo", {}).get("info_kind", "")
            other_end = link["link_index"], link["ifindex"]
            if kind in _LOWER or (other_end in on_host and other_end not in between):
                yield f"{kind} {link['ifname']} in {name} still leads to the host's network"


def _ends(links: Iterable[dict[str, Any]]) -> set[tuple[int, int]]:
    return {(link["ifindex"], link["link_index"]) for link in links}


def _with_another_end(space: Namespace | None) -> list[dict[str, Any]]:
    """Links whose other end, or lower one, is in another namespace."""
    found = ip_json("-d", "link", netns=space)
    return [link for link in found if "link_netnsid" in link and link.get("link_index")]


def _without(items: Any, mine: set[str]) -> Any:
    if not isinstance(items, list):
        return items
    kept = [
        item
        for item in items
        if not (isinstance(item, dict) and {item.get("ifname"), item.get("dev")} & mine)
    ]
    return [_lasting(item) if isinstance(item, dict) else item for item in kept]


def _lasting(item: dict[str, Any]) -> dict[str, Any]:
    """Without what the kernel changes by itself when a peer comes and goes."""
    moving = ("operstate", "flags", "linkinfo", "link_index", "ifindex")
    return {key: value for key, value in item.items() if key not in moving}
