"""Masquerading by iptables, and beside what the reference made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Namespace, Sandbox, run_in, run_plugin
from harness.configs import host_local
from harness.kernel_state import ruleset
from harness.topics import masquerade as kit
from harness.topics.masquerade import saved, step
from pycni.kernel.netfilter import nftables
from pycni.plan.steps import Masquerade
from pycni.spec.config import Attachment
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import masquerade
from pycni.steps.namespaces import HostAndSandbox

kernel = kit.kernel


# --- iptables and the reference ------------------------------------------------------------------


def test_iptables_rules_are_the_reference_s(kernel: HostAndSandbox) -> None:
    """Rules and their order as main-plugins describe them: the reference's DEL must match."""
    owner = Owner("test", "1234", "eth0")
    wanted = Masquerade(owner, tuple(map(parse_network, ("10.1.2.3/24", "fd00::3/64"))), "iptables")
    masquerade.apply(wanted, kernel)
    comment = '-m comment --comment "name: \\"test\\" id: \\"1234\\""'
    chain = "CNI-2bbe0c48b91a7d1b8a6753a8"
    assert saved() == [
        f":{chain} -",
        f"-A POSTROUTING -s 10.1.2.3/32 {comment} -j {chain}",
        f"-A {chain} -d 10.1.2.0/24 {comment} -j ACCEPT",
        f"-A {chain} ! -d 224.0.0.0/4 {comment} -j MASQUERADE",
        f":{chain} -",
        f"-A POSTROUTING -s fd00::3/128 {comment} -j {chain}",
        f"-A {chain} -d fd00::/64 {comment} -j ACCEPT",
        f"-A {chain} ! -d ff00::/8 {comment} -j MASQUERADE",
    ]
    assert masquerade.apply(wanted, kernel) is None
    assert len(saved()) == 8
    run_in(None, ["iptables", "-t", "nat", "-F", "POSTROUTING"])
    (difference,) = masquerade.check(wanted, kernel)
    assert "-A POSTROUTING -s 10.1.2.3/32" in difference
    masquerade.remove(step("1234", net="test"), kernel)
    assert saved() == []


def test_iptables_accepts_each_subnet_before_it_masquerades(kernel: HostAndSandbox) -> None:
    """What stays in the second subnet would else be masqueraded by the first one's rules."""
    one = step("one", "10.15.20.2/24", "10.15.21.2/24", backend="iptables")
    undo = masquerade.apply(one, kernel)
    assert undo is not None

    def own() -> list[str]:
        lines = [line for line in saved() if line.startswith(f"-A {one.owner.chain()} ")]
        return [" ".join((*line.split()[2:5], line.split()[-1])) for line in lines]

    wanted = [
        "-d 10.15.20.0/24 -m ACCEPT",
        "-d 10.15.21.0/24 -m ACCEPT",
        "! -d 224.0.0.0/4 MASQUERADE",
    ]
    assert own() == wanted
    # Of an earlier release, or of the reference.
    accept = next(line for line in saved() if "10.15.21.0" in line)
    run_in(None, ["sh", "-c", f"iptables -t nat {accept.replace('-A', '-D', 1)}"])
    run_in(None, ["sh", "-c", f"iptables -t nat {accept}"])
    before = own()
    assert before != wanted
    again = masquerade.apply(one, kernel)
    assert own() == wanted
    assert again is not None
    again()
    assert own() == before
    undo()
    assert saved() == []


CONFIG = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "bridge",
    "bridge": "br0",
    "isGateway": True,
    "ipMasq": True,
}


