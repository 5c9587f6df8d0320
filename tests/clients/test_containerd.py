"""containerd, by `ctr run --cni` and as kubelet drives it: pod sandboxes by the CRI socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from harness import Namespace, ip_json, run_in
from harness.clients import PAGE, Plugins, leases, links, mentions, page, served
from harness.containerd import Containerd, Kubelet
from harness.dhcp import eventually
from harness.namespaces import bound, covered

MANY = int(os.environ.get("PYCNI_PODS", "50"))


def limits() -> list[str]:
    """The rates that packets on the host are held to."""
    listing = run_in(None, ["tc", "qdisc"]).stdout.splitlines()
    return [line.partition(" rate ")[2].split()[0] for line in listing if " tbf " in line]


@pytest.fixture
def where_ctr_looks(plugins: Plugins) -> Iterator[None]:
    """`ctr` takes plugins from where it was built to: /opt/cni/bin, in Debian also /usr/lib/cni."""
    with bound(plugins.folder, "/usr/lib/cni"):
        if os.path.isdir("/opt/cni/bin"):
            with covered("/opt/cni/bin"):
                yield
        else:
            yield


@pytest.mark.parametrize("plugins", ["ours", "reference"], indirect=True)
def test_ctr(where_ctr_looks: None, containerd: Containerd, plugins: Plugins) -> None:
    seen = containerd.run("one", "ip", "address", "show", "dev", "eth0")
    assert "inet 10.88.0.2/16 " in seen
    assert containerd.run("two", "ping", "-c", "1", "10.88.0.1")
    # The namespace has gone before DEL. If not by DEL, its links go when the kernel comes to it,
    # and the reference leaves its masquerading rules.
    eventually(lambda: links() == ["cni0"], "a container's link is left")
    assert leases() == []
    left = mentions("10.88.0.2", "10.88.0.3")
    assert bool(left) == (plugins.kind == "reference"), left


def test_pod(kubelet: Kubelet, outside: Namespace) -> None:
    """A pod with a published port and limits, from RunPodSandbox to RemovePodSandbox."""
    pod = kubelet.run("web", [(8080, 80)], ingress_bandwidth="8M", egress_bandwidth="16M")
    other = kubelet.run("other")
    assert (pod.address, other.address) == ("10.88.0.2", "10.88.0.3")
    assert sorted(limits()) == ["16Mbit", "8Mbit"]

    # Pods reach each other, and the port is reached from everywhere.
    assert page(pod.address, netns=other.netns) == page(other.address, netns=pod.netns) == PAGE
    for address in ("127.0.0.1", "10.88.0.1", "192.0.2.1"):
        assert page(address, 8080) == PAGE
    assert page("192.0.2.1", 8080, outside) == PAGE
    assert page("10.88.0.1", 8080, pod.netns) == PAGE

    # kubelet stops a pod as often as it likes; removing stops once more.
    for _ in range(2):
        kubelet.stop(pod)
        assert mentions(pod.address, pod.id, "8080") == []
        assert limits() == []
    kubelet.remove(pod)
    assert not served("127.0.0.1", 8080)
    assert page(other.address) == PAGE
    kubelet.stop(other)
    kubelet.remove(other)
    assert sorted(links()) == ["cni0", "uplink"]
    assert leases() == []


@pytest.mark.parametrize("plugins", ["ours", "reference"], indirect=True)
def test_result(kubelet: Kubelet) -> None:
    """What containerd says of a pod's network is what the kernel has."""
    pod = kubelet.run("web", [(8080, 80)], ingress_bandwidth="8M")
    (eth0,) = ip_json("address", "show", "dev", "eth0", netns=pod.netns)
    (peer,) = [link for link in ip_json("link") if link.get("link_netnsid") is not None]
    hosts = {link["ifname"]: link["address"] for link in ip_json("link")}
    sandbox = f"/var/run/netns/{pod.netns.name}"
    assert pod.result["Interfaces"] == {
        "lo": {
            "IPConfigs": [{"IP": "127.0.0.1", "Gateway": ""}, {"IP": "::1", "Gateway": ""}],
            "Mac": "00:00:00:00:00:00",
            "Sandbox": sandbox,
        },
        "cni0": {"IPConfigs": None, "Mac": hosts["cni0"], "Sandbox": ""},
        peer["ifname"]: {"IPConfigs": None, "Mac": peer["address"], "Sandbox": ""},
        "eth0": {
            "IPConfigs": [{"IP": "10.88.0.2", "Gateway": "10.88.0.1"}],
            "Mac": eth0["address"],
            "Sandbox": sandbox,
        },
    }
    assert pod.result["Routes"] == [{"dst": "0.0.0.0/0"}]
    kubelet.remove(pod)


@pytest.mark.parametrize("plugins", ["ours", "agent"], indirect=True)
def test_pod_that_cannot_be_attached(kubelet: Kubelet) -> None:
    """Its port has a holder: kubelet learns who it is, and nothing of the pod is left."""
    first = kubelet.run("first", [(8080, 80)])
    before = links()
    with pytest.raises(grpc.RpcError) as refusal:
        kubelet.run("second", [(8080, 80)])
    assert "8080" in refusal.value.details()
    assert first.id in refusal.value.details()
    assert (links(), leases()) == (before, [first.address])
    assert mentions("10.88.0.3") == []
    assert page("127.0.0.1", 8080) == PAGE
    kubelet.remove(first)
    second = kubelet.run("second", [(8080, 80)])
    assert page("127.0.0.1", 8080) == PAGE
    kubelet.remove(second)


@pytest.mark.parametrize("plugins", ["agent"], indirect=True)
def test_many_pods(kubelet: Kubelet) -> None:
    """Eight at a time; each has an address of its own and is reached, and all go again.

    PYCNI_PODS: how many.
    """
    with ThreadPoolExecutor(8) as callers:
        pods = list(callers.map(lambda number: kubelet.run(f"pod{number}"), range(MANY)))
        assert len({pod.address for pod in pods}) == MANY
        assert leases() == sorted(pod.address for pod in pods)
        assert [page(pod.address) for pod in pods] == [PAGE] * MANY
        list(callers.map(kubelet.stop, pods))
        assert leases() == []
        assert links() == ["cni0"]
        list(callers.map(kubelet.remove, pods))
    assert mentions(*(word for pod in pods for word in (pod.address, pod.id))) == []
