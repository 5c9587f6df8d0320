"""Names that other programs match on; the vectors are the reference's own."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.spec.config import Attachment
from pycni.spec.owner import MAX_COMMENT, Owner, hashed_name, network_tag


@pytest.mark.parametrize(
    ("network", "container_id", "prefix", "chain"),
    [
        ("test", "1234", "CNI-", "CNI-2bbe0c48b91a7d1b8a6753a8"),
        ("testalongnamethatdoesnotmakesense", "1234", "CNI-", "CNI-374f33fe84ab0ed84dcdebe3"),
        ("test", "1234", "CNI-PREFIX-", "CNI-PREFIX-2bbe0c48b91a7d1b8"),
    ],
)
def test_iptables_chain(network: str, container_id: str, prefix: str, chain: str) -> None:
    assert Owner(network, container_id, "eth0").chain(prefix) == chain
    assert Owner(network, container_id, "net1").chain(prefix) == chain


def test_bandwidth_device() -> None:
    name = Owner("cni-plugin-bandwidth-test", "dummy", "eth0").chain("bwp", 15)
    assert name == "bwpa8eda89404b7"


@pytest.mark.parametrize(
    ("network", "ifname", "container_id", "tag"),
    [
        ("unit-test", "eth0", "one", "6fd94d501e58f0aa-287fc69eff0574a2"),
        ("unit-test", "eth0", "four", "6fd94d501e58f0aa-e766de567ef6c543"),
        ("alternate", "net1", "three", "82783ef24bdc7036-acb19d111858e348"),
    ],
)
def test_nftables_comment(network: str, ifname: str, container_id: str, tag: str) -> None:
    owner = Owner(network, container_id, ifname)
    assert owner.tag == tag
    assert owner.tag.startswith(network_tag(network) + "-")
    assert owner.comment == f"{tag}, net: {network}, if: {ifname}, id: {container_id}"


def test_comment_fits_the_kernel_whatever_the_names() -> None:
    long = Owner("n" * 100, "c" * 100, "eth0").comment
    assert len(long) == MAX_COMMENT
    assert long.endswith("n")
    cut = Owner("n" * 75, "c", "a" + "é" * 7).comment
    assert MAX_COMMENT - 1 <= len(cut.encode()) <= MAX_COMMENT
    assert '"' not in Owner("n", "c", 'e"th').comment


def test_an_interface_name_that_is_not_utf8_has_the_hash_of_its_bytes() -> None:
    owner = Owner("n", "c1", "eth\udcff")
    assert owner.tag.endswith(hashlib.sha512(b"eth\xff:c1").hexdigest()[:16])
    owner.comment.encode()


def test_iptables_comment() -> None:
    assert Owner("net", "c1", "eth0").iptables_comment == 'name: "net" id: "c1"'
    assert Owner('n"t', "c1", "eth0").iptables_comment == r'name: "n\"t" id: "c1"'


def test_attachment() -> None:
    assert Owner("net", "c1", "eth0").attachment == Attachment("c1", "eth0")


@given(st.text(st.characters(blacklist_categories=["Cs"])), st.integers(4, 128))
def test_hashed_name_is_prefix_and_digits_of_sha512(text: str, length: int) -> None:
    name = hashed_name("CN-", text, length)
    assert name == ("CN-" + hashlib.sha512(text.encode()).hexdigest())[:length]
    assert len(name) == length


@pytest.mark.parametrize("length", [0, 3, 4, 129])
def test_a_length_that_leaves_no_digits_is_an_error(length: int) -> None:
    with pytest.raises(ValueError, match=f"a length of {length}"):
        hashed_name("CNI-", "text", length)
