"""A step that another project declares, in a package or in a single file."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Host, Sandbox, run_in
from pycni.runtime import Network
from pycni.sdk import Plugin

SOURCE = """
from pycni.sdk import SANDBOX, ChainedPlugin, Plan, Step


class Ignored(Step):
    kind = __name__


def apply(step, kernel):
    before = kernel.netns(SANDBOX).write_sysctl("net.ipv4.icmp_echo_ignore_all", "1")
    return lambda: kernel.netns(SANDBOX).write_sysctl("net.ipv4.icmp_echo_ignore_all", before)


def check(step, kernel):
    found = kernel.netns(SANDBOX).read_sysctl("net.ipv4.icmp_echo_ignore_all")
    return [] if found == "1" else ["ping is answered"]


def remove(step, kernel):
    if kernel.sandbox is not None:
        kernel.netns(SANDBOX).write_sysctl("net.ipv4.icmp_echo_ignore_all", "0")


class IgnoredPlugin(ChainedPlugin):
    type = "ignored"

    def plan(self, request, config, network):
        return Plan((Ignored(),))


plugin = IgnoredPlugin()
"""


@pytest.mark.parametrize("name", ["ignored_ping", "of_others.ignored_ping"])
def test_its_module(
    host: Host, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin: Plugin = __import__(name, fromlist=["plugin"]).plugin
    document = {
        "cniVersion": "1.1.0",
        "name": "n",
        "plugins": [{"type": "loopback"}, {"type": "ignored"}],
    }
    network = Network.from_dict(
        document,
        cache_dir=tmp_path / "cni",
        resolve=lambda kind: plugin if kind == "ignored" else None,
    )
    box = sandbox()
    echo = ["sysctl", "-n", "net.ipv4.icmp_echo_ignore_all"]
    network.add("one", box.path, "lo")
    network.check("one", box.path, "lo")
    assert run_in(box, echo).stdout.strip() == "1"
    network.delete("one", box.path, "lo")
    assert run_in(box, echo).stdout.strip() == "0"