@pytest.fixture
def reference(reference_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Call the reference's bridge plugin; gives the addresses of its result."""

    def call(command: str, container: str, inside: Namespace) -> list[str]:
        ipam = host_local(tmp_path, "10.15.20.0/24")
        done = run_plugin(
            reference_dir / "bridge",
            command,
            {**CONFIG, "ipam": ipam},
            CNI_CONTAINERID=container,
            CNI_NETNS=inside.path,
        )
        assert done.code == 0, done.stdout
        return [ip["address"] for ip in (done.result or {}).get("ips", [])]

    return call


@pytest.mark.parametrize("known", [True, False])
def test_what_the_reference_made(
    kernel: HostAndSandbox, sandbox: Sandbox, reference: Callable[..., list[str]], known: bool
) -> None:
    inside, other = sandbox(), sandbox()
    addresses = reference("ADD", "one", inside)
    others = reference("ADD", "two", other)
    assert len(saved()) == 8
    wanted = step("one", *addresses)
    assert masquerade.check(wanted, kernel) == []

    masquerade.remove(wanted if known else step("one"), kernel)
    assert any(
        "iptables" in text or "nftables" in text for text in masquerade.check(wanted, kernel)
    )
    chain = Owner("net", "two", "eth0").chain()
    assert len(saved()) == 4
    assert all(chain in line for line in saved())
    assert masquerade.check(step("two", *others), kernel) == []

    masquerade.collect(kernel, Owners("net", keep=frozenset({Attachment("two", "eth0")})))
    masquerade.collect(kernel, Owners("another"))
    assert len(saved()) == 4
    masquerade.collect(kernel, Owners("net"))
    assert saved() == []


def test_reference_s_del_follows_our_add(
    kernel: HostAndSandbox, sandbox: Sandbox, reference: Callable[..., list[str]]
) -> None:
    inside = sandbox()
    addresses = reference("ADD", "one", inside)
    masquerade.remove(step("one"), kernel)
    assert saved() == []
    masquerade.apply(step("one", *addresses, backend="iptables"), kernel)
    assert len(saved()) == 4
    reference("DEL", "one", inside)
    assert saved() == []


def test_reference_s_nftables_rules(kernel: HostAndSandbox) -> None:
    """The table that releases after 1.1.1 make, as main-plugins 3.3 has it."""
    one, two = Owner("net", "one", "eth0"), Owner("net", "two", "eth0")
    run_in(
        None,
        [
            "nft",
            "add table inet cni_plugins_masquerade;"
            "add chain inet cni_plugins_masquerade masq_checks;"
            + ";".join(
                f"add rule inet cni_plugins_masquerade masq_checks ip saddr 10.15.20.{number}"
                f' ip daddr != 10.15.20.0/24 masquerade comment "{owner.comment}"'
                for number, owner in ((2, one), (3, two))
            ),
        ],
    )
    wanted = step("one", "10.15.20.2/24")
    assert masquerade.check(wanted, kernel) == []
    masquerade.remove(wanted, kernel)
    assert masquerade.check(wanted, kernel) != []
    assert "id: one" not in ruleset()
    assert "id: two" in ruleset()
    masquerade.collect(kernel, Owners("net", keep=frozenset({two.attachment})))
    assert "id: two" in ruleset()
    masquerade.collect(kernel, Owners("net"))
    assert "id: two" not in ruleset()


@pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="no iptables-legacy")
def test_what_iptables_legacy_keeps(kernel: HostAndSandbox) -> None:
    comment = '-m comment --comment "name: \\"net\\" id: \\"{0}\\""'
    for container, number in (("one", 2), ("two", 3)):
        chain, text = Owner("net", container, "").chain(), comment.format(container)
        lines = (
            f"*nat\n:{chain} -\n"
            f"-A {chain} -d 10.15.20.0/24 {text} -j ACCEPT\n"
            f"-A {chain} ! -d 224.0.0.0/4 {text} -j MASQUERADE\n"
            f"-A POSTROUTING -s 10.15.20.{number}/32 {text} -j {chain}\nCOMMIT\n"
        )
        subprocess.run(["iptables-legacy-restore", "-n"], input=lines, text=True, check=True)

    def legacy() -> list[str]:
        lines = run_in(None, ["iptables-legacy-save", "-t", "nat"]).stdout.splitlines()
        return [line for line in lines if "CNI" in line]

    wanted = step("one", "10.15.20.2/24")
    assert masquerade.check(wanted, kernel) == []
    masquerade.remove(step("one"), kernel)
    assert masquerade.check(wanted, kernel) != []
    assert len(legacy()) == 4
    masquerade.collect(kernel, Owners("net", keep=frozenset({Attachment("two", "eth0")})))
    assert len(legacy()) == 4
    masquerade.collect(kernel, Owners("net"))
    assert legacy() == []


def test_iptables_where_nftables_cannot_be_had(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftables, "LIBRARY", "libnftables-not-there.so.1")
    monkeypatch.setattr(nftables, "_library", None)
    masquerade.apply(step("one", "10.15.20.2/24"), kernel)
    assert len(saved()) == 4
    assert masquerade.check(step("one", "10.15.20.2/24"), kernel) == []
    with pytest.raises(nftables.NftError, match=r"libnftables-not-there\.so\.1 cannot be loaded"):
        masquerade.apply(step("one", "10.15.20.2/24", backend="nftables"), kernel)
