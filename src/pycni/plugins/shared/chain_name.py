"""Names of iptables' chains that a configuration gives."""

from __future__ import annotations

from pycni.spec.errors import invalid_config

MAX_CHAIN_NAME = 28


def check_chain_name(key: str, name: str) -> None:
    """Refuse what cannot be the name of a chain of iptables (code 7)."""
    printable = name.isascii() and name.isprintable() and not set(name) & set(" \"'\\:!")
    if not printable or name.startswith("-") or not 0 < len(name) <= MAX_CHAIN_NAME:
        raise invalid_config(
            f'"{name}" in "{key}" is not the name of a chain',
            f"a name is 1 to {MAX_CHAIN_NAME} letters, digits, - and _",
        )
