"""my-mtu on the real kernel; as root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from my_mtu import plugin
from pycni.sdk import testing


@pytest.fixture
def lab() -> Iterator[testing.Lab]:
    with testing.lab() as lab:
        yield lab


def mtu(lab: testing.Lab, container: testing.Container) -> int:
    (link,) = lab.show("link", "show", "dev", "eth0", netns=container)
    return int(link["mtu"])


def test_add_check_delete(lab: testing.Lab) -> None:
    attachment = lab.attach(plugin, {"mtu": 1400})
    previous = attachment.after("192.0.2.2/24", gateway="192.0.2.1")
    assert attachment.add()["ips"] == previous["ips"]
    assert mtu(lab, attachment.container) == 1400
    attachment.check()
    lab.ip("link", "set", "eth0", "mtu", "1500", netns=attachment.container)
    assert "1400" in attachment.drift()
    attachment.delete()
    attachment.delete()


def test_a_bad_configuration_is_refused(lab: testing.Lab) -> None:
    attachment = lab.attach(plugin, {"mtu": "big"})
    attachment.after("192.0.2.2/24")
    error = attachment.refused()
    assert error["code"] == 7
    assert "mtu" in error["msg"]
