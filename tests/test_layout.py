"""The shape of the repository: names, sizes, packages, the examples of docstrings, and the file tree that ends the README."""

import doctest
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_app", "models", "data", "merging", "callbacks", "evaluation", "storage")
LONGEST = 400


def repository() -> list[str]:
    """Every file that is tracked or would be, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def modules() -> list[str]:
    return [name for name in repository() if name.endswith(".py") and name.split("/")[0] in PACKAGES]


def test_every_file_has_a_name_of_its_own() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [name for name in repository() if vague & {Path(part).stem.lower() for part in Path(name).parts}] == []


def test_tests_are_no_package() -> None:
    assert [str(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_no_file_is_long() -> None:
    sizes = {name: len((ROOT / name).read_text().splitlines()) for name in repository() if name.endswith(".py")}
    assert len(sizes) > 50
    assert {name: size for name, size in sizes.items() if size >= LONGEST} == {}


def test_the_packages_of_the_project_file_are_those_of_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)
    assert sorted(include) == sorted(pattern for name in found for pattern in (name, f"{name}.*"))
    assert set(settings["tool"]["mypy"]["files"]) >= found
    assert set(settings["tool"]["importlinter"]["root_packages"]) == found


def test_every_folder_of_modules_is_a_package() -> None:
    assert [name for name in modules() if not (ROOT / name).with_name("__init__.py").is_file()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_names_of_a_package_are_where_it_says(package: str) -> None:
    found = import_module(package)
    homes = getattr(found, "_HOME", {})
    assert sorted(homes) == sorted(getattr(found, "__all__", []))
    for name, home in homes.items():
        assert getattr(found, name) is getattr(import_module(f"{package}.{home}"), name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = found.no_such_name


@pytest.mark.parametrize("name", [name for name in modules() if ">>> " in (ROOT / name).read_text()])
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = import_module(name.removesuffix(".py").replace("/", "."))
    tried = doctest.testmod(module)
    assert tried.attempted > 0
    assert tried.failed == 0


def readme_tree() -> dict[str, str]:
    """Paths of the block after the last heading, each with its comment; folders end in a slash."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    last = re.split(r"^## ", text, flags=re.MULTILINE)[-1]
    assert last.startswith("The files\n"), "the README ends with the section 'The files'"
    block = re.search(r"^```\w*\n(.*?)^```", last, flags=re.MULTILINE | re.DOTALL)
    assert block is not None, "the section holds one fenced block"
    paths: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in block[1].splitlines():
        entry, _, comment = line.partition("#")
        if not entry.strip():
            continue
        depth = len(entry) - len(entry.lstrip())
        parents = [(at, folder) for at, folder in parents if at < depth]
        path = (parents[-1][1] if parents else "") + entry.strip()
        assert path not in paths, f"{path} is listed twice"
        paths[path] = comment.strip()
        if path.endswith("/"):
            parents.append((depth, path))
    return paths


def test_the_readme_ends_with_the_tree_of_files() -> None:
    tree, files = readme_tree(), repository()
    listed = {path for path in tree if not path.endswith("/")}
    expected = {name for name in files if "/" not in name}
    expected |= {name for name in modules() if not name.endswith("/__init__.py")}
    assert sorted(expected - listed) == [], "missing from the README"
    assert sorted(path for path in listed - expected if path not in files) == [], "in the README only"
    folders = {f"{parent}/" for name in files for parent in Path(name).parents if str(parent) != "."}
    assert sorted({f"{name.split('/')[0]}/" for name in files if "/" in name} - set(tree)) == [], "missing folders"
    assert sorted(set(tree) - listed - folders) == [], "folders in the README only"


def test_every_line_of_the_tree_says_what_the_file_is_for() -> None:
    assert [path for path, comment in readme_tree().items() if not comment] == []
