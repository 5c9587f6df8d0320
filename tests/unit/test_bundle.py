"""The file of bytecode that plugins' processes load their modules from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pycni.plugins import NAMES

SRC = Path(__file__).resolve().parents[2] / "src"

_LOAD = """
from pycni import bundle
bundle.use()
from pycni.plugins import load
load("noop")
from pycni.spec import versions
print(type(versions.__spec__.loader).__name__, versions.CURRENT, versions.__file__)
import pycni.kernel.netlink
print(pycni.kernel.netlink.__path__, pycni.kernel.netlink.__package__)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package and its bundle."""
    return make_copy(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that only read it."""
    return make_copy(tmp_path_factory.mktemp("shared"))


def make_copy(folder: Path) -> Path:
    shutil.copytree(SRC, folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    run(folder / "src", "from pycni.agent import bundling; bundling.write()")
    return folder / "src"


def run(folder: Path, code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def bundle_of(folder: Path) -> Path:
    (found,) = (folder / "pycni/__pycache__").glob("*.bundle")
    return found


def test_modules_and_packages_come_from_it(copy: Path) -> None:
    module, package = run(copy, _LOAD)
    assert module == f"Bundle 1.1.0 {copy}/pycni/spec/versions.py"
    assert package == f"['{copy}/pycni/kernel/netlink'] pycni.kernel.netlink"


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_plugin_imports_comes_from_it(shared: Path, name: str) -> None:
    """Whatever is imported with another module is as complete as what is imported by itself."""
    code = f"""if True:
        import sys
        from pycni import bundle
        before = set(sys.modules)
        bundle.use()
        from pycni.plugins import load
        import pycni.sdk.entry
        load({name!r})
        for name in sys.modules.keys() - before:
            if name.startswith("pycni."):
                module = sys.modules[name]
                parent, _, last = name.rpartition(".")
                assert type(module.__spec__.loader) is bundle.Bundle
                assert module.__file__ == module.__spec__.origin
                assert module.__package__ == (name if hasattr(module, "__path__") else parent)
                assert getattr(sys.modules[parent], last) is module
                print(name)
    """
    loaded = run(shared, code)
    assert f"pycni.plugins.{name.replace('-', '_')}" in loaded
    assert "pycni.spec.errors" in loaded


@pytest.mark.parametrize("name", NAMES)
def test_modules_hold_what_they_hold_without_it(shared: Path, name: str) -> None:
    code = """if True:
        import sys
        from pycni import bundle
        USE
        from pycni.plugins import load
        import pycni.sdk.entry
        load(NAME)
        other = {"annotations", "__annotations__", "__cached__", "__doc__", "__loader__"}
        for name, module in sorted(sys.modules.items()):
            if name.startswith("pycni.") and name != "pycni.bundle":
                print(name, sorted((key, str(type(held))) for key, held in vars(module).items()
                                   if key not in other))
    """.replace("NAME", repr(name))
    assert run(shared, code.replace("USE", "bundle.use()")) == run(shared, code.replace("USE", ""))


@pytest.mark.parametrize("use", ["bundle.use()", ""])
def test_a_module_by_its_name(copy: Path, use: str) -> None:
    """With its packages, at once or after one of them; one that is elsewhere, and none at all."""
    code = f"""if True:
        import sys
        from pycni import bundle
        {use}
        for name in ("pycni.steps.tap", "pycni.steps.veth", "colorsys", "pycni"):
            assert bundle.module(name) is sys.modules[name] is bundle.module(name)
        import pycni.steps
        assert pycni.steps.veth is sys.modules["pycni.steps.veth"]
        print(type(pycni.steps.tap.__spec__.loader).__name__)
        for name in ("pycni.steps.none", "none.at.all", "none"):
            try:
                bundle.module(name)
            except ImportError as error:
                print(error.name, name in sys.modules)
    """
    loader = "Bundle" if use else "SourceFileLoader"
    assert run(copy, code) == [loader, "pycni.steps.none False", "none False", "none False"]


@pytest.mark.parametrize("use", ["bundle.use()", ""])
def test_a_module_that_several_threads_ask_for_at_once(copy: Path, use: str) -> None:
    source = copy / "pycni/steps/tap.py"
    text = source.read_text()
    source.write_text(text.replace("import errno\n", "import errno, time; time.sleep(0.2)\n", 1))
    assert source.read_text() != text
    run(copy, "from pycni.agent import bundling; bundling.write()")
    code = f"""if True:
        from concurrent.futures import ThreadPoolExecutor
        from pycni import bundle
        {use}
        with ThreadPoolExecutor(8) as pool:
            ask = lambda _: bundle.module("pycni.steps.tap").apply.__name__
            print(*pool.map(ask, range(8)))
    """
    assert run(copy, code) == [" ".join(["apply"] * 8)]


def test_what_is_for_type_checkers_is_not_in_it(copy: Path) -> None:
    names = b"dataclass_transform", b"_MAC", b"TypedDict"  # two that are used, one that is not
    assert [name in bundle_of(copy).read_bytes() for name in names] == [True, True, False]


def test_a_failure_is_reported_with_its_place_in_the_source(copy: Path) -> None:
    code = "from pycni import bundle; bundle.use()\nfrom pycni.spec.record import Record\n"
    (frame,) = run(
        copy,
        f"{code}try:\n Record(1)\nexcept TypeError as error:\n"
        " print(error.__traceback__.tb_next.tb_frame.f_code.co_filename)",
    )
    assert frame == f"{copy}/pycni/spec/record.py"


def test_a_source_that_has_changed_counts(copy: Path) -> None:
    source = copy / "pycni/spec/versions.py"
    text = source.read_text()
    source.write_text(text.replace('CURRENT = "1.1.0"', 'CURRENT = "9.9.9"'))
    assert source.stat().st_size == len(text.encode())  # only its time says
    assert run(copy, _LOAD)[0].startswith("SourceFileLoader 9.9.9 ")
    run(copy, "from pycni.agent import bundling; bundling.write()")
    assert run(copy, _LOAD)[0].startswith("Bundle 9.9.9 ")


@pytest.mark.parametrize("changed", ["plugins/noop", "sdk/plugin", "spec/errors"])
def test_the_others_still_come_from_it(copy: Path, changed: str) -> None:
    """Be the changed one what is asked for, or what another one needs."""
    source = copy / f"pycni/{changed}.py"
    source.write_text(source.read_text() + "NEW = 1\n")
    code = """if True:
        from pycni import bundle
        bundle.use()
        from pycni.plugins import load
        load("noop")
        import sys
        for place in ("plugins/noop", "sdk/plugin", "spec/errors"):
            module = sys.modules["pycni." + place.replace("/", ".")]
            print(place, type(module.__spec__.loader).__name__, hasattr(module, "NEW"))
    """
    others = {"plugins/noop", "sdk/plugin", "spec/errors"} - {changed}
    expected = {f"{changed} SourceFileLoader True", *(f"{other} Bundle False" for other in others)}
    assert set(run(copy, code)) == expected


def test_a_source_that_has_gone_is_not_loaded(copy: Path) -> None:
    (copy / "pycni/plugins/noop.py").unlink()
    code = "from pycni import bundle; bundle.use()\nfrom pycni.plugins import load\n"
    (said,) = run(
        copy, f"{code}try:\n load('noop')\nexcept ImportError as error:\n print(error.name)"
    )
    assert said == "pycni.plugins.noop"


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "of another Python", "of zeros"])
def test_without_a_good_one_modules_are_imported_as_usual(copy: Path, damage: str) -> None:
    file = bundle_of(copy)
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        left = {"empty": b"", "cut": whole[:100], "of zeros": bytes(len(whole))}
        file.write_bytes(left.get(damage, b"\0\0\r\n" + whole[4:]))
    assert run(copy, _LOAD)[0] == f"SourceFileLoader 1.1.0 {copy}/pycni/spec/versions.py"


def test_installed_plugins_use_it(copy: Path, tmp_path: Path) -> None:
    """Even of a source that cannot be compiled, if it looks as it did."""
    code = f"""if True:
        import pathlib, sys
        sys.path.insert(0, {str(copy)!r})
        from pycni.agent.executables import install
        install(pathlib.Path({str(tmp_path / "bin")!r}), socket=None)
    """
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
    source = copy / "pycni/spec/versions.py"
    known = source.stat()
    source.write_bytes(b"!" * known.st_size)
    os.utime(source, ns=(known.st_atime_ns, known.st_mtime_ns))
    for compiled in (source.parent / "__pycache__").glob("versions.*"):
        compiled.unlink()
    assert answer_of(tmp_path / "bin/noop").startswith('{"cniVersion":"1.1.0"')
    bundle_of(copy).unlink()
    assert "cannot start: SyntaxError" in answer_of(tmp_path / "bin/noop")


def answer_of(plugin: Path) -> str:
    environ = {**os.environ, "CNI_COMMAND": "VERSION"}
    done = subprocess.run(
        [plugin], env=environ, input="{}", capture_output=True, text=True, check=False
    )
    return done.stdout
