"""The DHCP daemon behind the `dhcp` plugin: acquires leases for containers, renews, releases them.

A room of its own, since it is the one part of address assignment that lives on between calls, and
may import what a plugin may not. The plugin (`pycni.plugins.dhcp`) asks it over a unix socket.
"""
