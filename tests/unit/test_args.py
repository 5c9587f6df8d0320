"""CNI_ARGS, by the rules of the reference's parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.spec.args import known_args, parse_args
from pycni.spec.errors import CNIError


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("IP=10.0.0.2", {"IP": "10.0.0.2"}),
        ("A=1;B=2;A=3", {"A": "3", "B": "2"}),
        ("A=;=b", {"A": "", "": "b"}),
        ("K8S_POD_NAME=a b", {"K8S_POD_NAME": "a b"}),
    ],
)
def test_pairs(text: str, arguments: dict[str, str]) -> None:
    assert parse_args(text) == arguments


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a=b=c", "a=b=c"),
        ("word", "word"),
        ("A=1;", ""),
        (";", ""),
        ("A=1;;B=2", ""),
        ("A=1,B", None),
    ],
)
def test_what_is_no_pair(text: str, pair: str | None) -> None:
    if pair is None:
        assert parse_args(text) == {"A": "1,B"}
        return
    with pytest.raises(CNIError) as caught:
        parse_args(text)
    assert (caught.value.code, caught.value.message) == (4, f'ARGS: invalid pair "{pair}"')


PLAIN = st.text(st.characters(blacklist_characters=";=", blacklist_categories=["Cs"]))


@given(st.dictionaries(PLAIN, PLAIN, min_size=1))
def test_what_a_runtime_joins_comes_back(arguments: dict[str, str]) -> None:
    text = ";".join(f"{key}={value}" for key, value in arguments.items())
    assert parse_args(text) == arguments


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("IP=10.0.0.2;MAC=", {"IP": "10.0.0.2"}),
        ("K8S_POD_NAME=web;IgnoreUnknown=1;IP=10.0.0.2", {"IP": "10.0.0.2"}),
        ("Unk=nown;IgnoreUnknown=True", {}),
        ("IgnoreUnknown=false;IP=10.0.0.2", {"IP": "10.0.0.2"}),
        ("IgnoreUnknown=0;IgnoreUnknown=true;Unk=nown", {}),
    ],
)
def test_known(text: str, arguments: dict[str, str]) -> None:
    assert known_args(text, "IP", "MAC") == arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=1;IP=10.0.0.2;B=2", 'ARGS: unknown args ["A=1" "B=2"]'),
        ("ip=10.0.0.2", 'ARGS: unknown args ["ip=10.0.0.2"]'),
        ("IgnoreUnknown=0;A=1", 'ARGS: unknown args ["A=1"]'),
        ("IgnoreUnknown=FALSE;A=1", 'ARGS: unknown args ["A=1"]'),
        ("IgnoreUnknown=0, Unk=nown", 'ARGS: invalid pair "IgnoreUnknown=0, Unk=nown"'),
        (
            "IgnoreUnknown=",
            (
                'ARGS: error parsing value of pair "IgnoreUnknown=": '
                "boolean unmarshal error: invalid input "
            ),
        ),
        (
            'IgnoreUnknown="Yes"',
            (
                r'ARGS: error parsing value of pair "IgnoreUnknown=\"Yes\"": '
                'boolean unmarshal error: invalid input "yes"'
            ),
        ),
    ],
)
def test_not_known(text: str, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        known_args(text, "IP", "MAC")
    assert (caught.value.code, caught.value.message) == (4, message)


def test_the_way_out_is_reported() -> None:
    with pytest.raises(CNIError) as caught:
        known_args("A=1", "IP", "MAC")
    assert caught.value.details == "known are IP, MAC; IgnoreUnknown=1 lets others pass"
