"""What an installation is made of: one version, declared dependencies, a wheel with the package and its licence."""

import ast
import importlib.metadata
import itertools
import re
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
import setuptools
from tiny import ROOT

import mvlm_jax
from mvlm_jax import cli

# Imported only where they are installed: torch reads its own files and runs the reference model, timm makes goldens.
UNDECLARED = {"torch", "timm"}


@pytest.fixture
def declared(monkeypatch):
    """The arguments of `setup` in setup.py."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_the_version_has_one_value(declared, capsys):
    version = mvlm_jax.__version__
    assert declared["version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mvlm {version}\n"


def test_importing_the_package_imports_no_other_one():
    loaded = "import sys; before = set(sys.modules); import mvlm_jax; print({name.split('.')[0] for name in "
    loaded += "set(sys.modules) - before} - set(sys.stdlib_module_names))"
    output = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "{'mvlm_jax'}"


def test_what_the_package_imports_is_declared_and_what_is_declared_is_imported(declared):
    imported = imported_modules("mvlm_jax")
    required, optional = names(declared["install_requires"]), set()
    for extra in ("beam", "hub", "wandb"):
        optional |= names(declared["extras_require"][extra])
    assert {module for module in imported if not providers(module) & (required | optional | UNDECLARED)} == set()
    assert (required | optional) - set().union(*map(providers, imported)) == set()


def test_what_tests_and_benchmarks_import_is_declared(declared):
    extras = declared["extras_require"]
    emulators = (ROOT / "tests" / "stores" / "emulators.txt").read_text().splitlines()[1:]  # behind the remark
    optional = (extras[name] for name in ("test", "notebooks", "parity", "beam"))
    allowed = names([*declared["install_requires"], *itertools.chain(*optional), *emulators]) | UNDECLARED
    imported = imported_modules("tests", "benchmarks", "configs", "launch")
    assert {module for module in imported if not providers(module) & allowed} == set()
    imported = imported_modules("benchmarks")
    assert names(extras["benchmarks"]) - set().union(*map(providers, imported)) == set()
    allowed = names([*declared["install_requires"], *extras["benchmarks"], *extras["parity"]]) | UNDECLARED
    assert {module for module in imported if not providers(module) & allowed} == set()


def test_a_wheel_holds_the_package_with_its_types_and_licence_and_no_tests(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("mvlm_jax", "tests", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in held if name.endswith(".dist-info/METADATA"))
        (licence,) = (archive.read(name).decode() for name in held if name.endswith("/LICENSE"))
    package = {path.relative_to(source).as_posix() for path in (source / "mvlm_jax").rglob("*") if path.is_file()}
    assert {name for name in held if ".dist-info/" not in name} == package
    assert {"mvlm_jax/py.typed", "mvlm_jax/configs/demo.py"} <= package
    assert licence == (ROOT / "LICENSE").read_text()
    header, _, description = metadata.partition("\n\n")
    assert f"\nVersion: {mvlm_jax.__version__}\n" in header
    assert re.search(r"^License(-Expression)?: Apache-2.0$", header, re.MULTILINE)
    assert description.strip() == (ROOT / "README.md").read_text().strip()


def imported_modules(*directories: str) -> set[str]:
    """Top-level names of the modules of others that the Python files import, `importorskip` included."""
    files = [file for directory in directories for file in (ROOT / directory).rglob("*.py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=aliases):
                    found |= {alias.name for alias in aliases}
                case ast.ImportFrom(module=str(module), level=0):
                    found.add(module)
                case ast.Call(func=ast.Attribute(attr="importorskip"), args=[ast.Constant(value=str(module)), *_]):
                    found.add(module)
    ours = {"mvlm_jax"} | {file.stem for file in files}
    return {module.split(".")[0] for module in found} - ours - set(sys.stdlib_module_names)


def providers(module: str) -> set[str]:
    """The distributions that install a module; its own name where it is not installed."""
    return {canonical(name) for name in INSTALLED.get(module, [module])}


def names(requirements: list[str]) -> set[str]:
    return {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


INSTALLED = importlib.metadata.packages_distributions()
