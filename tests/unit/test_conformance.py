"""The parts of the conformance kit that need no plugin: configurations, shapes, verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pycni.conformance import defaults, report
from pycni.conformance.checks import requirements
from pycni.conformance.checks.result import shape_faults
from pycni.conformance.requirement import KINDS, Finding
from pycni.conformance.subject import Answer, Subject, SubjectError, load_subject
from pycni.spec.versions import ALL

REQUIREMENTS = {one.id: one for one in requirements()}


def subject(config: dict[str, Any], **fields: Any) -> Subject:
    return Subject(Path("/opt/cni/bin/mine"), "interface", config, **fields)


def test_numbers_in_a_configuration() -> None:
    config = {"device": "dev{n}", "port": "{8000+n}", "list": [{"text": "a{8000+n}"}], "plain": 5}
    document = subject(config, versions=("1.0.0",)).document(3)
    assert document == {
        "cniVersion": "1.0.0",
        "name": "conformance",
        "type": "mine",
        "device": "dev3",
        "port": 8003,
        "list": [{"text": "a{8000+n}"}],
        "plain": 5,
    }


@pytest.mark.parametrize(
    ("claimed", "given", "version"),
    [
        (("0.4.0", "1.0.0"), None, "1.0.0"),
        (("1.0.0", "0.3.1"), "0.3.1", "0.3.1"),
        (("0.3.1",), "1.0.0", "0.3.1"),
        ((), None, "1.0.0"),
        (("0.-42.0", "9.0.0"), None, "1.0.0"),
    ],
)
def test_version_to_try(claimed: tuple[str, ...], given: str | None, version: str) -> None:
    config = {} if given is None else {"cniVersion": given}
    assert subject(config, versions=claimed).version == version


def test_a_list_gives_the_plugin_its_part(tmp_path: Path) -> None:
    plugin = tmp_path / "mine"
    plugin.touch(0o755)
    inside = [{"type": "bridge"}, {"type": "mine", "key": 1}]
    found = load_subject(plugin, config={"name": "n", "cniVersion": "1.0.0", "plugins": inside})
    assert found.config == {"type": "mine", "key": 1, "name": "n", "cniVersion": "1.0.0"}
    assert found.kind == "chained"
    assert found.directories == (str(tmp_path),)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"ipam": {"type": "mine"}}, "ipam"),
        ({"ipam": {"type": "host-local"}}, "interface"),
        ({}, "chained"),
    ],
)
def test_kind_by_configuration(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    plugin = tmp_path / "mine"
    plugin.touch(0o755)
    assert load_subject(plugin, config=config).kind == kind
    assert load_subject(plugin, config=config, kind="interface").kind == "interface"


def test_a_plugin_in_a_folder_that_is_emptied_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="not an executable file"):
        load_subject(tmp_path / "mine")


def test_requirements_are_declared_whole() -> None:
    assert len(REQUIREMENTS) > 70
    for one in REQUIREMENTS.values():
        assert one.keyword in ("MUST", "SHOULD")
        assert one.since in ALL
        assert one.text
        assert one.sentence
        assert one.section[0] in "12345"
        assert set(one.kinds) <= set(KINDS)


def test_each_known_plugin_has_a_configuration_for_its_kind() -> None:
    for name, known in defaults.KNOWN.items():
        ipam = known.config.get("ipam", {})
        assert (known.kind == "ipam") == (ipam.get("type") == name), name


SOUND: dict[str, dict[str, Any]] = {
    "0.2.0": {"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": []}, "dns": {}},
    "0.4.0": {"ips": [{"version": "4", "address": "10.0.0.2/24"}], "dns": {}},
    "1.1.0": {
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/x"}],
        "ips": [{"address": "fd00::2/64", "interface": 0}],
        "routes": [{"dst": "::/0", "gw": "fd00::1", "table": 0}],
        "dns": {"nameservers": ["10.0.0.1"]},
        "own-key": 1,
    },
}


@pytest.mark.parametrize(("version", "result"), SOUND.items())
def test_sound_shapes(version: str, result: dict[str, Any]) -> None:
    assert shape_faults(version, result) == []


@pytest.mark.parametrize(
    ("version", "result", "fault"),
    [
        ("0.2.0", {"ips": []}, "ips is a key of newer versions"),
        ("0.2.0", {}, "neither ip4 nor ip6"),
        ("0.3.1", {"ip4": {}}, "ip4 is a key of versions before 0.3.0"),
        ("0.3.1", {"ips": [{"address": "10.0.0.2/24"}]}, "version of 10.0.0.2/24 is None"),
        ("1.0.0", {"ips": [{"address": "10.0.0.2/24", "version": "4"}]}, "version in ips"),
        ("1.0.0", {"ips": [{"address": "10.0.0.2"}]}, "not in CIDR notation"),
        ("1.0.0", {"ips": [{"address": "10.0.0.2/24", "interface": "0"}]}, "interface is '0'"),
        ("1.0.0", {"ips": {}}, "ips is no list"),
        ("1.0.0", {"interfaces": ["eth0"]}, "interfaces[0] is no object"),
        ("1.0.0", {"interfaces": [{"mac": ""}]}, "interfaces[0] lacks name"),
        ("1.0.0", {"routes": [{"gw": "10.0.0.1"}]}, "routes[0] lacks dst"),
        ("1.0.0", {"dns": {"nameservers": "10.0.0.1"}}, "dns.nameservers"),
    ],
)
def test_broken_shapes(version: str, result: dict[str, Any], fault: str) -> None:
    assert fault in "; ".join(shape_faults(version, result))


def finding(name: str, outcome: Any) -> Finding:
    return Finding(REQUIREMENTS[name], outcome, "as seen\x00")


MUST, SHOULD = "del.repeated", "del.undoes"


@pytest.mark.parametrize(
    ("findings", "loose", "strict"),
    [
        ([(MUST, "passed"), (SHOULD, "passed")], True, True),
        ([(MUST, "passed"), (SHOULD, "failed")], True, False),
        ([(MUST, "failed"), (SHOULD, "passed")], False, False),
        ([(MUST, "passed"), (SHOULD, "skipped")], True, True),
        ([(MUST, "skipped")], False, False),
        ([], False, False),
    ],
)
def test_verdict(findings: list[tuple[str, str]], loose: bool, strict: bool) -> None:
    made = [finding(*one) for one in findings]
    assert report.conforms(made) is loose
    assert report.conforms(made, strict=True) is strict


def test_reports_come_in_the_order_of_the_specification() -> None:
    names = ("delegation.add", "version.echo", "error.object", "add.succeeds", "del.repeated")
    found = report.ordered([finding(name, "passed") for name in names])
    assert [one.requirement.id for one in found] == [
        "error.object", "add.succeeds", "del.repeated", "version.echo", "delegation.add",
    ]  # fmt: skip


def test_junit_has_no_signs_that_xml_cannot_hold() -> None:
    text = report.to_junit(subject({}), [finding(MUST, "failed")])
    assert "as seen\N{REPLACEMENT CHARACTER}" in text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer("DEL", 0, "", ""), "DEL exited with 0"),
        (Answer("DEL", -9, "", ""), "DEL was ended by signal 9"),
        (Answer("ADD", 1, '{"code": 7, "msg": "no", "details": "d"}', ""), "error 7: no d"),
        (Answer("ADD", 2, "", "panic:\n  at x"), "exited with 2, stderr 'panic: at x'"),
    ],
)
def test_answers_read_well(answer: Answer, text: str) -> None:
    assert text in str(answer)
