"""Whatever comes in from outside is read, or refused with the error that is due.

The places are those of `harness.surfaces`. The corpus that the fuzzer collected is tried as it is;
hypothesis adds documents that have the right keys and wrong values, and bytes of any kind.
PYCNI_EXAMPLES says how many of each (25); `make fuzz` looks longer, and where the code leads it.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import corpus
from harness.surfaces import SURFACES
from pycni import plugins
from pycni.spec import versions
from pycni.spec.schema import Anything, Config, Flag, Integer, Kind, ListOf, MapOf, Object

EXAMPLES = int(os.environ.get("PYCNI_EXAMPLES", "25"))

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_every_surface_has_a_corpus() -> None:
    assert set(corpus.surfaces()) == set(SURFACES)


@pytest.mark.parametrize("surface", SURFACES)
def test_corpus(surface: str) -> None:
    inputs = corpus.read(surface)
    assert inputs
    for item in inputs:
        SURFACES[surface](item.data)


def test_new_inputs_take_the_place_of_those_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "CORPUS", tmp_path)
    kept = corpus.Input("regression", b"\0 \r\n\\'\xff ")
    corpus.write("result", [corpus.Input("-", b"gone"), corpus.Input("-", kept.data), kept])
    folder = tmp_path / "folder"
    folder.mkdir()
    corpus.unpack("result", folder)
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [kept.data, b"gone"]
    for path in folder.iterdir():
        path.write_bytes(b"new" if path.read_bytes() == b"gone" else kept.data)
    corpus.pack("result", folder)
    assert corpus.read("result") == [kept, corpus.Input("-", b"new")]


# --- any bytes, and documents with the right keys ---------------------------------------------

NASTY = (
    "", "\0", "a\0b", "../../../nowhere/passwd", "/nowhere/passwd", "..", ".", "\ud800", "%s%n",
    "é" * 9,
    "10.0.0.0/0", "10.0.0.1", "::/0", "::ffff:10.0.0.1/64", "255.255.255.255/32", "fe80::1/128",
    "02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "eth0", "lo", "net.ipv4.ip_forward", "\n-A INPUT",
    "tcp", "-1", "0", "1.1.0", "host-local", "x" * 300, "iptables", "true", "IFNAME", "\u2028",
)  # fmt: skip
NUMBERS = st.sampled_from([0, -1, 1, 4094, 4095, 65535, 65536, 2**31, 2**32, 2**63, 10**300]) | (
    st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.sampled_from(NASTY) | st.text(max_size=20)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NASTY) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def values(kind: Kind) -> st.SearchStrategy[Any]:
    """Values for a declared key, most of them right, some of them anything."""
    fitting: st.SearchStrategy[Any]
    if isinstance(kind, Object):
        fitting = documents(kind.config)
    elif isinstance(kind, ListOf):
        fitting = st.lists(values(kind.item), max_size=3)
    elif isinstance(kind, MapOf):
        fitting = st.dictionaries(st.sampled_from(NASTY), values(kind.item), max_size=3)
    elif isinstance(kind, Flag):
        fitting = st.booleans()
    elif isinstance(kind, Integer):
        fitting = st.integers(kind.minimum, kind.maximum)
    elif isinstance(kind, Anything):
        fitting = ANYTHING
    else:
        fitting = st.sampled_from([*getattr(kind, "choices", ()), *NASTY])
    return fitting | fitting | fitting | ANYTHING


def documents(config: type[Config]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the keys that a class declares, each of them or not."""
    return st.fixed_dictionaries(
        {},
        optional={declared.key: values(declared.kind) for declared in config.declared.values()},
    )


def results() -> st.SearchStrategy[Any]:
    interfaces = st.fixed_dictionaries(
        {"name": st.sampled_from(NASTY)}, optional={"sandbox": st.sampled_from(NASTY)}
    )
    ips = st.fixed_dictionaries(
        {"address": st.sampled_from(NASTY)},
        optional={"interface": st.integers(-3, 3) | NUMBERS, "gateway": st.sampled_from(NASTY)},
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "cniVersion": st.sampled_from(versions.ALL) | ANYTHING,
            "interfaces": st.lists(interfaces, max_size=3) | ANYTHING,
            "ips": st.lists(ips, max_size=3) | ANYTHING,
            "routes": st.lists(st.fixed_dictionaries({"dst": st.sampled_from(NASTY)})) | ANYTHING,
            "dns": ANYTHING,
        },
    )


def configurations(name: str) -> st.SearchStrategy[dict[str, Any]]:
    base = st.fixed_dictionaries(
        {"cniVersion": st.sampled_from(versions.ALL), "name": st.just("net")},
        optional={"prevResult": results(), "type": st.just(name)},
    )
    declared = documents(plugins.load(name).config)
    return st.tuples(declared, base).map(lambda both: {**both[0], **both[1]})


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", plugins.NAMES)
@bounded
@given(data=st.data())
def test_configuration_of_any_values(name: str, data: st.DataObject) -> None:
    document = data.draw(configurations(name))
    SURFACES["configuration"](bytes([plugins.NAMES.index(name)]) + encode(document))


@pytest.mark.parametrize("name", ["host-local", "static"])
@bounded
@given(data=st.data())
def test_address_plugins_with_any_values(name: str, data: st.DataObject) -> None:
    document = data.draw(configurations(name))
    if isinstance(document.get("ipam"), dict):
        SURFACES["address_plugin"](bytes([name == "static"]) + encode(document))


@bounded
@given(results())
def test_result_of_any_values(document: Any) -> None:
    SURFACES["result"](encode(document))


LISTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["net", *NASTY]), "cniVersion": st.sampled_from(versions.ALL)},
    optional={
        "plugins": st.lists(st.sampled_from(plugins.NAMES).flatmap(configurations), max_size=2)
        | ANYTHING,
        "cniVersions": st.lists(st.sampled_from([*versions.ALL, *NASTY]), max_size=3) | ANYTHING,
        "disableCheck": st.sampled_from(NASTY) | st.booleans(),
        "loadOnlyInlinedPlugins": st.booleans() | ANYTHING,
    },
)


@settings(bounded, max_examples=max(10, EXAMPLES // 3))
@given(LISTS)
def test_network_files_of_any_values(document: Any) -> None:
    SURFACES["network_file"](encode(document))


STATE = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["cniCacheV1", "x"]),
        "networkName": st.sampled_from(["net", *NASTY]),
        "containerId": st.sampled_from(["one", *NASTY]),
        "ifName": st.sampled_from(["eth0", *NASTY]),
        "config": st.sampled_from(["e30=", *NASTY]),
        "cniArgs": st.lists(st.lists(st.sampled_from(NASTY), max_size=3), max_size=2) | ANYTHING,
        "capabilityArgs": ANYTHING,
        "netns": LEAVES,
        "result": results(),
        # tuning's and flannel's
        "sysctl": st.dictionaries(st.sampled_from(["net/ipv4/x", *NASTY]), LEAVES, max_size=3),
        "mac": LEAVES,
        "mtu": LEAVES,
        "name": st.just("net"),
        "type": st.sampled_from(NASTY),
        "ipam": ANYTHING,
        "pycni": ANYTHING,
    },
)
NUMBER = st.integers(0, 2**64) | LEAVES
NOTES = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["net", *NASTY]),
        "containerID": st.sampled_from(["one", *NASTY]),
        "ifname": st.sampled_from(["eth0", *NASTY]),
        "path": LEAVES,
        "netns": st.lists(NUMBER, min_size=3, max_size=3) | ANYTHING,
        "host": st.none() | ANYTHING,
        "since": NUMBERS,
        "links": st.lists(st.tuples(st.sampled_from(NASTY), LEAVES, NUMBER), max_size=2) | ANYTHING,
        "addresses": st.lists(st.sampled_from(NASTY), max_size=2) | ANYTHING,
        "parts": ANYTHING
        | st.lists(
            st.fixed_dictionaries(
                {"plugin": LEAVES, "kinds": st.lists(LEAVES), "files": st.lists(LEAVES)}
            ),
            max_size=2,
        ),
        "detaching": LEAVES,
    }
)


@pytest.mark.parametrize("surface", ["cache_file", "kept_document"])
@bounded
@given(document=STATE)
def test_state_files_of_any_values(surface: str, document: Any) -> None:
    SURFACES[surface](encode(document))


@bounded
@given(document=NOTES)
def test_identities_of_any_values(document: Any) -> None:
    SURFACES["identity"](encode(document))


NAMES_OF_LEASES = st.sampled_from(
    ["10.0.0.2", "10.0.0.02", "010.0.0.2", "::ffff:10.0.0.2", "::10.0.0.2", "fd00::2", "FD00::2",
     "lock", "last_reserved_ip.0", "last_reserved_ip.", "10.0.0.2.new", "10.0.0.3", ".x", "é"]
)  # fmt: skip
LEASES = st.lists(
    st.tuples(
        NAMES_OF_LEASES,
        st.sampled_from(
            ["one\\r\\neth0", "one", "", "\\0", " ", "\udcff\\r\\n\udcfe", "x" * 70000]
        ),
    ),
    max_size=6,
)


@bounded
@given(LEASES)
def test_lease_files_of_any_name_and_content(leases: list[tuple[str, str]]) -> None:
    SURFACES["lease_directory"](os.fsencode("\n".join(map("=".join, leases))))


VARIABLE = st.sampled_from([*NASTY, "one", "eth0", "\udcff", "a" * 16, "IP=10.0.0.2", "x;y=z"])


@bounded
@given(
    st.fixed_dictionaries(
        {"CNI_COMMAND": st.sampled_from(["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION", "x"])},
        optional={
            f"CNI_{name}": VARIABLE for name in ("CONTAINERID", "NETNS", "IFNAME", "PATH", "ARGS")
        },
    ),
    st.sampled_from(["", "{}", '{"name": "net"}', '{"name": "net", "cniVersion": "1.1.0"}', "\0"]),
)
def test_environment_of_any_values(environ: dict[str, str], stdin: str) -> None:
    lines = [f"{key}={value}".replace("\n", " ") for key, value in environ.items()]
    SURFACES["environment"](
        "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n\n" + stdin.encode()
    )


@pytest.mark.parametrize("surface", SURFACES)
@settings(bounded, max_examples=max(10, EXAMPLES // 3))
@given(data=st.binary(max_size=300))
def test_any_bytes(surface: str, data: bytes) -> None:
    SURFACES[surface](data)


@pytest.mark.parametrize("surface", SURFACES)
@settings(bounded, max_examples=max(10, EXAMPLES // 2))
@given(seed=st.integers(0, 2**32))
def test_damaged_corpus(surface: str, seed: int) -> None:
    """What the real sender would send, with bytes changed, cut off, repeated."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(corpus.read(surface)).data)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.randrange(9))
        data[at:end] = chance.choice(
            [b"", chance.randbytes(chance.randrange(9)), data[at:end] * 2, b"\xff" * 4, b"\0"]
        )
    SURFACES[surface](bytes(data))
