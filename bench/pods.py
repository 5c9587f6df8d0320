"""Hosts that have many pods already, made in seconds rather than in the minutes that ADDs take.

pycni attaches its own, in this process. For programs that write iptables rules as the reference
does, links and leases are made the same way, since those are equal; one pod is attached by the
program itself, and its rules are copied for the others, with their addresses, ports and names.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha512
from typing import Any

from contenders import Attachment, Contender, InProcess, cold_plugins, sandboxes
from measure import attach
from scenarios import Scenario

from harness import inside

# Plugins whose traces are links, leases and sysctls; what the others leave are rules.
_LINKS = ("bridge", "bandwidth", "tuning")


@contextmanager
def present(count: int, scenario: Scenario, contenders: Sequence[Contender]) -> Iterator[None]:
    """This many pods, numbered from 0, on each of these contenders' hosts; gone afterwards."""
    hosts = {contender.room: contender for contender in reversed(contenders)}
    with ExitStack() as stack:
        for host, contender in hosts.items():
            pods = stack.enter_context(sandboxes(count, f"pod-{host.name}"))
            with inside(host):
                if contender.is_ours:
                    attach_all(contender, scenario, pods)
                else:
                    _attach_copies(contender, scenario, pods)
        yield


def attach_all(contender: Contender, scenario: Scenario, pods: Sequence[Attachment]) -> None:
    """Attach these, numbered from 0, by pycni in this process."""
    ours = InProcess("pods", contender.room, cold_plugins())
    for number, pod in enumerate(pods):
        attach(ours, scenario.configured(number, ours.room.name), pod)


def _attach_copies(contender: Contender, scenario: Scenario, pods: Sequence[Attachment]) -> None:
    ours = InProcess("pods", contender.room, cold_plugins())
    before = rules()
    copies: dict[str, list[str]] = {}
    first: list[str] = []
    for number, pod in enumerate(pods):
        configs = scenario.configured(number, ours.room.name)
        if number == 0:
            result, _ = attach(contender, configs, pod)
            made = {
                table: [line for line in lines if line not in before[table]]
                for table, lines in rules().items()
            }
            first = _marks(pod, configs, result)
            continue
        links = [{**config, "ipMasq": False} for config in configs if config["type"] in _LINKS]
        result, _ = attach(ours, links, pod)
        new = dict(zip(first, _marks(pod, configs, result), strict=True))
        for table, lines in made.items():
            copies.setdefault(table, []).extend(_copied(lines, new))
    text = "".join(f"*{table}\n{''.join(lines)}COMMIT\n" for table, lines in copies.items())
    subprocess.run(["iptables-restore", "--noflush"], input=text, text=True, check=True)


def rules() -> dict[str, list[str]]:
    """The rules and user chains by table, as `iptables-restore` takes them."""
    return {
        table: [
            line
            for line in subprocess.run(
                ["iptables-save", "-t", table], capture_output=True, text=True, check=True
            ).stdout.splitlines(keepends=True)
            if line[0] in ":-"
        ]
        for table in ("nat", "filter")
    }


def _marks(pod: Attachment, configs: Sequence[Mapping[str, Any]], result: Any) -> list[str]:
    """What only one pod's rules contain, in an order that is the same for each pod."""
    chain = sha512((configs[0]["name"] + pod.container_id).encode()).hexdigest()
    mappings = [
        mapping
        for config in configs
        for mapping in config.get("runtimeConfig", {}).get("portMappings", ())
    ]
    return [
        chain[:24],  # of the names of ipMasq's chain and portmap's
        chain[:21],
        pod.container_id,
        result["ips"][0]["address"].partition("/")[0],
        *(str(mapping["hostPort"]) for mapping in mappings),
    ]


def _copied(lines: Iterable[str], new: Mapping[str, str]) -> list[str]:
    """The lines that hold any of these marks, with others in their place."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, new))})\b")
    return [
        pattern.sub(lambda found: new[found[0]], line) for line in lines if pattern.search(line)
    ]
