"""Input made to exhaust anyone who reads it: read or refused within a gigabyte and half a minute.

Each is tried in a process of its own that the kernel ends if it takes more.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.surfaces import SURFACES
from pycni import plugins
from pycni.spec.config import NetConf

MEGABYTE = 1 << 20
MANY = 1 << 15  # so many that anyone who looks at each pair does not come to an end


def lists(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def members(count: int, last: str = "") -> str:
    return ",".join([f'"k{number}":0' for number in range(count)] + ([last] if last else []))


def address_pool(ranges: str) -> str:
    return f'{{"type":"host-local","ranges":[[{ranges}]]}}'


def within(key: str, value: str) -> bytes:
    return (
        f'{{"cniVersion":"1.1.0","name":"net","type":"bridge",{json.dumps(key)}:{value}}}'.encode()
    )


TWICE = '"k0":1'
RANGES = [f'{{"subnet":"10.{number >> 8}.{number & 255}.0/30"}}' for number in range(20000)]
BOMBS: dict[str, Callable[[], bytes]] = {
    "lists in lists": lambda: lists(8 * MEGABYTE),
    "lists never closed": lambda: b"[" * (15 * MEGABYTE),
    "objects in objects": lambda: b'{"a":' * MEGABYTE + b"1" + b"}" * MEGABYTE,
    "just deep enough": lambda: b'{"prevResult":' * 199 + b"1" + b"}" * 199,
    "too long": lambda: b" " * (17 * MEGABYTE),
    "only spaces": lambda: b" " * (2 * MEGABYTE),
    "an integer of a million digits": lambda: within("mtu", "9" * MEGABYTE),
    "a fraction of a million digits": lambda: within("mtu", "0." + "1" * MEGABYTE),
    "an exponent of a million digits": lambda: within("mtu", "1e" + "9" * MEGABYTE),
    "a tiny exponent": lambda: within("mtu", "1" + "0" * MEGABYTE + "e-" + str(MEGABYTE)),
    "many keys, one of them twice": lambda: within("args", "{" + members(MANY, TWICE) + "}"),
    "one key many times": lambda: within("args", "{" + ",".join(['"k":0'] * MANY) + "}"),
    "many wrong addresses": lambda: within("prevResult", f'{{"ips":[{",".join("1" * MANY)}]}}'),
    "many empty addresses": lambda: within("prevResult", f'{{"ips":[{",".join(["{}"] * MANY)}]}}'),
    "many wrong trunks": lambda: within("vlanTrunk", f"[{','.join('1' * MANY)}]"),
    "many wrong capabilities": lambda: within("capabilities", f"{{{members(MANY)}}}"),
    "many to keep": lambda: within("cni.dev/valid-attachments", f"[{','.join(['{}'] * MANY)}]"),
    "many ranges": lambda: within("ipam", address_pool(",".join(RANGES))),
    "many range sets": lambda: within("ipam", address_pool("],[".join(RANGES[:300]))),
    "surrogates": lambda: within("dns", '{"domain":"' + "\\ud800" * MANY + '"}'),
    "bytes that are no text": lambda: within("dns", '{"domain":"x"}') + b"\xff" * (2 * MEGABYTE),
    "a name of megabytes": lambda: b'{"name":"' + b"../" * (4 * MEGABYTE) + b'"}',
    "long keys within a long key": lambda: within("k" * MEGABYTE, f"{{{members(MANY)}}}"),
    "NULs": lambda: b"\0" * (4 * MEGABYTE),
}
DOCUMENTS = ("configuration", "address_plugin", "result", "network_file", "cache_file",
             "kept_document", "environment", "dhcp_state", "identity")  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str) -> None:
    """Each is read or refused by everything that reads JSON, within one gigabyte and 30 s."""
    data = BOMBS[bomb]()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), taken + (1 << 30)))
            for surface in DOCUMENTS:
                prefix = {
                    "configuration": bytes([plugins.NAMES.index("bridge")]),
                    "address_plugin": b"\0",
                    "environment": b"CNI_COMMAND=ADD\nCNI_CONTAINERID=a\nCNI_IFNAME=b\n"
                    b"CNI_NETNS=/x\nCNI_PATH=/x\n\n",
                }.get(surface, b"")
                SURFACES[surface](prefix + data)
            code = 0
        except BaseException:  # noqa: BLE001 - reported by the test
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFSIGNALED(status), signal.Signals(os.WTERMSIG(status)).name
    assert os.WEXITSTATUS(status) == 0


def test_only_so_many_faults_are_reported() -> None:
    """A configuration that is wrong a million times gets an error that can be read."""
    faults = NetConf.errors({"capabilities": dict.fromkeys(map(str, range(100_000)), 7)})
    assert 10 < len(faults) < 200
    assert "too many" in str(faults[-1])
