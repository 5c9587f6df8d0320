"""How a sysctl key becomes a path: the first separator decides; no key leaves /proc/sys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.kernel import sysctl


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/forwarding", "net/ipv4/conf/eth0.5/forwarding"),
        ("net.ipv4.conf.eth0/5.forwarding", "net/ipv4/conf/eth0.5/forwarding"),
        ("single", "single"),
    ],
)
def test_first_separator_decides(key: str, path: str) -> None:
    assert sysctl.path(key) == f"/proc/sys/{path}"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "net/../../etc",
        "net.//.x",
        "..",
        ".",
        "net//x",
        "net/",
        "a/./b",
        "a\0",
    ],
)
def test_no_key_leads_out(key: str) -> None:
    with pytest.raises(ValueError, match="not a sysctl key"):
        sysctl.path(key)


@given(st.text(alphabet="./ax\0", max_size=12))
def test_a_path_has_only_plain_parts(key: str) -> None:
    try:
        parts = sysctl.path(key).split("/")
    except ValueError:
        return
    assert parts[:3] == ["", "proc", "sys"]
    assert not {"", ".", ".."}.intersection(parts[3:])
