"""Repair without a kernel: what is loaded for it, and how steps are put into words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pycni import plugins
from pycni.plan.difference import described
from pycni.plan.steps import (
    SANDBOX,
    Address,
    BridgePort,
    Forwarding,
    Limit,
    Route,
    Shaping,
    Step,
    VethPair,
)
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owner

FOR_REPAIR = {
    "pycni.kernel.monitor",
    "pycni.steps.repair",
    "pycni.plan.difference",
    "pycni.sdk.repair",
}


def test_no_plugin_loads_it() -> None:
    """A plugin's process never repairs, and each import is time of every call."""
    code = (
        "import sys; from pycni import plugins; import pycni.sdk.entry; "
        "[plugins.load(name) for name in plugins.NAMES]; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pycni.sdk.planned" in loaded
    assert FOR_REPAIR & loaded == set()


def test_every_plugin_can_be_asked() -> None:
    for name in plugins.NAMES:
        plugin = plugins.load(name)
        assert callable(plugin.repair)
        assert callable(plugin.inspect)


OWNER = Owner("net", "one", "eth0")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            VethPair(OWNER, "eth0", "veth1", port=BridgePort("cni0", hairpin=True)),
            "name eth0, host name veth1, port (bridge cni0, hairpin on)",
        ),
        (
            Address(SANDBOX, "eth0", parse_network("10.1.0.2/16"), on_link=False),
            "where sandbox, link eth0, address 10.1.0.2/16, on link off",
        ),
        (
            Route(SANDBOX, "eth0", parse_network("0.0.0.0/0"), gw=parse_address("10.1.0.1")),
            "where sandbox, link eth0, dst 0.0.0.0/0, gw 10.1.0.1",
        ),
        (Forwarding(2), "family IPv4"),
        (
            Shaping(OWNER, "eth0", ("veth1", "cni0"), egress=Limit(8000, 800)),
            "link eth0, host links veth1 cni0, egress (rate 8000, burst 800)",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Step) else "",
)
def test_steps_in_words(step: Step, words: str) -> None:
    assert described(step) == words
