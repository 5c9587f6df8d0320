"""The runtime side (libcni): find and load configs, chain plugins, cache results."""
