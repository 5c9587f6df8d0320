"""What rules cost the packets: a pod and a machine outside, with many pods' rules on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import native
from contenders import IN_PROCESS, Contender, everyone, ours, room, sandboxes
from measure import Measurement, attach
from pods import present
from scenarios import Config, Scenario, bridge, portmap

from harness import Namespace, inside
from harness.machines import commands

HOST, CLIENT = "192.0.2.1", "192.0.2.2"
PORT, HOST_PORT = 80, 8080
SUBNET = "10.202.0.0/16"
KINDS = {"stream": "bit/s", "trips": "trips/s", "connects": "connections/s"}


NFTABLES = "nftables"


def _pods(firewall: Config | None, subnet: str = "") -> Scenario:
    """Pods, or with a subnet, which is behind a bridge of its own, the one that packets go to."""

    def plugins(number: int) -> list[Config]:
        network = bridge(4, ipMasq=True)
        ports = portmap(10_000 + 2 * number, 10_001 + 2 * number)
        if subnet:
            ranges = [[{"subnet": subnet}]]
            ipam = {**network["ipam"], "ranges": ranges}
            network = {**network, "bridge": "br1", "ipam": ipam}
            ports = portmap(HOST_PORT)
        return [network, ports, *([firewall] if firewall else [])]

    return Scenario("packets" if subnet else "pod", plugins)


PLAIN = Scenario("packets", lambda _: [{**_pods(None, SUBNET).plugins(0)[0], "ipMasq": False}])


@dataclass(frozen=True)
class Line:
    """A pod and a client on either side of one contender's host, each serving on port 80.

    target: where the client finds the pod: address and port.
    """

    name: str
    pod: Namespace
    client: Namespace
    target: tuple[str, int]

    def rate(self, kind: str, outwards: bool, milliseconds: int) -> float:
        """What comes through, from the pod to the client or the other way."""
        where, (address, port) = self.client, self.target
        if outwards:
            where, address, port = self.pod, CLIENT, PORT
        argv = [native.built("traffic"), kind, address, str(port), str(milliseconds)]
        with inside(where):
            return float(subprocess.run(argv, capture_output=True, check=True).stdout)


def packets(
    count: int, firewall: bool, peer: Path | None, rounds: int, milliseconds: int = 200
) -> Iterator[Measurement]:
    """Rates of the newest pod on each contender's host, and of one on a host without rules.

    firewall: whether pods have that plugin too, which takes iptables where it has the choice; then
    another of ours has it take nftables.
    """
    with ExitStack() as stack:
        lines = []
        plugin = {"type": "firewall"} if firewall else None
        hosts = [(one, plugin) for one in stack.enter_context(everyone(peer, IN_PROCESS))]
        if firewall:
            (named,) = stack.enter_context(ours(stack.enter_context(room(NFTABLES)), IN_PROCESS))
            named.name = NFTABLES
            hosts.append((named, {"type": "firewall", "backend": NFTABLES}))
        for contender, plugin in hosts:
            stack.enter_context(present(count, _pods(plugin), [contender]))
            lines.append(stack.enter_context(_line(contender, _pods(plugin, SUBNET))))
        (bare,) = stack.enter_context(ours(stack.enter_context(room("bare")), IN_PROCESS))
        bare.name = "no rules"
        lines.append(stack.enter_context(_line(bare, PLAIN)))
        work = f"{count:,} pods{' with firewall' if firewall else ''}"
        for outwards, way in ((True, "from a pod"), (False, "to a port")):
            for kind, unit in KINDS.items():
                values: dict[str, list[float]] = {line.name: [] for line in lines}
                for number in range(rounds):
                    for offset in range(len(lines)):
                        line = lines[(number + offset) % len(lines)]
                        values[line.name].append(line.rate(kind, outwards, milliseconds))
                yield Measurement(f"{work}, {way}", kind, values, unit)


@contextmanager
def _line(contender: Contender, scenario: Scenario) -> Iterator[Line]:
    host = contender.room
    with (
        sandboxes(1, f"client-{host.name}") as (outer,),
        sandboxes(1, f"inner-{host.name}") as (box,),
    ):
        client, pod = Namespace(outer.container_id), Namespace(box.container_id)
        commands(
            f"link add out up type veth peer name eth0 netns {client.name}\n"
            f"address add {HOST}/24 dev out\n",
            host,
        )
        commands(
            f"link set eth0 up\naddress add {CLIENT}/24 dev eth0\nroute add {SUBNET} via {HOST}\n",
            client,
        )
        with inside(host):
            result, _ = attach(contender, scenario.configured(0, host.name), box)
        target = (HOST, HOST_PORT)
        if scenario is PLAIN:
            target = (result["ips"][0]["address"].partition("/")[0], PORT)
        with _serving(client), _serving(pod):
            yield Line(contender.name, pod, client, target)


@contextmanager
def _serving(where: Namespace) -> Iterator[None]:
    with inside(where):
        argv = [native.built("traffic"), "serve", str(PORT)]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    try:
        yield
    finally:
        server.kill()
        server.wait()
