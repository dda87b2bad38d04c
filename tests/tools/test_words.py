"""What the commands that look say to people, where others look at their JSON: of one small root, made once."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.builder import Builder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("words"))
    builder.write({"file": "content\n"})
    key = builder.run("audit", "keygen", "--name", "ci.example/words").out.strip()
    (builder.root.parent / "key").write_text(key)
    builder.must_build("FROM scratch\nCOPY file /\nLABEL a=b\n", "-o", f"type=oci,dest={builder.root.parent}/out.tar")
    assert builder.build("FROM scratch\nCOPY missing /\n").code == 2
    return builder


def said(builder: Builder, *args: str, code: int = 0) -> str:
    done = builder.run(*args)
    assert done.code == code, done.err
    return done.out + done.err


def build(builder: Builder) -> str:
    return str(builder.builds()[-1]["id"])


def test_what_lay_in_the_root_as_a_table(builder: Builder) -> None:
    shown = said(builder, "du", "--at", "0s").splitlines()
    assert re.match(r"as of event \d+, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, by the log: ", shown[0])
    assert shown[1].split() == ["ID", "KIND", "SIZE", "REFS", "BUILD"]
    assert shown[2].split()[1:] == ["snapshot", "8B", "1", build(builder)]
    assert shown[-1] == "8B in 1 layers and snapshots"


def test_builds_of_a_time(builder: Builder) -> None:
    assert len(said(builder, "history", "--since", "1h", "--json").splitlines()) == 2
    assert len(said(builder, "history", "--since", "2020-01-31T14:05", "--until", "2300-01-01").splitlines()) == 3
    assert said(builder, "history", "--until", "2020-01-31", "--since", "9999-12-31") == "no such builds\n"
    assert "--since 'never' is no time (" in said(builder, "history", "--since", "never", code=2)


def test_a_root_a_bundle_and_proofs_are_checked_in_words(builder: Builder) -> None:
    key, bundle = str(builder.root.parent / "key"), str(builder.root.parent / "b.bundle")
    whole = said(builder, "audit", "verify", "--key", key)
    assert re.search(r"^log        \d+ events of 2 builds$", whole, re.MULTILINE)
    assert re.search(r"^signed     \d+ of \d+ events, by ci\.example/words\+[0-9a-f]+; log ", whole, re.MULTILINE)
    assert re.search(r"^bytes      \d+ blobs, 1 snapshot should be here; 0 were let go$", whole, re.MULTILINE)
    assert whole.endswith("nothing is wrong with it\n")
    said(builder, "bundle", build(builder), "-o", bundle)
    shown = said(builder, "audit", "verify", bundle, "--key", key)
    assert re.match(rf"build      {build(builder)}: \d+ events, \d+ blobs, all as named\nsigned     \d+ of \d+ ", shown)
    assert shown.endswith("; signature checked\nnothing is wrong with it\n")
    assert "signature not checked: say with --key" in said(builder, "audit", "verify", bundle)
    proof = str(builder.root.parent / "proof")
    said(builder, "audit", "prove", "2", "-o", proof)
    shown = said(builder, "audit", "verify", "--proof", proof, "--key", key)
    assert shown.startswith("event 2 is in the log ci.example/words/")
    assert "say with --key" not in said(builder, "audit", "verify", proof, "--key", key, "--json")
    assert "a proof is one to holders of a key" in said(builder, "audit", "verify", proof, code=2)


def test_what_is_wrong_is_told_line_by_line_up_to_a_number(builder: Builder, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(builder.root, root)
    log = sqlite3.connect(root / "log.db")
    for trigger in [name for (name,) in log.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]:
        log.execute(f"DROP TRIGGER {trigger}")
    log.execute("UPDATE events SET state = x'00'")
    log.commit()
    log.close()
    shown = said(builder, "audit", "verify", str(root), "--quick", code=4)
    wrong = [line for line in shown.splitlines() if line.startswith("WRONG ")]
    assert len(wrong) == 20
    assert re.search(r"^           and \d+ more$", shown, re.MULTILINE)
    assert re.search(r"^ERROR: .*; \d+ more faults$", shown, re.MULTILINE)


def test_a_statement_about_images_goes_where_it_is_wanted(builder: Builder, tmp_path: Path) -> None:
    printed = said(builder, "audit", "provenance", build(builder))
    said(builder, "audit", "provenance", build(builder), "-o", str(tmp_path / "statement"))
    assert (tmp_path / "statement").read_text() == printed.removesuffix("\n")
    assert said(builder, "audit", "provenance", build(builder), "--sign", "-o", "-").startswith('{"payload":')
    assert "made no image for linux/s390x" in said(
        builder, "audit", "provenance", build(builder), "--platform", "linux/s390x", code=2
    )
    unsigned = {"REFLEDGER_AUDIT_KEY_FILE": str(tmp_path / "no key")}
    assert builder.run("audit", "provenance", build(builder), "--sign", env=unsigned).code == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("redaction = 1\n", "redaction is no table"),
        ("[redaction]\nnames = []\n", "[redaction] has no setting 'names'"),
        ("[redaction]\nargs = 'PASSWORD'\n", "[redaction] args is not a list of patterns"),
        ("[redaction\n", "not TOML: "),
        ("[redaction]\nargs = ['\udcff']\n", "not TOML: "),
    ],
)
def test_settings_of_redaction_that_are_none_keep_a_build_from_beginning(
    builder: Builder, text: str, why: str
) -> None:
    settings = builder.root / "audit.toml"
    settings.write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        done = builder.build("FROM scratch\nLABEL a=b\n")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith(f"ERROR: {settings}: {why}")
    finally:
        settings.unlink()
