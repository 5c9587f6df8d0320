"""The one door to Linux: netlink, namespaces, sysctl, nftables, iptables, programs."""
