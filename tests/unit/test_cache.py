from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pycni.spec.errors import CNIError
from pycni.state.cache import CachedAttachment, ResultCache

# As libcni writes it: keys in this order, compact, what is in `result` sorted.
LIBCNI = (
    '{"kind":"cniCacheV1","containerId":"c1","config":"eyJuYW1lIjoibmV0In0=","ifName":"eth0",'
    '"networkName":"net","netns":"/run/netns/c1","cniArgs":[["IgnoreUnknown","1"],["K","V"]],'
    '"capabilityArgs":{"ips":["10.1.2.3"]},'
    '"result":{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}]}}'
)
ENTRY = CachedAttachment(
    "net",
    "c1",
    "eth0",
    b'{"name":"net"}',
    "/run/netns/c1",
    (("IgnoreUnknown", "1"), ("K", "V")),
    {"ips": ["10.1.2.3"]},
    {"ips": [{"address": "10.1.2.3/24"}], "cniVersion": "1.0.0"},
)


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(str(tmp_path))


def plant(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / "results").mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "results" / name).write_bytes(data)


def test_the_file_is_libcnis(cache: ResultCache, tmp_path: Path) -> None:
    cache.write(ENTRY)
    path = tmp_path / "results" / "net-c1-eth0"
    assert path.read_text() == LIBCNI
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["net-c1-eth0"]


def test_libcnis_file_is_read(cache: ResultCache, tmp_path: Path) -> None:
    plant(tmp_path, "net-c1-eth0", LIBCNI)
    entry = cache.read("net", "c1", "eth0")
    assert entry == ENTRY
    result = entry.decoded_result()
    assert result is not None
    assert str(result.ips[0].address) == "10.1.2.3/24"


def test_absent_parts_are_left_out(cache: ResultCache, tmp_path: Path) -> None:
    cache.write(CachedAttachment("net", "c1", "eth0"))
    document = json.loads((tmp_path / "results" / "net-c1-eth0").read_text())
    assert document == {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "config": None,
        "ifName": "eth0",
        "networkName": "net",
    }
    assert cache.read("net", "c1", "eth0") == CachedAttachment("net", "c1", "eth0")


def test_a_bare_result_is_read(cache: ResultCache, tmp_path: Path) -> None:
    plant(tmp_path, "net-c1-eth0", '{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24"}}')
    entry = cache.read("net", "c1", "eth0")
    assert entry is not None
    assert entry.config is None
    result = entry.decoded_result()
    assert result is not None
    assert (result.cni_version, str(result.ips[0].address)) == ("0.2.0", "10.1.2.3/24")
    assert cache.attachments() == []


def test_nothing_known(cache: ResultCache, tmp_path: Path) -> None:
    assert cache.read("net", "c1", "eth0") is None
    assert cache.attachments() == []
    cache.delete("net", "c1", "eth0")
    plant(tmp_path, "net-c1-eth0", "")
    assert cache.read("net", "c1", "eth0") is None


@pytest.mark.parametrize(
    "content",
    [
        "adfadsfasdfasfdsafaf",
        '{"kind":"cniCacheV1","config":"%"}',
        '{"kind":"cniCacheV1","cniArgs":[["a"]]}',
        '{"kind":"cniCacheV1","netns":7}',
    ],
)
def test_a_damaged_file(cache: ResultCache, tmp_path: Path, content: str) -> None:
    plant(tmp_path, "net-c1-eth0", content)
    with pytest.raises(CNIError) as caught:
        cache.read("net", "c1", "eth0")
    assert caught.value.code == 6
    assert "net-c1-eth0" in caught.value.details
    assert cache.attachments() == []


def test_not_json_has_the_texts_runtimes_know(cache: ResultCache, tmp_path: Path) -> None:
    plant(tmp_path, "net-c1-eth0", "nonsense")
    with pytest.raises(CNIError, match=r"^decoding version from network config: "):
        cache.read("net", "c1", "eth0")


def test_delete(cache: ResultCache, tmp_path: Path) -> None:
    cache.write(ENTRY)
    cache.delete("net", "c1", "eth0")
    assert os.listdir(tmp_path / "results") == []


