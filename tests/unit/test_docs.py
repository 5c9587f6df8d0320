"""Documents keep their word: the tests they name and the files they link to are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
