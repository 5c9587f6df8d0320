"""DHCP servers of others, each in a network namespace of its own, and our daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.host import ip_json, run_in
from harness.namespaces import Namespace

TIMEOUT = 40.0  # seconds: far more than anything waited for takes
SUBNET = "10.77.0"
SERVER = f"{SUBNET}.1"
BRIDGE_MAC = "02:00:00:00:77:00"  # its own; it would else take over that of a port


def eventually(what: Callable[[], Any], why: str, seconds: float = TIMEOUT) -> Any:
    """Wait until a function gives something true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.05)
    return found


class Program:
    """A program that runs in the background, with its output in a file."""

    def __init__(
        self, argv: Sequence[str | Path], log: Path, env: dict[str, str] | None = None
    ) -> None:
        self.argv = [os.fspath(part) for part in argv]
        self.log = log
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(self.env or {})},
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and wait for that; one that has ended is left alone."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(TIMEOUT)
            self.process = None

    def said(self, words: str) -> bool:
        """Whether its output has these words."""
        return self.log.exists() and words in self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(signal.SIGKILL)


class Network:
    """A namespace for servers, and the cable to it: `wan` on the host, `lan` in the namespace.

    bridge: a bridge on the host that the cable is plugged into, "" for none.
    """

    def __init__(self, netns: Namespace, bridge: str = "") -> None:
        self.netns = netns
        self.bridge = bridge
        run_in(None, ["ip", "link", "add", "wan", "type", "veth", "peer", "name", "lan",
                      "netns", netns.name])  # fmt: skip
        if bridge:
            run_in(None, ["ip", "link", "add", bridge, "address", BRIDGE_MAC, "type", "bridge"])
            run_in(None, ["ip", "link", "set", "wan", "master", bridge])
            run_in(None, ["ip", "link", "set", bridge, "up"])
        run_in(None, ["ip", "link", "set", "wan", "up"])
        run_in(netns, ["ip", "link", "set", "lo", "up"])
        run_in(netns, ["ip", "addr", "add", f"{SERVER}/24", "dev", "lan"])
        run_in(netns, ["ip", "link", "set", "lan", "up"])
        # Kea leaves alone what carries no traffic when it starts.
        eventually(lambda: ip_json("link", "show", "lan", netns=netns)[0]["operstate"] == "UP",
                   "the cable does not carry")  # fmt: skip