def test_attachments(cache: ResultCache, tmp_path: Path) -> None:
    for network, container, interface in (
        ("net", "c2", "eth0"),
        ("net", "c1", "eth1"),
        ("net", "c1", "eth0"),
        ("other", "c1", "eth0"),
        # Two readings of one prefix: the file says which is right.
        ("net-c1", "x", "eth0"),
    ):
        cache.write(CachedAttachment(network, container, interface, b"{}"))
    plant(tmp_path, "junk", "{")
    plant(tmp_path, "net-c9-eth0", '{"kind":"other","ifName":"eth0","networkName":"net"}')
    plant(tmp_path, "net-c8-eth0", '{"kind":"cniCacheV1","ifName":"","networkName":"net"}')

    def keys(**only: str) -> list[tuple[str, str, str]]:
        return [(e.network, e.container_id, e.ifname) for e in cache.attachments(**only)]

    assert keys() == [
        ("net", "c1", "eth0"),
        ("net", "c1", "eth1"),
        ("net-c1", "x", "eth0"),
        ("net", "c2", "eth0"),
        ("other", "c1", "eth0"),
    ]
    assert keys(container_id="c1") == [
        ("net", "c1", "eth0"),
        ("net", "c1", "eth1"),
        ("other", "c1", "eth0"),
    ]
    assert keys(network="other") == [("other", "c1", "eth0")]
    assert keys(container_id="c1", network="net")[-1] == ("net", "c1", "eth1")


@pytest.mark.parametrize(
    "parts",
    [
        ("../net", "c1", "eth0"),
        ("net", "../../c1", "eth0"),
        ("net", "c1", "../eth0"),
        ("net", "c1", ".."),
        ("", "c1", "eth0"),
        ("net", "", "eth0"),
        ("net", "c1", ""),
    ],
)
def test_names_cannot_leave_the_directory(cache: ResultCache, parts: tuple[str, ...]) -> None:
    operations: list[Any] = [cache.read, cache.delete, lambda *p: cache.write(CachedAttachment(*p))]
    for operation in operations:
        with pytest.raises(CNIError):
            operation(*parts)


def test_a_planted_link_is_not_followed(cache: ResultCache, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text(LIBCNI)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "net-c1-eth0").symlink_to(target)
    assert cache.read("net", "c1", "eth0") is None
    cache.write(ENTRY.replace(config=b"new"))
    assert target.read_text() == LIBCNI
    assert base64.b64encode(b"new").decode() in (tmp_path / "results/net-c1-eth0").read_text()


def test_a_blocked_directory(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a directory")
    with pytest.raises(CNIError) as caught:
        ResultCache(str(tmp_path)).write(ENTRY)
    assert caught.value.code == 5
    with pytest.raises(CNIError):
        ResultCache(str(tmp_path)).attachments()


def test_what_a_killed_writer_left_goes(cache: ResultCache, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    cache.write(ENTRY)
    plant(tmp_path, f"net-c1-eth0.{child}-0a1b2c3d.new", "{")
    plant(tmp_path, f"net-c1-eth0.{os.getpid()}-0a1b2c3d.new", "{")
    assert cache.attachments() == [ENTRY]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "net-c1-eth0",
        f"net-c1-eth0.{os.getpid()}-0a1b2c3d.new",
    ]


# --- one name for two attachments ----------------------------------------------------------------

ONE = CachedAttachment("lab", "web-1", "eth0", b'{"name":"lab"}', "/run/netns/one")
OTHER = CachedAttachment("lab-web", "1", "eth0", b'{"name":"lab-web"}', "/run/netns/other")


@pytest.mark.parametrize(("first", "second"), [(ONE, OTHER), (OTHER, ONE)])
def test_attachments_with_one_file_name(
    cache: ResultCache, first: CachedAttachment, second: CachedAttachment
) -> None:
    """The parts of a file name are joined by a sign that stands in them as well."""

    def read(entry: CachedAttachment) -> CachedAttachment | None:
        return cache.read(entry.network, entry.container_id, entry.ifname)

    cache.write(first)
    assert read(second) is None
    cache.delete(second.network, second.container_id, second.ifname)
    assert read(first) == first
    cache.write(second)
    assert (read(first), read(second)) == (first, second)
    assert {entry.network for entry in cache.attachments()} == {"lab", "lab-web"}
    assert cache.attachments(network=second.network) == [second]
    cache.delete(first.network, first.container_id, first.ifname)
    assert (read(first), read(second)) == (None, second)
    cache.write(second.replace(netns="/run/netns/elsewhere"))
    assert [entry.netns for entry in cache.attachments()] == ["/run/netns/elsewhere"]
    cache.delete(second.network, second.container_id, second.ifname)
    assert cache.attachments() == []
    assert os.listdir(os.path.join(cache.root, "results")) == []
