"""The sets of masqueraded addresses, one for each subnet: see `nftables`, which fills them."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter.subnet_sets import Feature

SETS = Feature(
    "masquerade-",
    {AF_INET: "ipv4_addr", AF_INET6: "ipv6_addr"},
    "masquerade-postrouting",
    {
        AF_INET: "ip saddr @{set} ip daddr != {subnet} ip daddr != 224.0.0.0/4 masquerade",
        AF_INET6: "ip6 saddr @{set} ip6 daddr != {subnet} ip6 daddr != ff00::/8 masquerade",
    },
)
HARM = "no container is masqueraded"
