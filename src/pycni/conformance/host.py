"""The ground that a check stands on: a host of its own, and what can be seen there.

`isolate` puts the calling process into fresh namespaces, for good: call it in a process that ends
with the check. What is there is described as lines of text, one a thing, so that a difference reads
as what appeared or went.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

from pycni.kernel import namespace
from pycni.kernel.libc import MS_REC, mount, unshare

CLONE_NEWNS = 0x00020000  # linux/sched.h
MS_PRIVATE = 1 << 18  # linux/mount.h

# Where plugins keep what outlives a call.
PRIVATE_FOLDERS = ("/run", "/var/lib/cni", "/etc/cni")

# By section; the lines of a section are comparable with those of another moment.
Snapshot = dict[str, frozenset[str]]


class HostError(Exception):
    """This machine lacks what the kit needs."""


def isolate() -> None:
    """Give this process a host of its own: network, empty state folders, its own /sys.

    Raises HostError.
    """
    if os.geteuid() != 0:
        raise HostError("the kit makes namespaces, which needs the rights of root")
    if shutil.which("ip") is None:
        raise HostError("there is no program `ip` (iproute2) on the PATH")
    os.makedirs("/var/lib/cni", exist_ok=True)
    try:
        unshare(CLONE_NEWNS | namespace.CLONE_NEWNET)
        mount("none", "/", "none", MS_REC | MS_PRIVATE)
        for folder in PRIVATE_FOLDERS:
            if os.path.isdir(folder):
                mount("conformance", folder, "tmpfs", 0)
        # The old one shows the network interfaces of the machine.
        mount("sysfs", "/sys", "sysfs", 0)
    except OSError as error:
        raise HostError(f"cannot make namespaces: {error.strerror}") from error
    run(["ip", "link", "set", "lo", "up"])


def run(argv: Sequence[str], *, check: bool = True) -> str:
    """Run a program of the kit's own and return its output. Raises HostError if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise HostError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def shell(command: str, **variables: str) -> None:
    """Run a shell command. Raises HostError if it fails.

    What it leaves in the background must have let go of stdout and stderr; it ends with the check.
    """
    done = subprocess.run(
        ["sh", "-ec", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    if done.returncode != 0:
        raise HostError(f"sh -ec {command}: {(done.stderr or done.stdout).strip()}")


def ip(*args: str, netns: str = "", check: bool = True) -> list[dict[str, Any]]:
    """What `ip -j ARGS` prints, in a named namespace if one is given."""
    where = ["-n", netns] if netns else []
    output = run(["ip", *where, "-d", "-j", *args], check=check)
    found: list[dict[str, Any]] = json.loads(output or "[]")
    return [entry for entry in found if entry]


def links(netns: str = "") -> dict[str, dict[str, Any]]:
    """The interfaces by name."""
    return {entry["ifname"]: entry for entry in ip("link", "show", netns=netns)}


def addresses(netns: str = "") -> set[tuple[str, str]]:
    """Interface and address with prefix length, without those the kernel gives links itself."""
    return {
        (entry["ifname"], f"{address['local']}/{address['prefixlen']}")
        for entry in ip("address", "show", netns=netns)
        for address in entry.get("addr_info", ())
        if "local" in address and not address["local"].startswith("fe80:")
    }


def routes(netns: str = "") -> list[dict[str, Any]]:
    """The routes of all tables but the local one, without those the kernel gives IPv6 links."""
    return [
        route
        for family in ("-4", "-6")
        for route in ip(family, "route", "show", "table", "all", netns=netns, check=False)
        if route.get("table") != "local" and not route["dst"].startswith(("fe80:", "ff00:"))
    ]


def snapshot(*netns: str) -> Snapshot:
    """What the host and the named namespaces hold, as far as plugins may change it."""
    seen: Snapshot = {}
    for name in ("", *netns):
        label = f"{name}: " if name else ""
        seen[f"{label}links"] = frozenset(_links(name))
        seen[f"{label}addresses"] = frozenset(
            f"{address} on {link}"
            for link, address in addresses(name)
            if not address.startswith(("127.", "::1/"))  # lo keeps them while it is down
        )
        seen[f"{label}routes"] = frozenset(describe_route(route) for route in routes(name))
        seen[f"{label}rules"] = frozenset(
            f"{family[1:]} {rule['priority']} from {rule.get('src', 'any')} "
            f"to {rule.get('dst', 'any')} table {rule.get('table', rule.get('action', '?'))}"
            for family in ("-4", "-6")
            for rule in ip(family, "rule", "show", netns=name, check=False)
            if "l3mdev" not in rule  # the kernel's own, from the first vrf on
        )
        seen[f"{label}queues"] = frozenset(_queues(name))
    seen["packet filter"] = frozenset(_filter_rules())
    seen["files"] = frozenset(_files(PRIVATE_FOLDERS))
    return seen


def appeared(before: Snapshot, after: Snapshot) -> list[str]:
    """What is in the second but not in the first, each with its section."""
    return [
        f"{section}: {line}"
        for section, lines in after.items()
        for line in sorted(lines - before.get(section, frozenset()))
    ]


def describe_route(route: dict[str, Any]) -> str:
    """A route as `ip route` shows it, in short."""
    words = [route["dst"]]
    for key, word in (("gateway", "via"), ("dev", "dev"), ("table", "table"), ("metric", "metric")):
        if key in route:
            words += [word, str(route[key])]
    return " ".join(words)


def _links(netns: str) -> Iterable[str]:
    for name, link in links(netns).items():
        kind = link.get("linkinfo", {}).get("info_kind", link["link_type"])
        text = f"{name} ({kind}) mtu {link['mtu']}"
        if netns:
            text += f" mac {link.get('address', 'none')} promiscuity {link.get('promiscuity')}"
        elif "master" in link:
            text += f" master {link['master']}"
        yield text


def _queues(netns: str) -> Iterable[str]:
    if shutil.which("tc") is None:
        return
    prefix = ["ip", "netns", "exec", netns] if netns else []
    for line in run([*prefix, "tc", "qdisc", "show"], check=False).splitlines():
        if " noqueue " not in line:
            yield line.strip()


def _filter_rules() -> Iterable[str]:
    if shutil.which("nft") is not None:
        yield from _blocks(run(["nft", "--stateless", "list", "ruleset"], check=False))
        return
    for program in ("iptables-save", "ip6tables-save"):
        if shutil.which(program) is not None:
            for line in run([program], check=False).splitlines():
                if not line.startswith("#"):
                    # The counters of a chain stand in brackets behind its policy.
                    yield f"{program}: {line.split(' [')[0]}"


def _blocks(ruleset: str) -> Iterable[str]:
    """The lines of a ruleset with the table and chain that they are in, elements one by one."""
    path: list[str] = []
    for line in map(str.strip, ruleset.splitlines()):
        if line.endswith("{"):
            path.append(line.removesuffix("{").strip())
            yield " / ".join(path)
        elif line == "}":
            path.pop()
        elif line:
            for part in line.rstrip(",}").split("{")[-1].split(", "):
                yield " / ".join((*path, part.strip()))
            if line.count("{") > line.count("}"):
                path.append("elements")
            elif line.count("{") < line.count("}"):
                path.pop()


def _files(folders: Iterable[str]) -> Iterable[str]:
    own = (namespace.NAMED, "/run/conformance")
    for folder in folders:
        for root, _, names in os.walk(folder):
            if not root.startswith(own):
                yield from (os.path.join(root, name) for name in names)
