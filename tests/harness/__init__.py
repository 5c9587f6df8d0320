"""What the tests on the real kernel share: namespaces, looking at the host, running plugins."""

from __future__ import annotations

from harness.attachment import Attach, Attachment
from harness.host import Host, Snapshot, ip_json, ipset_elements, nft_list, run_in, snapshot
from harness.namespaces import Namespace, Sandbox, enter_new_netns, inside, private_mounts
from harness.plugin import PluginRun, call_plugin, run_plugin
from harness.services import ask, service

__all__ = [
    "Attach",
    "Attachment",
    "Host",
    "Namespace",
    "PluginRun",
    "Sandbox",
    "Snapshot",
    "ask",
    "call_plugin",
    "enter_new_netns",
    "inside",
    "ip_json",
    "ipset_elements",
    "nft_list",
    "private_mounts",
    "run_in",
    "run_plugin",
    "service",
    "snapshot",
]
