"""Look at a host: what its network namespace holds, as data that tests compare."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.namespaces import Namespace

# What is observable, by section: links, addresses, routes, rules, nft, iptables, sysctls, files.
# Two snapshots are equal when nothing that a plugin could have changed differs.
Snapshot = dict[str, Any]

# Keys of `ip -d -j` that move on their own, without anyone having changed anything.
_MOVING = ("_timer", "_life_time", "_lifetime", "fdb_n_learned")

_SYSCTLS = (
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/*/forwarding",
    "/proc/sys/net/ipv4/conf/*/route_localnet",
    "/proc/sys/net/ipv4/conf/*/rp_filter",
    "/proc/sys/net/ipv6/conf/*/accept_ra",
    "/proc/sys/net/ipv6/conf/*/disable_ipv6",
    "/proc/sys/net/ipv6/conf/*/forwarding",
)


# Where pycni notes which attachments there are.
NOTES = (Path("/run/pycni/attachments"), Path("/run/pycni/addresses"))
LOCKS = Path("/run/pycni/sandboxes")  # who is killed leaves an empty file there


def forget_attachments() -> None:
    """Remove what is noted of attachments: a fresh host has none."""
    for folder in (*NOTES, LOCKS):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Host:
    """The network namespace that stands for the host; the test's thread is in it."""

    fd: int

    def snapshot(self, *folders: str | os.PathLike[str]) -> Snapshot:
        """See `snapshot`."""
        return snapshot(*folders)


def run_in(
    netns: Namespace | str | None, argv: Sequence[str], *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program in a named namespace (None: in the test's own), and capture its output."""
    name = netns.name if isinstance(netns, Namespace) else netns
    prefix = [] if name is None else ["ip", "netns", "exec", name]
    done = subprocess.run([*prefix, *argv], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        output = f"{done.stdout}{done.stderr}".strip()
        raise AssertionError(f"{' '.join([*prefix, *argv])}: exit {done.returncode}: {output}")
    return done


def ip_json(*args: str, netns: Namespace | str | None = None) -> list[dict[str, Any]]:
    """What `ip -j ARGS` prints, for example `ip_json("-d", "link", "show")`."""
    name = netns.name if isinstance(netns, Namespace) else netns
    where = [] if name is None else ["-n", name]
    output = run_in(None, ["ip", *where, "-j", *args]).stdout
    found: list[dict[str, Any]] = json.loads(output or "[]")
    return [entry for entry in found if entry]


def nft_list(netns: Namespace | str | None = None) -> list[dict[str, Any]]:
    """The whole nftables ruleset as nft's JSON objects, without its meta information."""
    listing = json.loads(run_in(netns, ["nft", "-j", "list", "ruleset"]).stdout)
    return [entry for entry in listing["nftables"] if "metainfo" not in entry]


def ipset_elements() -> list[str]:
    """What sets of ipset hold, as lines such as "add SET 10.1.2.3"."""
    lines = run_in(None, ["ipset", "save"]).stdout.splitlines()
    return sorted(line for line in lines if line.startswith("add "))


def snapshot(*folders: str | os.PathLike[str]) -> Snapshot:
    """Everything observable on the host that the thread is in, and the files below `folders`."""
    return {
        "links": _steady(ip_json("-d", "link", "show")),
        "addresses": _steady(ip_json("address", "show")),
        "routes": [
            *ip_json("-4", "route", "show", "table", "all"),
            *ip_json("-6", "route", "show", "table", "all"),
        ],
        "rules": [*ip_json("-4", "rule", "show"), *ip_json("-6", "rule", "show")],
        "nft": run_in(None, ["nft", "--stateless", "list", "ruleset"]).stdout.splitlines(),
        "iptables": [*_rules_saved("iptables-save"), *_rules_saved("ip6tables-save")],
        "ipset": ipset_elements(),
        "sysctls": {
            path: _read(path) for pattern in _SYSCTLS for path in sorted(glob.glob(pattern))
        },
        "files": {path: content for folder in folders for path, content in _files(folder)},
    }


def _steady(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_without_moving(entry) for entry in entries]


def _without_moving(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_moving(item) for key, item in value.items() if not key.endswith(_MOVING)
        }
    if isinstance(value, list):
        return [_without_moving(item) for item in value]
    return value


def _rules_saved(program: str) -> list[str]:
    lines = run_in(None, [program]).stdout.splitlines()
    # The counters of a chain stand in brackets behind its policy.
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


def _files(folder: str | os.PathLike[str]) -> list[tuple[str, bytes]]:
    return [
        (path, _read(path))
        for root, _, names in sorted(os.walk(folder))
        for path in sorted(os.path.join(root, name) for name in names)
    ]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read()
    except OSError as error:  # a sysctl that this kernel refuses to show, or a socket
        return f"<{error.strerror}>".encode()


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a FIFO that another test has left has no one at its other end."""
    return os.open(path, flags | os.O_NONBLOCK)
