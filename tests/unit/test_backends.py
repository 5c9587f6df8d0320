"""What has several backends: how they are found and loaded, and what is asked of them in turn."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pycni.kernel.netfilter.iptables import IPTablesError
from pycni.kernel.netfilter.nftables import NftError
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import Masquerade
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import backend, firewall, ingress_policy, masquerade, port_map
from pycni.steps.backend import Applied, Leftovers

SRC = Path(backend.__file__).parents[2]
STEP = Masquerade(Owner("net", "one", "eth0"), (parse_network("10.1.0.2/24"),))
OWNERS = Owners("net", (STEP.owner.attachment,))
TABLES: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "port_map": (port_map._readable, backend.EVERY),
    "masquerade": (masquerade._readable, backend.EVERY),
    "firewall": (firewall._load, firewall._ALL),
    "ingress_policy": (ingress_policy._load, ("nftables", "iptables")),
}
VERBS = ("apply", "check", "made", "leftovers")


@pytest.mark.parametrize("kind", TABLES)
def test_each_backend_is_a_module_of_its_name(kind: str) -> None:
    load, names = TABLES[kind]
    for name in names:
        module = load(name)
        assert module.__name__ == f"pycni.steps.{kind}.{name}"
        missing = [verb for verb in VERBS if not hasattr(module, verb)]
        assert missing == (["apply"] if name == "reference" else [])


def test_type_checkers_refuse_a_backend_that_does_not_fit(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from pycni.plan.steps import Masquerade\n"
        "from pycni.spec.ip import IPAddress\n"
        "from pycni.steps.backend import Backend\n"
        "from pycni.steps.masquerade import iptables, nftables, reference\n"
        "one: Backend[Masquerade, set[IPAddress]] = nftables\n"
        "two: Backend[Masquerade, set[IPAddress]] = iptables\n"
        "three: Backend[Masquerade, set[IPAddress]] = reference\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", program],
        cwd=SRC.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (error,) = [line for line in done.stdout.splitlines() if "error:" in line]
    assert "program.py:7: error: Incompatible types in assignment" in error


@pytest.mark.parametrize("kind", TABLES)
def test_backends_are_loaded_when_they_are_needed(kind: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SRC)!r}); import pycni.steps.{kind}\n"
        "print(*[name for name in sys.modules if name.startswith('pycni.')])"
    )
    argv = [sys.executable, "-I", "-S", "-c", program]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    of_iptables = [name for name in loaded if "iptables" in name.removesuffix(".iptables_legacy")]
    assert of_iptables == []
    assert not {f"pycni.steps.{kind}.reference", f"pycni.steps.{kind}.firewalld"} & {*loaded}


# --- in turn -------------------------------------------------------------------------------------


class Fake:
    """A backend that notes what it is asked for."""

    def __init__(self, name: str, notes: list[str], **answers: Any) -> None:
        self._name = name
        self._notes = notes
        self._answers = answers

    def apply(self, step: Masquerade, kernel: Any, *, thorough: bool = False) -> Applied:
        self._notes.append(f"{self._name}{' thoroughly' if thorough else ''}")
        if error := self._answers.get("error"):
            raise error
        return Applied(has_written=True)

    def check(self, step: Masquerade, kernel: Any) -> list[str]:
        self._notes.append(self._name)
        found: list[str] = self._answers["lacks"]
        return found

    def made(self, step: Masquerade, kernel: Any) -> bool:
        return bool(self._answers["made"])

    def leftovers(self, owners: Owners, kernel: Any, gone: set[str], step: Any) -> Leftovers:
        gone.add(self._name)
        return Leftovers([self._name], lambda: self._notes.append(self._name))  # type: ignore[list-item]


NFT = NftError(errno.EOPNOTSUPP, "no")
PROGRAM = IPTablesError(errno.EIO, "iptables-restore", "no")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (None, ["one"]),
        (NFT, ["one", "two thoroughly"]),
        (PROGRAM, ["one", "two thoroughly"]),
        (NftError(errno.EPERM, "no"), ["one"]),
        (NetlinkError(errno.ENOSPC, "no", "add"), ["one"]),
        (PermissionError(errno.EPERM, "no"), ["one"]),
    ],
)
def test_the_next_backend_is_for_what_the_host_cannot_do(
    error: OSError | None, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycni.kernel.netfilter.iptables.available", lambda _: True)
    notes: list[str] = []
    known: Any = {"one": Fake("one", notes, error=error), "two": Fake("two", notes)}
    kernel: Any = None
    if error is None or len(asked) > 1:
        assert backend.apply(STEP, kernel, ("one", "two"), known.get).has_written
    else:
        with pytest.raises(type(error)) as caught:
            backend.apply(STEP, kernel, ("one", "two"), known.get)
        assert caught.value is error
    assert notes == asked


@pytest.mark.parametrize("error", [NFT, PROGRAM])
def test_the_last_backend_has_no_other(error: OSError) -> None:
    known: Any = {"one": Fake("one", [], error=error)}
    kernel: Any = None
    with pytest.raises(type(error)):
        backend.apply(STEP, kernel, ("one",), known.get)


@pytest.mark.parametrize(
    ("one", "two", "three", "differences", "asked"),
    [
        ([], (True, []), (True, []), [], ["one"]),
        (["a"], (False, ["b"]), (False, ["c"]), ["a"], ["one"]),
        (["a"], (False, ["b"]), (True, ["c"]), ["c"], ["one", "three"]),
        (["a"], (True, []), (True, ["c"]), [], ["one", "two"]),
        (["a"], (True, ["b"]), (True, []), [], ["one", "two", "three"]),
    ],
)
def test_check_asks_the_first_and_those_that_have_made_it(
    one: list[str],
    two: tuple[bool, list[str]],
    three: tuple[bool, list[str]],
    differences: list[str],
    asked: list[str],
) -> None:
    notes: list[str] = []
    known: Any = {
        "one": Fake("one", notes, lacks=one),
        "two": Fake("two", notes, made=two[0], lacks=two[1]),
        "three": Fake("three", notes, made=three[0], lacks=three[1]),
    }
    kernel: Any = None
    assert backend.check(STEP, kernel, ("one", "two", "three"), known.get) == differences
    assert notes == asked


def test_removal_is_one_transaction_and_then_the_rest() -> None:
    """What others have disturbed is built again, and what follows is done once."""
    notes: list[str] = []

    def update(build: Callable[[], list[Any]]) -> None:
        build()
        notes.append(f"commit {build()}")

    kernel: Any = SimpleNamespace(host=SimpleNamespace(netfilter=SimpleNamespace(update=update)))
    backends: Any = [Fake("one", notes), Fake("two", notes)]
    gone: set[str] = set()
    backend.remove(iter(backends), OWNERS, kernel, gone, STEP)
    assert notes == ["commit ['one', 'two']", "one", "two"]
    assert gone == {"one", "two"}


@pytest.mark.parametrize(
    ("named", "tried", "accepted"),
    [
        ("", ("nftables", "iptables"), ("nftables", "reference", "iptables")),
        ("nftables", ("nftables",), ("nftables", "reference")),
        ("iptables", ("iptables",), ("iptables",)),
    ],
)
def test_what_is_named_alone_counts(
    named: str, tried: tuple[str, ...], accepted: tuple[str, ...]
) -> None:
    assert backend.tried(named) == tried
    assert backend.accepted(named) == accepted
