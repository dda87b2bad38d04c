"""An SBOM of what `combine` found, in CycloneDX 1.6 JSON. Pure.

The same contents give the same bytes: the serial number follows from the image, the time is the image's.
Sources: CycloneDX 1.6 (bom-1.6.schema.json), purl-spec (types deb, apk, rpm, pypi and npm).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from packageurl import PackageURL

from engine.attest.databases import Package
from engine.attest.scan import Contents
from storage.digest import Digest

Json = dict[str, Any]
_VENDORS = {"rhel": "redhat", "opensuse-leap": "opensuse", "opensuse-tumbleweed": "opensuse"}
"""The namespaces of purl-spec's examples of rpm, where they are not the distribution's ID."""


def cyclonedx(image: Digest, created: str, contents: Contents, version: str) -> Json:
    """The BOM of the file system of `image`, made by this engine's `version`; `created`: RFC 3339, "" for unknown."""
    components = _components(contents)
    leaves = sorted(components)
    metadata: Json = {
        "timestamp": _time(created),
        "component": {"type": "container", "bom-ref": image, "name": "image", "version": image},
        "tools": {"components": [{"type": "application", "name": "refledger", "version": version}]},
    }
    if contents.problems:
        metadata["properties"] = [_noted("incomplete", problem) for problem in contents.problems]
    made: Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6",
        "serialNumber": uuid5(NAMESPACE_URL, f"refledger:sbom:{image}").urn, "version": 1,
        "metadata": metadata,
        "components": list(components.values()),
        "dependencies": [{"ref": image, "dependsOn": leaves}, *({"ref": leaf} for leaf in leaves)],
    }  # fmt: skip
    if contents.problems:
        made["compositions"] = [{"aggregate": "incomplete", "assemblies": [image], "dependencies": [image]}]
    return made


def _components(contents: Contents) -> dict[str, Json]:
    """By reference. What a database tells twice is one."""
    found: dict[str, Json] = {}
    if distro := contents.distro.get("ID"):
        release = contents.distro.get("VERSION_ID", "")
        found[f"os:{distro}"] = {"type": "operating-system", "name": distro, "version": release}
    for package, path in contents.packages:
        purl = _purl(package, contents.distro)
        made: Json = {"type": "library", "name": package.name, "version": package.version}
        if purl:
            made["purl"] = purl
        # as the package's maker wrote it, which need not be an SPDX expression
        license_ = [_noted("license", package.license)] if package.license else []
        made["properties"] = [*license_, _noted("path", path)]
        found.setdefault(f"{purl or f'{package.kind}:{package.name}@{package.version}'}#{path}", made)
    return {reference: {"bom-ref": reference, **made} for reference, made in found.items()}


def _noted(name: str, value: str) -> Json:
    return {"name": f"refledger:{name}", "value": value}


def _purl(package: Package, distro: Mapping[str, str]) -> str:
    """Its package URL; "" for a name that can be in none, as `@scope/`."""
    namespace, name, version, qualifiers = None, package.name, package.version, {}
    if package.kind in ("deb", "apk", "rpm"):
        namespace = distro.get("ID") or {"deb": "debian", "apk": "alpine"}.get(package.kind)
        release = distro.get("VERSION_ID")
        qualifiers = {"distro": f"{namespace}-{release}"} if namespace and release else {}
        qualifiers |= {"arch": package.arch} if package.arch else {}
        if package.kind == "rpm":
            namespace = _VENDORS.get(namespace or "", namespace)
            epoch, colon, rest = version.partition(":")
            version, qualifiers = (rest, qualifiers | {"epoch": epoch}) if colon else (version, qualifiers)
    elif package.kind == "npm" and name.startswith("@") and "/" in name:
        namespace, _, name = name.partition("/")
    try:
        return PackageURL(package.kind, namespace, name, version, qualifiers or None).to_string()
    except (ValueError, TypeError):  # TypeError: of a name that is only slashes
        return ""


def _time(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        moment = datetime.fromtimestamp(0, UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
