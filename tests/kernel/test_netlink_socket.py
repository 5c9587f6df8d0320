"""The netlink socket on the real kernel: batches, failures, dumps under change, notifications."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from harness import Host, ip_json
from harness.kernel_state import link_names
from pycni.kernel import address, link, namespace
from pycni.kernel.netlink import EventsLost, NetlinkError, NetlinkRequest, NetlinkSocket
from pycni.kernel.netlink import socket as netlink_socket
from pycni.spec.ip import IPAddress, IPNetwork, parse_network


def loopback(number: int) -> NetlinkRequest:
    """Put the numbered address on lo."""
    return address.add(1, IPNetwork(IPAddress.from_int(0x0A000000 + number, 2), 32))


def test_refusal_says_what_was_asked_and_why(netlink: NetlinkSocket) -> None:
    with pytest.raises(NetlinkError) as caught:
        netlink.request(link.update(9999, up=True))
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value) == "set link 9999: up True: No such device"
    assert caught.value.done == ()


def test_refusal_carries_the_extended_acknowledgement(netlink: NetlinkSocket) -> None:
    with pytest.raises(NetlinkError) as caught:
        netlink.request(
            link.NewLink("nonsense", "x0", link.bridge("x0").body.replace(b"bridge", b"bridgf"))
        )
    assert caught.value.errno == errno.EOPNOTSUPP
    assert caught.value.text == "Unknown device type"
    assert "Unknown device type" in str(caught.value)


def test_batch_names_what_was_done_around_a_failure(netlink: NetlinkSocket) -> None:
    requests = [
        link.bridge("br0"),
        link.bridge("br0"),
        link.bridge("br1"),
        link.delete("nothing"),
    ]
    with pytest.raises(NetlinkError) as caught:
        netlink.batch(requests)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.what == 'create bridge "br0"'
    assert caught.value.done == (0, 2)
    assert link_names() == {"lo", "br0", "br1"}


def test_batch_longer_than_one_send(netlink: NetlinkSocket) -> None:
    count = 3 * netlink_socket.BATCH + 5
    answers = netlink.batch([loopback(number) for number in range(count)])
    assert answers == [[]] * count
    assert len(ip_json("address", "show", "dev", "lo")[0]["addr_info"]) == count + 2


def test_failure_in_a_later_send_counts_the_earlier_ones(netlink: NetlinkSocket) -> None:
    bad = netlink_socket.BATCH + 3
    requests = [loopback(number) for number in range(2 * netlink_socket.BATCH + 9)]
    requests[bad] = requests[0]
    with pytest.raises(NetlinkError) as caught:
        netlink.batch(requests)
    sent = range(2 * netlink_socket.BATCH)
    assert caught.value.done == tuple(number for number in sent if number != bad)
    held = len(ip_json("address", "show", "dev", "lo")[0]["addr_info"]) - 2
    assert held == len(caught.value.done)


def test_a_failure_can_be_forced_before_each_request(
    netlink: NetlinkSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def refuse_second(request: NetlinkRequest) -> None:
        seen.append(request.what)
        if len(seen) == 2:
            raise NetlinkError(errno.ENOMEM, "forced", request.what)

    monkeypatch.setattr(netlink_socket, "before_send", refuse_second)
    with pytest.raises(NetlinkError, match="forced") as caught:
        netlink.batch([link.bridge("br0"), link.bridge("br1"), link.bridge("br2")])
    assert caught.value.done == (0,)
    assert seen == ['create bridge "br0"', 'create bridge "br1"']
    monkeypatch.undo()
    assert link_names() == {"lo", "br0"}


def test_socket_stays_in_the_namespace_it_was_opened_in(host: Host) -> None:
    with namespace.create() as other, other.netlink() as inside, NetlinkSocket() as here:
        inside.request(link.bridge("inside"))
        assert link.find(here, "inside") is None
        made: list[object] = []
        thread = threading.Thread(target=lambda: made.append(link.get(inside, "inside").kind))
        thread.start()
        thread.join()
        assert made == ["bridge"]
    assert link_names() == {"lo"}


def test_large_dump_is_whole(netlink: NetlinkSocket) -> None:
    count = 3000
    netlink.batch([loopback(number) for number in range(count)])
    found = address.dump(netlink, 1, 2)
    numbers = {int(one.network.address) - 0x0A000000 for one in found}
    assert numbers.issuperset(range(count))
    assert len(found) == count + 1


def test_answers_longer_than_there_is_room_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink_socket, "BUFFER", 128)
    with NetlinkSocket() as netlink:
        netlink.batch([link.bridge(f"br{number}") for number in range(20)])
        assert {found.name for found in link.dump(netlink)} == link_names()
    with NetlinkSocket() as netlink:
        with pytest.raises(NetlinkError, match="answers were lost") as caught:
            link.get(netlink, "br7")
        assert caught.value.errno == errno.ENOBUFS
        for _ in range(9):
            try:
                assert link.get(netlink, "br7").name == "br7"
            except NetlinkError as error:
                assert error.errno == errno.ENOBUFS
            else:
                return
        pytest.fail("there was never room")


def test_dump_that_is_disturbed_is_repeated_until_consistent(
    netlink: NetlinkSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2000
    netlink.batch([loopback(number) for number in range(count)])
    done = threading.Event()
    come_and_go = parse_network("10.200.0.1/32")
    space = namespace.current()

    def disturb() -> None:
        with space.netlink() as mine:
            while not done.is_set():
                mine.batch((address.add(1, come_and_go), address.delete(1, come_and_go)))
                time.sleep(0.002)

    attempts: list[NetlinkRequest] = []
    monkeypatch.setattr(netlink_socket, "before_send", attempts.append)
    # Sends of the disturbing thread go through the hook as well.
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        dumps = 0
        while dumps < 200:
            dumps += 1
            # All links at once: of one link, IPv4 dumps say of no change (inet_dump_ifaddr).
            found = [int(one.network.address) for one in address.dump(netlink, 0, 2)]
            assert len(found) == len(set(found))
            assert set(range(0x0A000000, 0x0A000000 + count)).issubset(found)
            if sum(request.what.startswith("list") for request in attempts) > dumps:
                break
        else:
            pytest.fail("no dump was ever disturbed: the test shows nothing")
    finally:
        done.set()
        thread.join()
        space.close()


def test_dump_disturbed_every_time_is_an_error(
    netlink: NetlinkSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel fills some datagrams ahead: there must be more of them.
    netlink.batch([loopback(number) for number in range(3000)])
    read = NetlinkSocket._read
    come_and_go = parse_network("10.200.0.1/32")
    with NetlinkSocket() as other:

        def read_and_disturb(
            self: NetlinkSocket, timeout: float | None
        ) -> list[netlink_socket.Message] | None:
            messages = read(self, timeout)
            if self is netlink:
                other.batch((address.add(1, come_and_go), address.delete(1, come_and_go)))
            return messages

        monkeypatch.setattr(NetlinkSocket, "_read", read_and_disturb)
        monkeypatch.setattr(netlink_socket, "LONGEST_PAUSE", 0.001)
        with pytest.raises(NetlinkError) as caught:
            address.dump(netlink)
    assert caught.value.errno == errno.EAGAIN
    assert str(caught.value).startswith("list addresses of all links: ")
    monkeypatch.undo()
    assert len(address.dump(netlink, family=2)) == 3001


def test_refused_dump(netlink: NetlinkSocket) -> None:
    with pytest.raises(NetlinkError) as caught:
        netlink.dump(NetlinkRequest(link.c.RTM_GETLINK, 0, bytes(4), "list with half a header"))
    assert caught.value.errno == errno.EINVAL
    assert len(link.dump(netlink)) == 1


def test_notifications_are_kept_apart_from_answers(netlink: NetlinkSocket) -> None:
    netlink.subscribe((link.c.RTNLGRP_LINK,))
    created = link.create(netlink, link.bridge("br0"))
    assert (created.name, created.kind) == ("br0", "bridge")
    events = netlink.events(time.monotonic() + 5)
    assert link.parse(events[0].payload).name == "br0"
    netlink.unsubscribe()
    netlink.request(link.update(created, up=True))
    assert netlink.events(time.monotonic() + 0.05) == []


def test_deadline_without_notification(netlink: NetlinkSocket) -> None:
    netlink.subscribe((link.c.RTNLGRP_LINK,))
    assert netlink.events(time.monotonic() + 0.02) == []
    assert netlink.events(time.monotonic() - 1) == []


def test_lost_notifications_are_reported(netlink: NetlinkSocket) -> None:
    netlink.subscribe((link.c.RTNLGRP_LINK,))
    with NetlinkSocket() as other:
        created = link.create(other, link.bridge("br0"))
        other.request(link.update(created, up=True))
        for number in range(500):
            other.request(link.update(created, alias=f"change {number}"))
    reported = False
    while not reported:
        try:
            assert netlink.events(time.monotonic() + 1)
        except EventsLost:
            reported = True
    # The socket goes on working.
    assert link.get(netlink, "br0").alias == "change 499"


def test_messages_of_other_processes_are_ignored(netlink: NetlinkSocket) -> None:
    with NetlinkSocket() as liar:
        # As root, any process may send to another's port: here, the answer to its first request.
        forged = link.bridge("forged")
        data = netlink_socket.pack(link.c.RTM_NEWLINK, 0, 1, netlink._port, forged.body)
        liar._socket.sendto(data, (netlink._port, 0))
        assert link.get(netlink, "lo").name == "lo"


def test_close(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    socket = NetlinkSocket()
    socket.close()
    socket.close()
    assert socket.fileno() == -1
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(NetlinkError):
        socket.request(link.bridge("br0"))
