"""The exact versions that `make install` and `make openenv` take."""

from __future__ import annotations

import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def pinned(file: str) -> dict[str, str]:
    """Return name -> version of a file with constraints."""
    lines = (line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def unmet(requirements: list[str], versions: dict[str, str]) -> list[str]:
    """Return the requirements that hold without an extra and that the versions do not meet."""
    found = [Requirement(text) for text in requirements]
    found = [
        requirement for requirement in found if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]
    return [
        str(requirement)
        for requirement in found
        if (name := canonicalize_name(requirement.name)) not in versions or versions[name] not in requirement.specifier
    ]


@pytest.mark.parametrize("extra", ["cpu", "dev", "textarena", "skyrl-gym", "verifiers"])
def test_constraints_meet_the_ranges_of_the_project_and_its_extras(extra):
    declared = project()
    wanted = [*declared["dependencies"], *declared["optional-dependencies"][extra]]
    assert unmet(wanted, pinned("constraints.txt")) == []


@pytest.mark.parametrize("library", ["textarena", "skyrl-gym", "verifiers"])
def test_development_install_has_the_environment_libraries_with_what_they_need(library):
    extras = project()["optional-dependencies"]
    assert set(extras[library]) <= set(extras["dev"])
    assert unmet(requires(library) or [], pinned("constraints.txt")) == []


def test_openenv_has_exact_versions():
    versions = pinned("constraints-openenv.txt")
    assert f"openenv>={versions['openenv'].rsplit('.', 1)[0]},<" in (ROOT / "Makefile").read_text()
    assert int(versions["mcp"].split(".")[0]) < 2
