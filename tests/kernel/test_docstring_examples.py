"""The examples in docstrings run as they stand, each on a host of its own.

An example is a block that is indented by four and is Python; a new one needs its entry in `BEFORE`,
which is what a reader is taken to have already.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import pycni

PACKAGE = Path(pycni.__file__).parent

NETWORK = {
    "cniVersion": "1.1.0",
    "name": "lab",
    "plugins": [
        {
            "type": "ptp",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/16"}]]},
        }
    ],
}
HOST = f"""
import os, pathlib
from pycni.conformance import host
from pycni.kernel import namespace as namespaces
from pycni.kernel.libc import mount
host.isolate()
mount("none", "/etc", "tmpfs", 0)
os.makedirs("/etc/cni/net.d")
pathlib.Path("/etc/cni/net.d/lab.conflist").write_text({json.dumps(NETWORK)!r})
namespaces.create_named("web-1").close()
"""
KERNEL = """
from pycni.kernel import namespace as namespaces
from pycni.steps.namespaces import HostAndSandbox
path = "/run/netns/web-1"
"""
BEFORE = {
    "steps/executor.py Transaction": """
from pycni.steps.executor import Transaction
from pycni.plan.plan import Plan
from pycni.plan.steps import SANDBOX, LinkUp
kernel, plan = HostAndSandbox(namespaces.open_path(path), path), Plan((LinkUp(SANDBOX, "lo"),))
""",
    "kernel/netlink/__init__.py": """
from pycni.kernel import address, link
from pycni.kernel.netlink import NetlinkSocket
from pycni.spec.ip import parse_network
namespace, network = namespaces.open_path(path), parse_network("10.5.0.2/16")
""",
    "kernel/netlink/codec.py": """
from pycni.kernel.netlink.codec import STRING, U32, Schema
from pycni.kernel.netlink.constants import IFLA_IFNAME, IFLA_MTU
""",
    "__init__.py": "",
    "runtime/__init__.py": "",
    "runtime/aio.py": """
from pycni.runtime import Network
from pycni.runtime.aio import AsyncNetwork
""",
    "runtime/namespaces.py": """
from pycni.runtime import Network
from pycni.runtime.namespaces import temporary
network = Network.load("lab")
""",
    "runtime/network.py": "from pycni.runtime import Network",
    "sdk/__init__.py": "",
    "sdk/ipam.py Allocation": """
from pycni import plugins
from pycni.sdk import Allocation, Request
ipam = {"type": "static", "addresses": [{"address": "10.5.0.2/16"}]}
document = {"cniVersion": "1.1.0", "name": "lab", "type": "mine", "ipam": ipam}
request = Request("ADD", document, "web-1", path, "eth0", resolve=plugins.load)
""",
    "sdk/testing.py": """
from pycni import plugins
from pycni.sdk import testing
plugin = plugins.load("tuning")
""",
    "spec/schema.py": "from pycni.spec.schema import Config, Integer, field",
}
RUN = """
import ast, asyncio, sys
before, example = sys.stdin.read().split("\\0")
known = {"__name__": "example"}
exec(before, known)
waiting = eval(compile(example, "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), known)
if waiting is not None:
    asyncio.run(waiting)
"""


def examples() -> Iterator[tuple[str, str]]:
    """Where each example is, and its text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            base = 0 if isinstance(node, ast.Module) else node.col_offset + 4
            name = "" if isinstance(node, ast.Module) else f" {node.name}"
            for block in indented(ast.get_docstring(node, clean=False) or "", base + 4):
                if is_python(block):
                    yield f"{path.relative_to(PACKAGE)}{name}", block


def indented(text: str, depth: int) -> Iterator[str]:
    """The blocks of lines with at least this indent."""
    block: list[str] = []
    for line in [*text.splitlines()[1:], "-"]:
        if line.startswith(" " * depth) or (block and not line.strip()):
            block.append(line)
        elif block:
            yield textwrap.dedent("\n".join(block)).strip() + "\n"
            block = []


def is_python(block: str) -> bool:
    try:
        compile(block, "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return False
    return True


EXAMPLES = dict(examples())


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == set(BEFORE)


@pytest.mark.parametrize("where", EXAMPLES)
def test_it_runs(where: str) -> None:
    before = HOST + KERNEL + BEFORE.get(where, "")
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=f"{before}\0{EXAMPLES[where]}",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
