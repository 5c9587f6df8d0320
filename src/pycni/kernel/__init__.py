"""The one door to Linux: netlink, namespaces, sysctl, nftables, iptables, and the executor of plans."""
