"""The packet filters of Linux: nftables, iptables, ipset, conntrack, firewalld. Knows no plan."""
