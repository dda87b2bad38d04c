"""A build under a policy, attested, signed, then redacted: what its report, its page and its checks say of all that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.builder import Builder, base_image
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


def test_the_report_tells_of_policy_attestations_and_what_was_erased(
    tmp_path: Path, registry: RegistryProcess, repository: str
) -> None:
    builder = Builder(tmp_path / "a place")
    key_file = tmp_path / "audit.key"
    key = builder.run("audit", "keygen", "--name", "ci.example", "-o", str(key_file)).out.strip()
    builder.env["REFLEDGER_AUDIT_KEY_FILE"] = str(key_file)
    base = base_image(registry, repository, layers=1)["reference"]
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[[rule]]\nname = "ours only"\nkind = "images"\nallow = ["{registry.host}"]\n')
    result = f"{registry.host}/{repository}-made:1"
    builder.must_build(
        f"FROM {base}\nARG API_TOKEN\nRUN echo seen-$API_TOKEN\n", "--policy", str(policy), "-t", result, "--push",
        "--attest", "type=provenance,mode=min", "--attest", "type=sbom", "--build-arg", "API_TOKEN=hunter2",
    )  # fmt: skip
    refused = builder.build("FROM other.example/base\nRUN true\n", "--policy", str(policy))
    assert (refused.code, "ours only" in refused.err) == (4, True)
    denied, build = builder.builds()
    for what in ((), ("--args", "API_TOKEN")):
        erased = builder.run("audit", "redact", build["id"], *what, "--reason", "a token was printed", "--yes")
        assert erased.code == 0, erased.err
    page = tmp_path / "report.html"
    assert builder.run("report", build["id"], "-o", str(page)).code == 0

    told = json.loads(builder.run("audit", "report", build["id"], "--json").out)["report"]
    assert {one["decision"] for one in told["decisions"]} == {"allowed"}
    kinds = {one["predicate_type"] for one in told["attestations"]}
    assert kinds == {"https://slsa.dev/provenance/v1", "https://cyclonedx.org/bom"}
    lines = builder.run("audit", "report", build["id"]).out
    html = page.read_text()
    assert "ours only" in builder.run("audit", "report", denied["id"]).out
    for text in (lines, html):
        assert f"{registry.host}/{repository}" in text.partition("Policy")[2]
        assert "a token was printed" in text
        assert "slsa.dev/provenance" in text
        assert "hunter2" not in text
    assert builder.run("audit", "verify", "--key", key).code == 0
    assert builder.run("audit", "verify-image", result, "--key", key).code == 0
