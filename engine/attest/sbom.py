"""An SBOM of what `combine` found, in CycloneDX 1.6 JSON, written by cyclonedx-python-lib.

The same contents give the same bytes: the serial number follows from the image, the time is the image's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from engine.attest.databases import Package
from engine.attest.scan import Contents
from storage.digest import Digest, parse_json

Json = dict[str, Any]
_NOTED = "refledger:"


def cyclonedx(image: Digest, created: str, contents: Contents, version: str) -> Json:
    """The BOM of the file system of `image`, made by this engine's `version`; `created`: RFC 3339, "" for unknown."""
    # reason: the library takes 0.1 s to load, and most builds write no SBOM
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"refledger:sbom:{image}"))
    bom.metadata.timestamp = _time(created)
    whole = Component(name="image", version=str(image), type=ComponentType.CONTAINER, bom_ref=str(image))
    bom.metadata.component = whole
    bom.metadata.tools.components.add(Component(name="refledger", version=version, type=ComponentType.APPLICATION))
    for problem in contents.problems:
        bom.metadata.properties.add(Property(name=f"{_NOTED}incomplete", value=problem))
    if distro := contents.distro.get("ID"):
        release = contents.distro.get("VERSION_ID", "")
        bom.components.add(
            Component(name=distro, version=release, type=ComponentType.OPERATING_SYSTEM, bom_ref=f"os:{distro}")
        )
    for package, path in contents.packages:
        purl = _purl(package, contents)
        bom.components.add(
            Component(
                name=package.name, version=package.version, type=ComponentType.LIBRARY, purl=purl,
                bom_ref=f"{purl}#{path}", properties=_told(package, path),
            )
        )  # fmt: skip
    bom.register_dependency(whole, bom.components)
    made: Json = parse_json(JsonV1Dot6(bom).output_as_string().encode())
    return made


def _told(package: Package, path: str) -> list[Any]:
    from cyclonedx.model import Property

    found = [Property(name=f"{_NOTED}path", value=path)]
    if package.license:  # as the package's maker wrote it, which need not be an SPDX expression
        found.append(Property(name=f"{_NOTED}license", value=package.license))
    return found


def _purl(package: Package, contents: Contents) -> Any:
    """purl-spec's types deb, apk, pypi and npm."""
    from packageurl import PackageURL

    namespace, name, qualifiers = None, package.name, {}
    if package.kind in ("deb", "apk"):
        namespace = contents.distro.get("ID") or {"deb": "debian", "apk": "alpine"}[package.kind]
        release = contents.distro.get("VERSION_ID")
        qualifiers = {"distro": f"{namespace}-{release}"} if release else {}
        qualifiers |= {"arch": package.arch} if package.arch else {}
    elif package.kind == "npm" and name.startswith("@") and "/" in name:
        namespace, _, name = name.partition("/")
    return PackageURL(package.kind, namespace, name, package.version, qualifiers or None)


def _time(created: str) -> datetime:
    try:
        return datetime.fromisoformat(created)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
