"""Bridges whose containers others on this host do not reach (`plan.steps.IngressPolicy`).

nftables, in the chain `firewall-forward` (see `firewall`): a bridge with a policy is in one set,
and with itself in another unless it is isolated. What goes from one such bridge to one is dropped
unless the pair is there. A drop holds whatever other tables say, so this serves firewalld too:

    set firewall-bridges { "cni0" }    set firewall-pairs { "cni0" . "cni0" }

iptables, table `filter`: the chains and rules of the reference, whose releases differ in comments
only.

The name of a bridge may be an alternative one; rules are made of that by which the kernel knows it.
What is no bridge is refused: the policy of a name that a plugin reports first may be that of the
host's uplink, which it would cut off.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import constant_rules, iptables, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.errors import CNIError, invalid_config
from pycni.steps import firewall
from pycni.steps.executor import give_up, undo_all
from pycni.steps.firewall import iptables as firewall_iptables
from pycni.steps.firewall import nftables as firewall_sets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import IngressPolicy
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

FIRST = "CNI-ISOLATION-STAGE-1"
SECOND = "CNI-ISOLATION-STAGE-2"
COMMENT = "made by pycni"

_KINDS = ("bridge", "openvswitch")

_ANY = iptables.comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)")


def apply(step: IngressPolicy, kernel: HostAndSandbox) -> Undo | None:
    """Raises CNIError (code 7) if there is no such bridge, or no rule for its name alone."""
    step = _named(step, kernel)
    netfilter = kernel.host.netfilter
    if _backend(step, netfilter) == "iptables":
        return _apply_iptables(step, kernel)
    return _apply_nftables(step, netfilter)


def check(step: IngressPolicy, kernel: HostAndSandbox) -> list[str]:
    step = _named(step, kernel)
    netfilter = kernel.host.netfilter
    if _backend(step, netfilter) == "iptables":
        return _check_iptables(step)
    harm = "no bridge is kept apart"
    differences = constant_rules.differences(netfilter, [firewall_sets.CHAIN], harm)
    for name, key, wanted in _elements(step):
        found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key)
        if (found is not None) != wanted:
            state = "not in" if wanted else "in"
            differences.append(f"nftables: {step.bridge} is {state} set inet {TABLE} {name}")
    return differences


def collect(kernel: HostAndSandbox, _owners: Owners) -> None:
    """Remove what speaks of bridges that are not there, or of what is none, whoever made it."""
    host = kernel.host
    netfilter = host.netfilter
    gone: dict[str, bool] = {}

    def is_gone(bridge: str) -> bool:
        if bridge not in gone:
            found = host.find(bridge)
            gone[bridge] = found is None or found.kind not in _KINDS
        return gone[bridge]

    netfilter.update(
        lambda: [
            _delete(name, item.key)
            for name in (firewall_sets.BRIDGES, firewall_sets.PAIRS)
            for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name)
            if is_gone(item.key[:16].rstrip(b"\0").decode("utf-8", "surrogateescape"))
        ]
    )
    for family in (AF_INET, AF_INET6):
        for chain in (FIRST, SECOND):
            lines = iptables.present(netfilter, family, firewall_iptables.TABLE, [chain])
            stale = [
                line
                for line in lines
                if line.startswith(f"-A {chain} ") and (name := _bridge_of(line)) and is_gone(name)
            ]
            iptables.delete_rules(netfilter, family, firewall_iptables.TABLE, chain, stale)


def no_bridge(name: str, policy: str, reason: str) -> CNIError:
    """The error for a policy of what is no bridge."""
    return invalid_config(
        f'"{name}" is no bridge for ingress policy "{policy}"',
        f"{reason}; the first interface of prevResult must be the bridge, as the plugin bridge "
        'reports it: put firewall behind that, or drop "ingressPolicy"',
    )


def _named(step: IngressPolicy, kernel: HostAndSandbox) -> IngressPolicy:
    """The step with the name that the kernel has for its bridge. Raises CNIError (code 7)."""
    found = kernel.host.find(step.bridge, altnames=True)
    reason = (
        "the host has no such interface"
        if found is None
        else f"it is a {found.kind or 'hardware interface'}"
    )
    if found is None or found.kind not in _KINDS:
        raise no_bridge(step.bridge, "isolated" if step.isolated else "same-bridge", reason)
    return step.replace(bridge=found.name)


def _backend(step: IngressPolicy, netfilter: NetfilterSocket) -> str:
    backend = firewall.chosen(step.backend, step.families, netfilter)
    if backend == "firewalld":
        from pycni.kernel.netfilter import nftables

        return "nftables" if nftables.available() else "iptables"
    return "iptables" if backend == "ipset" else backend


# --- nftables ------------------------------------------------------------------------------------


def _elements(step: IngressPolicy) -> list[tuple[str, bytes, bool]]:
    """Sets with the key that they should hold, or (False) should not."""
    bridge = step.bridge
    return [
        (firewall_sets.BRIDGES, nfnetlink.ifname_key(bridge), True),
        (firewall_sets.PAIRS, nfnetlink.ifname_key(bridge, bridge), not step.isolated),
    ]


def _apply_nftables(step: IngressPolicy, netfilter: NetfilterSocket) -> Undo | None:
    done: list[tuple[str, bytes, bool]] = []

    def change(name: str, key: bytes, wanted: bool) -> list[NetlinkRequest]:
        there = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key) is not None
        if there == wanted:
            return []
        if wanted:
            return [nfnetlink.add_element(NFPROTO_INET, TABLE, name, key, COMMENT)]
        return [_delete(name, key)]

    def missing() -> list[NetlinkRequest]:
        constant_rules.set_up(netfilter, firewall_sets.DECLARATIONS, [firewall_sets.CHAIN])
        requests: list[NetlinkRequest] = []
        done.clear()
        for name, key, wanted in _elements(step):
            needed = change(name, key, wanted)
            if needed:
                done.append((name, key, wanted))
            requests += needed
        return requests

    def undo() -> None:
        netfilter.update(
            lambda: [
                request for name, key, wanted in done for request in change(name, key, not wanted)
            ]
        )

    netfilter.update(missing)
    return undo if done else None


def _delete(name: str, key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)


# --- iptables ------------------------------------------------------------------------------------


def _rules(step: IngressPolicy) -> list[str]:
    """The rules, in the order in which the reference makes them."""
    policy = "isolated" if step.isolated else "same-bridge"
    own = iptables.comment(f"CNI firewall plugin rules (ingressPolicy: {policy})")
    bridge = iptables.quoted(step.bridge)
    within = [f"-I {FIRST} -i {bridge} -o {bridge} {own} -j DROP"] if step.isolated else []
    return [
        f"-I FORWARD {_ANY} -j {FIRST}",
        f"-I {FIRST} -i {bridge} ! -o {bridge} {own} -j {SECOND}",
        *within,
        f"-A {FIRST} {_ANY} -j RETURN",
        f"-I {SECOND} -o {bridge} {_ANY} -j DROP",
        f"-A {SECOND} {_ANY} -j RETURN",
    ]


def _apply_iptables(step: IngressPolicy, kernel: HostAndSandbox) -> Undo | None:
    if step.bridge.endswith("+"):
        raise invalid_config(
            f'the ingress policy of the bridge "{step.bridge}" would be that of others too',
            "a name that ends in + stands for all that begin so in a rule of iptables: name the "
            'bridge otherwise, or take the backend "nftables"',
        )
    netfilter = kernel.host.netfilter
    undos: list[Undo] = []

    back: list[str] = []
    try:
        for family in step.families:

            def build(family: int = family) -> list[str]:
                chains = [FIRST, SECOND]
                present = iptables.present(netfilter, family, firewall_iptables.TABLE, chains)
                contrary = [line for line in present if _contradicts(line, step)]
                lines = [f"-D{line[2:]}" for line in contrary]
                if _comes_late(present):
                    jumps = [line for line in present if _is_jump(line)]
                    lines += [f"-{verb}{line[2:]}" for line in jumps for verb in "DI"]
                own = iptables.missing(present, chains, _lacking(step, present))
                # The bridge's rules are what this step may take back; the rest is for all bridges.
                back[:] = [f"-D{line[2:]}" for line in own if _bridge_of(line)]
                back.extend(f"-I{line[2:]}" for line in contrary)
                return [*lines, *own]

            back.clear()
            iptables.update(family, firewall_iptables.TABLE, build)
            if back:
                undos.append(iptables.restoring(family, firewall_iptables.TABLE, back))
    except OSError:
        give_up(undos, kernel)
        raise
    return (lambda: undo_all(undos)) if undos else None


def _check_iptables(step: IngressPolicy) -> list[str]:
    differences: list[str] = []
    for family in step.families:
        table = firewall_iptables.TABLE
        present = [*iptables.save(family, table), *iptables.legacy_lines(family, table)]
        program = "iptables" if family == AF_INET else "ip6tables"
        differences += (
            f"{program}: table {table} lacks the rule: -A{rule[2:]}"
            for rule in _lacking(step, present)
        )
        if _comes_late(present):
            differences.append(f"{program}: {FIRST} comes after {firewall_iptables.FORWARD}")
        differences += (
            f"{program}: table {table} has a rule of another policy: {line}"
            for line in present
            if _contradicts(line, step)
        )
    return differences


def _lacking(step: IngressPolicy, present: Collection[str]) -> list[str]:
    """The rules that are not there, whatever the comment."""
    known = {iptables.without_comment(line) for line in present}
    rules = _rules(step)
    return [rule for rule in rules if f"-A{iptables.without_comment(rule)[2:]}" not in known]


def _is_jump(line: str) -> bool:
    return line.startswith("-A FORWARD ") and iptables.jump_of(line) == FIRST


def _comes_late(present: Collection[str]) -> bool:
    """Whether packets are accepted before they are judged."""
    order = [iptables.jump_of(line) for line in present if line.startswith("-A FORWARD ")]
    accept = firewall_iptables.FORWARD
    return FIRST in order and accept in order and order.index(FIRST) > order.index(accept)


def _contradicts(line: str, step: IngressPolicy) -> bool:
    """Whether a rule isolates a bridge that is not to be isolated."""
    bridge = iptables.quoted(step.bridge)
    within = f"-A {FIRST} -i {bridge} -o {bridge} "
    return not step.isolated and line.startswith(within) and iptables.jump_of(line) == "DROP"


def _bridge_of(line: str) -> str:
    """The bridge that a rule speaks of, "" for none."""
    for option in (" -i ", " -o "):
        name = line.partition(option)[2].partition(" ")[0]
        if name:
            return name.strip('"')
    return ""