class Kea(Program):
    """ISC Kea. Its log says of each message what became of it."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        *,
        pool: str = f"{SUBNET}.10 - {SUBNET}.60",
        lifetime: tuple[int, int, int] = (300, 600, 1200),
        options: Sequence[dict[str, Any]] = (),
        **more: Any,
    ) -> None:
        """lifetime: seconds to T1, T2 and the end; options: Kea's option-data; more: Kea's keys."""
        folder.mkdir(exist_ok=True)
        folder.chmod(0o750)  # as it must be for a control socket since 2.6.3
        renew, rebind, valid = lifetime
        routers = {"name": "routers", "data": SERVER}
        config = {
            "interfaces-config": {"interfaces": ["lan"], "dhcp-socket-type": "raw"},
            "lease-database": {"type": "memfile", "persist": True, "name": f"{folder}/leases.csv"},
            "control-socket": {"socket-type": "unix", "socket-name": f"{folder}/control"},
            "renew-timer": renew,
            "rebind-timer": rebind,
            "valid-lifetime": valid,
            "subnet4": [
                {
                    "id": 1,
                    "subnet": f"{SUBNET}.0/24",
                    "pools": [{"pool": pool}] if pool else [],
                    "option-data": [routers, *options],
                }
            ],
            "loggers": [
                {
                    "name": "kea-dhcp4",
                    "severity": "DEBUG",
                    "debuglevel": 55,
                    "output_options": [{"output": "stdout", "flush": True}],
                }
            ],
            **more,
        }
        path = folder / "kea.json"
        path.write_text(json.dumps({"Dhcp4": config}))
        super().__init__(
            ["ip", "netns", "exec", network.netns.name, "kea-dhcp4", "-c", path],
            folder / "kea.log",
            # The last two since 2.6.3, which accepts no other directories in its configuration.
            dict.fromkeys(
                (
                    "KEA_LOCKFILE_DIR",
                    "KEA_PIDFILE_DIR",
                    "KEA_CONTROL_SOCKET_DIR",
                    "KEA_DHCP_DATA_DIR",
                ),
                str(folder),
            ),
        )
        self.folder = folder

    def start(self) -> None:
        seen = self.count("DHCP4_STARTED")
        super().start()
        eventually(lambda: self.count("DHCP4_STARTED") > seen, "kea did not start")

    def count(self, words: str) -> int:
        """How often its log has these words."""
        return self.log.read_text(errors="replace").count(words) if self.log.exists() else 0

    def leases(self) -> int:
        """How many leases it holds now."""
        rows = (self.folder / "leases.csv").read_text().splitlines()[1:]
        last = {row.split(",")[0]: row.split(",") for row in rows}
        return sum(int(fields[3]) > 0 for fields in last.values())

    def released(self, address: str) -> bool:
        return self.said(f"address {address} was released properly")


class Dnsmasq(Program):
    """dnsmasq."""

    def __init__(
        self, network: Network, folder: Path, *options: str, pool: str = f"{SUBNET}.10,{SUBNET}.60"
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(
            [
                "ip", "netns", "exec", network.netns.name,
                "dnsmasq", "-k", "-C", "/dev/null", "-u", "root", "--port=0",
                "--interface=lan", "--bind-interfaces", "--no-ping", "--log-dhcp",
                "--log-facility=-", f"--pid-file={folder}/pid",
                f"--dhcp-leasefile={folder}/leases",
                f"--dhcp-range={pool},10m", *options,
            ],
            folder / "dnsmasq.log",
        )  # fmt: skip

    def start(self) -> None:
        super().start()
        eventually(lambda: self.said("DHCP, IP range"), "dnsmasq did not start")

    def released(self, address: str) -> bool:
        return self.said(f"DHCPRELEASE(lan) {address}")


class Dhcpd(Program):
    """ISC dhcpd."""

    def __init__(self, network: Network, folder: Path, *lines: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "leases").touch()
        config = folder / "dhcpd.conf"
        config.write_text(
            "authoritative; default-lease-time 600; ping-check false;\n"
            + "".join(f"{line}\n" for line in lines)
            + f"subnet {SUBNET}.0 netmask 255.255.255.0 {{ range {SUBNET}.10 {SUBNET}.60;"
            f" option routers {SERVER}; }}\n"
        )
        super().__init__(
            [
                "ip", "netns", "exec", network.netns.name,
                "dhcpd", "-4", "-d", "-f", "-cf", config, "-lf", folder / "leases", "--no-pid",
                "-user", "root", "-group", "root", "lan",
            ],
            folder / "dhcpd.log",
        )  # fmt: skip

    def start(self) -> None:
        super().start()
        eventually(lambda: self.said("Server starting service"), "dhcpd did not start")

    def released(self, address: str) -> bool:
        return self.said(f"DHCPRELEASE of {address}")


class Daemon(Program):
    """Our daemon, on the host."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.socket = folder / "dhcp.sock"
        self.state = folder / "state"
        super().__init__(
            [
                Path(sys.executable).parent / "pycni", "dhcp", "daemon", "-v",
                "-socketpath", self.socket, "-statedir", self.state, *options,
            ],
            folder / "daemon.log",
        )  # fmt: skip

    def start(self) -> None:
        super().start()

        def listening() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            return self.socket.exists() and bool(self.ask({"command": "STATUS"}, quietly=True))

        eventually(listening, "the daemon did not start")

    def ask(self, question: dict[str, Any], *, quietly: bool = False) -> dict[str, Any]:
        from pycni.plugins.shared.dhcp import NoDaemon, ask

        try:
            return ask(str(self.socket), question)
        except NoDaemon:
            if not quietly:
                raise
            return {}

    def leases(self) -> list[dict[str, Any]]:
        """Its leases, as `pycni dhcp leases` shows them."""
        found: list[dict[str, Any]] = self.ask({"command": "LIST"})["leases"]
        return found

    def state_of(self, container: str = "pycni-test") -> str:
        """The state of a container's lease, "" if it has none."""
        return next(
            (item["state"] for item in self.leases() if item["containerID"] == container), ""
        )
