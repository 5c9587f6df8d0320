"""The rules for names: containers, networks, interfaces, plugins (SPEC 1.1.0, "Parameters").

Names end up in file names, rule comments and interface names, so what breaks a rule is refused
before anything else looks at it.
"""

from __future__ import annotations

from pycni.spec.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, UNKNOWN_CONTAINER, CNIError

MAX_INTERFACE_NAME = 15  # bytes: IFNAMSIZ of linux/if.h less its NUL

_ALPHANUMERIC = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_NAME = _ALPHANUMERIC | frozenset("_.-")
# Unicode's white space; str.isspace also takes U+001C to U+001F.
_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
_ALLOWED = "a letter or digit, then letters, digits, '_', '.' or '-'"


def is_name(text: str) -> bool:
    """Whether text is fit to name a container or a network."""
    return text[:1] in _ALPHANUMERIC and _NAME.issuperset(text)


def check_container_id(text: str) -> None:
    """Raise the specification's error for what cannot be a container id (CNI_CONTAINERID)."""
    if not text:
        raise CNIError(UNKNOWN_CONTAINER, "missing containerID")
    if not is_name(text):
        raise CNIError(INVALID_ENVIRONMENT, "invalid characters in containerID", text)


def check_network_name(text: str) -> None:
    """Raise the specification's error for what cannot be a network's name."""
    if not text:
        raise CNIError(INVALID_CONFIG, "missing network name:", f'expected "name": {_ALLOWED}')
    if not is_name(text):
        raise CNIError(INVALID_CONFIG, "invalid characters found in network name", text)


def check_interface_name(text: str) -> None:
    """Raise the specification's error for what cannot be an interface's name (CNI_IFNAME)."""
    if not text:
        raise CNIError(INVALID_ENVIRONMENT, "interface name is empty")
    if len(text.encode("utf-8", "replace")) > MAX_INTERFACE_NAME:
        raise CNIError(
            INVALID_ENVIRONMENT,
            "interface name is too long",
            "interface name should be less than 16 characters",
        )
    if text in (".", ".."):
        raise CNIError(INVALID_ENVIRONMENT, "interface name is . or ..")
    if "/" in text or ":" in text or "\0" in text or not _SPACE.isdisjoint(text):
        raise CNIError(
            INVALID_ENVIRONMENT,
            "interface name contains / or : or whitespace characters",
        )
    if "%" in text:
        raise CNIError(
            INVALID_ENVIRONMENT,
            "interface name contains %",
            "the kernel takes it for a template, and makes another name of it",
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CNIError(
            INVALID_ENVIRONMENT, "interface name is not UTF-8", "a result could not hold it"
        )


def check_plugin_type(text: str) -> None:
    """Raise an error for what cannot be a plugin's executable: a name, never a path."""
    if not text:
        raise CNIError(INVALID_CONFIG, "no plugin name provided")
    if "/" in text or "\0" in text or text in (".", ".."):
        raise CNIError(
            INVALID_CONFIG,
            f"invalid plugin name: {text}",
            "a plugin's type is the name of an executable on CNI_PATH, without any '/'",
        )
