"""firewall with the real firewalld."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, ask, ipset_elements, run_in, service
from harness import firewalld as real
from harness.firewalld import Firewalld
from harness.machines import FAR, Machines, addresses
from harness.topics.firewall import attached, in_sets
from pycni.kernel.netfilter import firewalld as client_of_firewalld

# --- firewalld -----------------------------------------------------------------------------------


@pytest.fixture(params=["nftables", "iptables"])
def daemon(
    host: object, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Firewalld]:
    """firewalld, with each of its own backends."""
    with real.on_the_system_bus(tmp_path / "firewalld", request.param, monkeypatch) as daemon:
        yield daemon


@pytest.mark.parametrize("backend", ["firewalld", ""])
def test_firewalld(daemon: Firewalld, machines: Machines, backend: str) -> None:
    keys = {"backend": backend} if backend else {}
    with service(machines.far, "far", 80):
        one = machines.container("one")
        # firewalld rejects what it does not know.
        for version in (4, 6):
            assert not ask(one.sandbox, FAR[version], 80)
        firewall = machines.chained("firewall", one, **keys)
        assert firewall.add() == one.result
        firewall.check()
        own = {f"{addresses(one)[4]}/32", f"{addresses(one)[6]}/128"}
        assert daemon.sources("trusted") == own
        for version in (4, 6):
            assert ask(one.sandbox, FAR[version], 80).startswith("far ")
        assert not ask(machines.client, FAR[4], 80)
        firewall.add()
        firewall.delete()
        assert daemon.sources("trusted") == set()
        for version in (4, 6):
            assert not ask(one.sandbox, FAR[version], 80)
        firewall.delete()


def test_firewalld_zone_and_reload(daemon: Firewalld, machines: Machines) -> None:
    one, firewall = attached(machines, "one", backend="firewalld", firewalldZone="internal")
    own = {f"{addresses(one)[4]}/32", f"{addresses(one)[6]}/128"}
    assert daemon.sources("internal") == own
    daemon.command("--reload")
    drift = firewall.drift()
    for source in own:
        assert f"{source} is not a source of zone internal" in drift
    firewall.add()
    firewall.check()
    # DEL knows the addresses from the sets in nftables.
    firewall.result = None
    del firewall.config["prevResult"]
    firewall.delete()
    assert daemon.sources("internal") == set()


def test_firewalld_ingress_policy(daemon: Firewalld, machines: Machines) -> None:
    """The policy outlives a reload: it is in a table of its own."""
    one, _ = attached(machines, "one", ingressPolicy="same-bridge")
    two, _ = attached(machines, "two", ingressPolicy="same-bridge")
    far, firewall = attached(machines, "far", "br1", ingressPolicy="same-bridge")
    assert ask(one.sandbox, addresses(two)[4], 80)
    for version in (4, 6):
        assert not ask(one.sandbox, addresses(far)[version], 80, timeout=0.4)
        assert not ask(far.sandbox, addresses(one)[version], 80, timeout=0.4)
    daemon.command("--reload")
    assert "firewall-bridges" not in firewall.drift()


def test_firewalld_gc_and_undo(daemon: Firewalld, machines: Machines) -> None:
    one, first = attached(machines, "one", firewalldZone="internal")
    two = machines.container("two")
    # The zone that IPv6 wants is another one by the administrator's word.
    taken = f"{addresses(two)[6]}/128"
    daemon.command("--zone", "public", "--add-source", taken)
    ours = ["nft", "list", "table", "inet", "pycni"]
    before = run_in(None, ours).stdout
    error = machines.chained("firewall", two).refused()
    assert "ZONE_CONFLICT" in error["msg"]
    assert taken in error["msg"]
    assert run_in(None, ours).stdout == before
    assert daemon.sources("trusted") == set()
    error = machines.chained("firewall", one, firewalldZone="nowhere").refused()
    assert "INVALID_ZONE: nowhere" in error["msg"]
    assert "nowhere" in error["details"]
    run = first.call(
        first.plugin, "GC",
        {"cniVersion": "1.1.0", "name": "first", "type": "firewall",
         "cni.dev/valid-attachments": []},
    )  # fmt: skip
    assert (run.code, run.stdout) == (0, "")
    assert daemon.sources("internal") == set()
    assert daemon.sources("public") == {taken}


def test_firewalld_gone(daemon: Firewalld, machines: Machines) -> None:
    _, firewall = attached(machines, "one", backend="firewalld")
    daemon.stop()
    assert "firewalld" in firewall.drift()
    firewall.delete()
    error = firewall.refused()
    assert error["code"] == 4
    assert "firewalld" in error["msg"]


def test_firewalld_without_jeepney(
    daemon: Firewalld, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines.container("one")
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("jeepney"):
            raise ImportError(name)
        return real_import(name, *rest, **more)

    for name in [name for name in sys.modules if name.startswith("jeepney")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    firewall = machines.chained("firewall", one)
    error = firewall.refused()
    assert "jeepney" in error["msg"]
    assert "pycni[firewalld]" in error["details"]
    firewall.delete()


def test_no_bus_is_no_firewalld(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, sandbox: object
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/no-such-bus")
    one = machines.container("one")
    assert isinstance(one.sandbox, Namespace)
    with pytest.raises(client_of_firewalld.FirewalldError, match="cannot be reached"):
        client_of_firewalld.Firewalld().__enter__()
    error = machines.chained("firewall", one, backend="firewalld").refused()
    assert "start dbus and firewalld" in error["details"]
    machines.chained("firewall", one).add()
    assert ipset_elements() == in_sets(one)


@pytest.mark.parametrize(("bus", "asked"), [(False, False), (True, True)])
def test_what_speaks_to_the_bus_is_loaded_where_there_is_one(
    host: Host, tmp_path: Path, bus: bool, asked: bool
) -> None:
    """It takes longer to load than all else of a plugin's process."""
    place = tmp_path / "bus"
    if bus:
        place.touch()
    script = f"""if True:
        import sys
        from pycni.kernel.netfilter import firewalld
        from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
        firewalld.PROGRAM, firewalld.BUS = "/bin/true", {str(place)!r}
        assert not firewalld.is_active(NetfilterSocket())
        print("jeepney" in sys.modules)
    """
    environ = {name: value for name, value in os.environ.items() if "DBUS" not in name}
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(asked)
