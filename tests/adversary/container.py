"""A container's administrator: a program inside that works against its own attachment.

Run as `python -m adversary.container NETNS OTHER SEED`. It goes on until it is killed: in a random
order it renames, deletes, makes again, moves, re-addresses and re-MACs interfaces, gives them
aliases and alternative names of others, forges indexes, changes routes, and holds locks on the
files of its namespace.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.namespaces import Namespace, inside

TESTS = Path(__file__).parents[1]

# Names that mean something on the host.
HOST_NAMES = ("br0", "lan0", "vethf00", "up0", "eth0", "dev0", "bwp0", "lo")
# What an operation may break at: lines for `ip -force -batch`, of the namespace.
MOVES: dict[str, tuple[str, ...]] = {
    "rename": ("link set eth0 down", "link set eth0 name evil0", "link set evil0 name eth0"),
    "rename for good": ("link set eth0 down", "link set eth0 name evil{n}"),
    "take the name": ("link add eth0 type bridge", "link delete eth0"),
    "take the name for good": ("link add eth0 type dummy",),
    "take the name by a pair": ("link set eth0 name evil{n}",
                                "link add eth0 type veth peer name q{n} netns {other}",
                                "link set eth0 alias {host}"),
    "delete": ("link delete eth0",),
    "move away": ("link set eth0 netns {other}",),
    "re-address": (
        "address flush dev eth0",
        "address add 10.9.9.9/24 dev eth0",
        "address add fd00:9::9/64 dev eth0 nodad",
        "route replace default dev eth0",
    ),
    "re-MAC": ("link set eth0 down", "link set eth0 address 02:00:00:00:00:{n:02x}",
               "link set eth0 up"),
    "alias": ("link set eth0 alias {host}",),
    "alias of another": ("link set eth0 alias 917148ec47923f2e-705ab526e1b0362f",),
    "altname": ("link property add dev eth0 altname {host}",),
    "altname of another": ("link add x{n} type dummy", "link property add dev x{n} altname eth0"),
    "forge an index": ("link add eth0 index {n} type veth peer name p{n}",),
    "plug": ("link add b{n} type bridge", "link set eth0 master b{n}"),
    "mtu": ("link set eth0 mtu 1280",),
    "routes": ("route flush table main", "route add 10.8.0.1 dev eth0",
               "rule add pref 100 lookup 100", "route replace default dev lo table 100"),
    "up and down": ("link set eth0 down", "link set lo down", "link set eth0 up"),
}  # fmt: skip
_LOCKS = (fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN)


def work(name: str, other: str, seed: str) -> None:
    """Go on and on."""
    choice = random.Random(seed)
    moves = sorted(MOVES)
    held = [os.open(f"/run/netns/{name}", os.O_RDONLY)]
    with inside(Namespace(name)):
        held.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        while True:
            lines = []
            for move in choice.choices(moves, k=choice.randint(1, 6)):
                words = {"n": choice.randint(2, 12), "host": choice.choice(HOST_NAMES)}
                lines += [line.format(other=other, **words) for line in MOVES[move]]
            subprocess.run(
                ["ip", "-force", "-batch", "-"],
                input="\n".join(lines) + "\n",
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            for descriptor in held:
                with suppress(OSError):
                    fcntl.flock(descriptor, choice.choice(_LOCKS))
            time.sleep(choice.choice((0, 0, 0.001, 0.005)))


@contextmanager
def attack(space: Namespace, other: Namespace, seed: str) -> Iterator[None]:
    """Such a program, until the end of the block."""
    program = subprocess.Popen(
        [sys.executable, "-m", "adversary.container", space.name, other.name, seed],
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"begins\n"
    try:
        yield
        assert program.poll() is None, "the program inside ended by itself"
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        program.stdout.close()


def clear(*spaces: Namespace) -> None:
    """Remove what the program left in its own namespaces: that is not the plugins' business."""
    for space in spaces:
        with inside(space):
            listed = subprocess.run(
                ["ip", "-br", "link"], capture_output=True, text=True, check=True
            ).stdout
            for name in (line.split()[0].partition("@")[0] for line in listed.splitlines()):
                subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


if __name__ == "__main__":
    os.write(1, b"begins\n")
    work(*sys.argv[1:])
