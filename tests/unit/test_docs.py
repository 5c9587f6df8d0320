"""Documents keep their word: tests and files that they name, keys of plugins, parts of pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pycni.cli.key_table import NETWORK_KEYS, key_table
from pycni.cli.schema import schema
from pycni.plugins import NAMES, load

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


NAMED = re.compile(r"`(\w+/test_\w+\.py)::(\w+)`")
WITH_TESTS = [ROOT / "docs" / "compatibility.md", ROOT / "SECURITY.md"]


@pytest.mark.parametrize("document", WITH_TESTS, ids=lambda path: path.name)
def test_tests_that_documents_name_exist(document: Path) -> None:
    named = NAMED.findall(document.read_text())
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("document", WITH_TESTS, ids=lambda path: path.name)
def test_each_row_of_a_table_with_tests_names_one(document: Path) -> None:
    header = ""
    rows = 0
    for line in document.read_text().splitlines():
        if not line.startswith("|"):
            header = ""
        elif not header:
            header = line
        elif re.search(r"\| [Tt]est \|$", header) and not line.startswith("| ---"):
            rows += 1
            assert NAMED.search(line.split("|")[-2]), f"no test: {line}"
    assert rows > 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


PLUGIN_PAGES = ROOT / "docs" / "plugins"
PARTS = ["Keys", "What it does", "On the host", "CHECK", "DEL", "GC", "STATUS"]


@pytest.mark.parametrize("name", [NETWORK_KEYS, *NAMES])
def test_keys_of_a_page_are_those_declared(name: str) -> None:
    page = "README" if name == NETWORK_KEYS else name
    text = (PLUGIN_PAGES / f"{page}.md").read_text()
    found = re.findall(
        r"<!-- keys: written by .*? -->\n\n(.*?)\n<!-- end of keys -->", text, re.DOTALL
    )
    assert found == [key_table(name)], "make docs"


@pytest.mark.parametrize("name", NAMES)
def test_pages_of_plugins_have_the_same_parts(name: str) -> None:
    text = (PLUGIN_PAGES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    introduction, _, rest = text.partition("```json\n")
    assert len(introduction.splitlines()) > 2
    example, _, rest = rest.partition("```\n")
    assert rest.startswith(f"\n## {PARTS[0]}\n")
    headings = re.findall(r"^## (.*)", rest, re.MULTILINE)
    assert headings[: len(PARTS)] == PARTS
    for part in re.split(r"^## .*\n", rest, flags=re.MULTILINE)[1:]:
        assert part.strip()
    document = json.loads(example)
    sections = [item for item in document.get("plugins", [document]) if item["type"] == name]
    ipam = document.get("ipam", {})
    assert sections or ipam.get("type") == name
    for section in sections or [document]:
        assert load(name).config.errors({**section, "name": "x"}) == []


def test_pages_of_plugins_are_listed() -> None:
    pages = {path.name for path in PLUGIN_PAGES.glob("*.md")} - {"README.md"}
    assert pages == {f"{name}.md" for name in NAMES}
    assert (
        set(re.findall(r"\]\((\w[\w-]*\.md)\)", (PLUGIN_PAGES / "README.md").read_text())) == pages
    )


def test_the_readme_leads_to_each_page() -> None:
    text = (ROOT / "README.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"](docs/{page.name})" in text, page.name
    assert "](docs/plugins/README.md)" in text


def test_schema_prints_the_table() -> None:
    printed = CliRunner().invoke(schema, ["--markdown", "bridge"]).output
    assert printed == key_table("bridge")
    assert "`prevResult`" in CliRunner().invoke(schema, ["--markdown"]).output


def test_key_tables_name_nested_keys() -> None:
    assert "| `vlanTrunk[].minID` | number | none |" in key_table("bridge")
    assert "| `ipam.subnet` | network |" in key_table("host-local")
    assert "| `runtimeConfig.portMappings[].hostPort` |" in key_table("portmap")
    assert "| `mtu` | number | the master's |" in key_table("macvlan")
    assert key_table("loopback") == "None of its own.\n"
