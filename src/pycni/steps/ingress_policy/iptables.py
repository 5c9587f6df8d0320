"""The iptables backend of `ingress_policy`: the chains and rules of the reference, in table
`filter`. Its releases differ in comments only.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import iptables
from pycni.spec.errors import invalid_config
from pycni.steps.backend import Applied, Leftovers, applied
from pycni.steps.executor import give_up
from pycni.steps.firewall.iptables import FORWARD, TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.plan.steps import IngressPolicy
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

FIRST = "CNI-ISOLATION-STAGE-1"
SECOND = "CNI-ISOLATION-STAGE-2"

_ANY = iptables.comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)")


def apply(step: IngressPolicy, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
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
                present = iptables.present(netfilter, family, TABLE, chains)
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
            iptables.update(family, TABLE, build)
            if back:
                undos.append(iptables.restoring(family, TABLE, back))
    except OSError:
        give_up(undos, kernel)
        raise
    return applied(undos)


def check(step: IngressPolicy, kernel: HostAndSandbox) -> list[str]:
    differences: list[str] = []
    for family in step.families:
        present = iptables.kept(family, TABLE)
        program = iptables.program(family)
        lacking = iptables.lacking(_lacking(step, present), ())
        differences += iptables.sentences(family, TABLE, lacking)
        if _comes_late(present):
            differences.append(f"{program}: {FIRST} comes after {FORWARD}")
        differences += (
            f"{program}: table {TABLE} has a rule of another policy: {line}"
            for line in present
            if _contradicts(line, step)
        )
    return differences


def made(step: IngressPolicy, kernel: HostAndSandbox) -> bool:
    return not check(step, kernel)


def leftovers(
    owners: Owners,
    kernel: HostAndSandbox,
    gone: Callable[[str], bool],
    step: IngressPolicy | None,
) -> Leftovers:
    """What deletes the rules of bridges that are gone."""
    netfilter = kernel.host.netfilter

    def leave() -> None:
        for family in (AF_INET, AF_INET6):
            for chain in (FIRST, SECOND):
                lines = iptables.present(netfilter, family, TABLE, [chain])
                stale = [
                    line
                    for line in lines
                    if line.startswith(f"-A {chain} ") and (name := _bridge_of(line)) and gone(name)
                ]
                iptables.delete_rules(netfilter, family, TABLE, chain, stale)

    return Leftovers(then=leave)


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


def _lacking(step: IngressPolicy, present: Collection[str]) -> list[str]:
    """The rules that are not there, whatever the comment."""
    known = {iptables.without_comment(line) for line in present}
    rules = _rules(step)
    return [rule for rule in rules if f"-A{iptables.without_comment(rule)[2:]}" not in known]


def _is_jump(line: str) -> bool:
    return line.startswith("-A FORWARD ") and iptables.jump_of(line) == FIRST


def _comes_late(present: Iterable[str]) -> bool:
    """Whether packets are accepted before they are judged."""
    order = [iptables.jump_of(line) for line in present if line.startswith("-A FORWARD ")]
    accept = FORWARD
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
