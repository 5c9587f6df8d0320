"""The real firewalld on a D-Bus of its own, in the test's network namespace."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.host import run_in

PROGRAM = "/usr/sbin/firewalld"
BUS = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@dataclass
class Firewalld:
    """A running firewalld; address: of its bus, as DBUS_SYSTEM_BUS_ADDRESS takes it."""

    address: str
    process: subprocess.Popen[bytes]

    def command(self, *arguments: str) -> str:
        """What `firewall-cmd` prints."""
        environment = f"DBUS_SYSTEM_BUS_ADDRESS={self.address}"
        return run_in(None, ["env", environment, "firewall-cmd", *arguments]).stdout.strip()

    def sources(self, zone: str) -> set[str]:
        return set(self.command("--zone", zone, "--list-sources").split())

    def stop(self) -> None:
        """End it, so that it takes its rules with it."""
        self.process.terminate()
        self.process.wait(20)


def installed() -> bool:
    return os.path.exists(PROGRAM) and shutil.which("dbus-daemon") is not None


@contextmanager
def running(folder: Path, backend: str) -> Iterator[Firewalld]:
    """firewalld with one of its own backends, `nftables` or `iptables`."""
    folder.mkdir(exist_ok=True)
    path = folder / "bus"
    (folder / "bus.conf").write_text(BUS.format(socket=path))
    settings = folder / "firewalld"
    shutil.copytree("/etc/firewalld", settings)
    config = settings / "firewalld.conf"
    lines = [line for line in config.read_text().splitlines() if "FirewallBackend=" not in line]
    config.write_text("\n".join([*lines, f"FirewallBackend={backend}", ""]))
    address = f"unix:path={path}"
    log = (folder / "log").open("wb")
    bus = subprocess.Popen(
        ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork", "--nopidfile"],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        _wait(lambda: _answers(path), folder)
        daemon = subprocess.Popen(
            ["/usr/bin/python3", PROGRAM, "--nofork", "--nopid", "--log-target=console",
             f"--system-config={settings}"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address}, stdout=log, stderr=log,
        )  # fmt: skip
        firewalld = Firewalld(address, daemon)
        try:
            _wait(lambda: firewalld.command("--state") == "running", folder)
            yield firewalld
        finally:
            if daemon.poll() is None:
                firewalld.stop()
    finally:
        bus.terminate()
        bus.wait(20)
        log.close()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def _wait(ready: object, folder: Path) -> None:
    assert callable(ready)
    for _ in range(300):
        try:
            if ready():
                return
        except AssertionError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready: {(folder / 'log').read_text()}")


@contextmanager
def on_the_system_bus(
    folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Firewalld]:
    """The same, found by plugins: its bus is the system's. Skips the test without firewalld."""
    if not installed():
        pytest.skip("no firewalld")
    with running(folder, backend) as daemon:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.address)
        yield daemon
