"""Licenses of the installed packages that vitdeploy depends on, from their metadata."""

from __future__ import annotations

import dataclasses
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from vitdeploy.assess.environment.extras import PACKAGE, requirements, user_extras
from vitdeploy.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import PackageMetadata

NOT_STATED = "not stated"
_LONGEST_NAME = 80  # some packages put the whole text into the field License
_CLASSIFIER = "License :: "


@dataclasses.dataclass(frozen=True)
class PackageLicense:
    """The license of an installed package.

    Attributes:
        package: Package name.
        version: Installed version.
        license: SPDX expression if the package states one, else the name that it states, else `NOT_STATED`.
        direct: True for a direct requirement of vitdeploy, always or in an extra.
    """

    package: str
    version: str
    license: str
    direct: bool

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def licenses() -> tuple[PackageLicense, ...]:
    """Licenses of the installed direct and indirect requirements of vitdeploy and its extras.

    Raises:
        UnavailableError: If vitdeploy is not installed as a package, so that its requirements are unknown.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as exc:
        raise UnavailableError(
            "the requirements of vitdeploy are not known here: it was not installed by pip",
            what="metadata", hint="install it: pip install .",
        ) from exc  # fmt: skip
    extras = ("", *user_extras(package))
    direct = {canonicalize_name(item.name) for extra in extras for item in requirements(package, extra)}
    found = _installed_requirements(package, extras)
    return tuple(
        PackageLicense(item.metadata["Name"], item.version, license_of(item.metadata), name in direct)
        for name, item in sorted(found.items())
        if name != PACKAGE
    )


def license_of(metadata: PackageMetadata) -> str:
    """The first of License-Expression, a one-line License, and the classifiers."""
    expression, name = (" ".join(metadata.get_all(field, [])).strip() for field in ("License-Expression", "License"))
    if expression:
        return expression
    if name and "\n" not in name and len(name) <= _LONGEST_NAME and name.upper() != "UNKNOWN":
        return name
    stated = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if text.startswith(_CLASSIFIER)]
    return ", ".join(stated) or NOT_STATED


def _installed_requirements(package: Distribution, extras: Iterable[str]) -> dict[str, Distribution]:
    """A package with these extras and all its direct and indirect requirements, by normalized names."""
    found: dict[str, Distribution] = {}
    waiting = [(package, extra) for extra in extras]
    visited: set[tuple[str, str]] = set()
    while waiting:
        current, extra = waiting.pop()
        name = canonicalize_name(current.metadata["Name"])
        if (name, extra) in visited:
            continue
        visited.add((name, extra))
        found[name] = current
        for requirement in requirements(current, extra):
            try:
                further = distribution(requirement.name)
            except PackageNotFoundError:  # not installed, for example an extra's
                continue
            waiting += [(further, inner) for inner in ("", *requirement.extras)]
    return found
