"""Names, by the rules of SPEC 1.1.0 and the error objects of the reference's validators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.spec import names
from pycni.spec.errors import CNIError


def refusal(check: Callable[[str], None], text: str) -> tuple[int, str, str]:
    with pytest.raises(CNIError) as caught:
        check(text)
    return caught.value.code, caught.value.message, caught.value.details


@pytest.mark.parametrize("text", ["a", "9", "cnitool-20c433bb2b1d6ede56d6", "a_.-", "0" * 500])
def test_good_names(text: str) -> None:
    names.check_container_id(text)
    names.check_network_name(text)


@pytest.mark.parametrize(
    "text", ["_a", ".a", "-a", "a b", "a/b", "../a", "a\n", "%%%", "é", "aé", "٣", "a\0", "a:b"]
)
def test_bad_names(text: str) -> None:
    assert refusal(names.check_container_id, text) == (
        4,
        "invalid characters in containerID",
        text,
    )
    assert refusal(names.check_network_name, text) == (
        7,
        "invalid characters found in network name",
        text,
    )


@given(st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z", fullmatch=True))
def test_the_specifications_pattern_is_a_name(text: str) -> None:
    assert names.is_name(text)


def test_missing_names() -> None:
    assert refusal(names.check_container_id, "") == (3, "missing containerID", "")
    code, message, details = refusal(names.check_network_name, "")
    assert (code, message) == (7, "missing network name:")
    assert "letter or digit" in details


@pytest.mark.parametrize(
    "text",
    ["e", "eth0", "a" * 15, "é" * 7, "...", "-", "a\x1cb", "a\x1fb", "a\u200bb", "a\"b;'\\"],
)
def test_good_interface_names(text: str) -> None:
    names.check_interface_name(text)


TOO_LONG = ("interface name is too long", "interface name should be less than 16 characters")
TEMPLATE = (
    "interface name contains %",
    "the kernel takes it for a template, and makes another name of it",
)
BAD_SIGN = ("interface name contains / or : or whitespace characters", "")


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("", ("interface name is empty", "")),
        ("a" * 16, TOO_LONG),
        ("é" * 8, TOO_LONG),  # 16 bytes
        ("\udcff" * 16, TOO_LONG),
        ("/" * 16, TOO_LONG),
        (".", ("interface name is . or ..", "")),
        ("..", ("interface name is . or ..", "")),
        ("a/b", BAD_SIGN),
        ("a:b", BAD_SIGN),
        ("a\0b", BAD_SIGN),
        ("eth%d", TEMPLATE),
        ("%", TEMPLATE),
        ("\udcff" * 15, ("interface name is not UTF-8", "a result could not hold it")),
        *((f"a{space}b", BAD_SIGN) for space in "\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028"),
        *((f"a{space}b", BAD_SIGN) for space in "\u2029\u202f\u205f\u3000"),
    ],
)
def test_bad_interface_names(text: str, reported: tuple[str, str]) -> None:
    assert refusal(names.check_interface_name, text) == (4, *reported)


@pytest.mark.parametrize("text", ["bridge", "my plugin", "..x", "plugin.exe"])
def test_good_plugin_types(text: str) -> None:
    names.check_plugin_type(text)


@pytest.mark.parametrize("text", ["/bin/sh", "../bridge", "a/b", ".", "..", "a\0"])
def test_a_plugin_type_is_never_a_path(text: str) -> None:
    code, message, _ = refusal(names.check_plugin_type, text)
    assert (code, message) == (7, f"invalid plugin name: {text}")


def test_missing_plugin_type() -> None:
    assert refusal(names.check_plugin_type, "")[:2] == (7, "no plugin name provided")
