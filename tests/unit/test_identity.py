"""What is noted of an attachment: written and read again."""

from __future__ import annotations

from pycni.spec.identity import Identity, NetnsID, OwnDevice, OwnLink, Part, decode, encode
from pycni.spec.owner import Owner

IDENTITY = Identity(
    Owner("net", "one", "eth0"),
    "/run/netns/one",
    NetnsID(4, 4026532000, 77),
    NetnsID(4, 4026531840, 1),
    1700.5,
    (OwnLink("sandbox", "eth0", 7), OwnLink("sandbox", "m0", 8, "macvlan", 3, "02:00", 1 << 40)),
    ("192.0.2.5",),
    (Part("host-device", ("masquerade",), ("/run/x",), True),),
)
DEVICE = OwnDevice(
    "eth0", "ens2f0", 7, "02:00:00:00:00:55", 1500, 'an "alias" é', ("enp1s0", "card"),
    "", "02:00:00:00:00:05", "pci", "0000:3b:00.1", 8, 3,
)  # fmt: skip


def test_what_is_written_is_read() -> None:
    for devices in ((), (DEVICE,), (DEVICE, OwnDevice("eth1", "dummy0", 9))):
        identity = IDENTITY.replace(devices=devices)
        assert decode(encode(identity)) == identity


def test_notes_without_devices_are_as_before() -> None:
    """Who has attached before an upgrade is known after it."""
    assert b"devices" not in encode(IDENTITY)


def test_devices_that_cannot_be_read_are_no_note() -> None:
    written = encode(IDENTITY.replace(devices=(DEVICE,)))
    for sound, broken in (
        (b'"link_netnsid":3', b'"link_netnsid":-1'),
        (b'"index":7', b'"index":"7"'),
        (b'"name":"ens2f0",', b""),
    ):
        assert sound in written
        assert decode(written.replace(sound, broken)) is None
