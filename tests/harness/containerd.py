"""containerd in folders of the test's own, and a client of its CRI socket."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.clients import IMAGE, Plugins, image_archive, output, runtime
from harness.dhcp import Program, eventually
from harness.namespaces import Namespace

SETTINGS = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{folder}/socket"
[ttrpc]
address = "{folder}/ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
BinaryName = "{runtime}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "/etc/cni/net.d"
"""


class Containerd(Program):
    """The daemon. Its networks are those in /etc/cni/net.d."""

    def __init__(self, folder: Path, plugins: Plugins, network: dict[str, Any]) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        self.runtime = runtime(folder)
        settings = folder / "config.toml"
        settings.write_text(
            SETTINGS.format(
                folder=folder, image=IMAGE, runtime=self.runtime, plugins=plugins.folder
            )
        )
        os.mkdir("/etc/cni/net.d")
        Path("/etc/cni/net.d/10-lab.conflist").write_text(json.dumps(network))
        super().__init__(["containerd", "--config", settings], folder / "containerd.log")

    def start(self) -> None:
        super().start()
        eventually(lambda: self.said("containerd successfully booted"), "containerd did not start")
        self.ctr(
            "images", "import", "--snapshotter", "native", os.fspath(image_archive(self.folder))
        )

    def ctr(self, *words: str) -> str:
        return output("ctr", "--address", self.socket, "--namespace", "k8s.io", *words)

    def run(self, name: str, *command: str) -> str:
        """`ctr run --cni` of a command in a container of its own; returns what it prints."""
        return self.ctr(
            "run", "--rm", "--cni", "--snapshotter", "native", "--runc-binary",
            os.fspath(self.runtime), IMAGE, name, *command,
        )  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """A pod sandbox that runs; result: its attachments as containerd sums them up."""

    id: str
    address: str
    netns: Namespace
    result: Any


class Kubelet:
    """Does with pods what kubelet does, by the socket that it uses."""

    def __init__(self, socket: Path, folder: Path) -> None:
        # Its handlers would see to each program that this process starts from now on.
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        import grpc

        self.folder = folder
        self.messages, services = grpc.protos_and_services("harness/cri.proto")
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self.runtime = services.RuntimeServiceStub(self.channel)
        self.pods: set[str] = set()  # the ids of those that were made and not yet removed

    def conditions(self) -> dict[str, bool]:
        """What containerd says of itself: whether runtime and network are ready."""
        status = self.runtime.Status(self.messages.StatusRequest(), wait_for_ready=True).status
        return {condition.type: condition.status for condition in status.conditions}

    def run(self, name: str, ports: Sequence[tuple[int, int]] = (), **annotations: str) -> Pod:
        """ports: (on the host, in the pod), TCP; annotations: without `kubernetes.io/`."""
        m = self.messages
        config = m.PodSandboxConfig(
            metadata=m.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="tests"),
            log_directory=os.fspath(self.folder),
            port_mappings=[
                m.PortMapping(host_port=outer, container_port=inner) for outer, inner in ports
            ],
            annotations={
                f"kubernetes.io/{key.replace('_', '-')}": value
                for key, value in annotations.items()
            },
        )
        made = self.runtime.RunPodSandbox(m.RunPodSandboxRequest(config=config)).pod_sandbox_id
        self.pods.add(made)
        answer = self.runtime.PodSandboxStatus(
            m.PodSandboxStatusRequest(pod_sandbox_id=made, verbose=True)
        )
        result = json.loads(answer.info["info"])["cniResult"]
        path = result["Interfaces"]["eth0"]["Sandbox"]
        return Pod(
            made,
            answer.status.network.ip,
            Namespace(os.path.basename(path)),
            result,
        )

    def stop(self, pod: Pod) -> None:
        self.runtime.StopPodSandbox(self.messages.PodSandboxRequest(pod_sandbox_id=pod.id))

    def remove(self, pod: Pod) -> None:
        self._remove(pod.id)

    def close(self) -> None:
        """Remove what a failed test has left, and hang up."""
        try:
            for pod in set(self.pods):
                self._remove(pod)
        finally:
            self.channel.close()

    def _remove(self, pod: str) -> None:
        self.runtime.RemovePodSandbox(self.messages.PodSandboxRequest(pod_sandbox_id=pod))
        self.pods.discard(pod)
