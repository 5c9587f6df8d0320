"""What rules cost the packets: a pod and a machine outside, with many pods' rules on the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import native
from contenders import IN_PROCESS, Contender, ours, room, sandboxes
from measure import Measurement, attach
from scenarios import Config, Scenario, bridge, portmap

from harness import Namespace, inside
from harness.machines import commands

HOST, CLIENT = "192.0.2.1", "192.0.2.2"
PORT, HOST_PORT = 80, 8080
SUBNET = "10.202.0.0/16"
KINDS = {"stream": "bit/s", "trips": "trips/s", "connects": "connections/s"}


def _pod(_: int) -> list[Config]:
    network = bridge(4, ipMasq=True)
    network["bridge"] = "br1"
    network["ipam"] = {**network["ipam"], "ranges": [[{"subnet": SUBNET}]]}
    return [network, portmap(HOST_PORT), {"type": "firewall"}]


def _plain(_: int) -> list[Config]:
    return [{**_pod(0)[0], "ipMasq": False}]


POD = Scenario("packets", _pod)
PLAIN = Scenario("packets", _plain)


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
    contenders: Sequence[Contender], note: str, rounds: int, milliseconds: int = 300
) -> Iterator[Measurement]:
    """Rates of the newest pod on each contender's host, and of one on a host without rules."""
    with ExitStack() as stack:
        (bare,) = stack.enter_context(ours(stack.enter_context(room("bare")), IN_PROCESS))
        bare.name = "no rules"
        lines = [stack.enter_context(_line(contender, POD)) for contender in contenders]
        lines.append(stack.enter_context(_line(bare, PLAIN)))
        for outwards, way in ((True, "from a pod"), (False, "to a port")):
            for kind, unit in KINDS.items():
                values: dict[str, list[float]] = {line.name: [] for line in lines}
                for number in range(rounds):
                    for turn in range(len(lines)):
                        line = lines[(number + turn) % len(lines)]
                        values[line.name].append(line.rate(kind, outwards, milliseconds))
                yield Measurement(f"{way}{note}", kind, values, unit)


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
