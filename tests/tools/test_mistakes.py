"""What a person gets wrong: one line that says what, and what to do; exit code 2, and no failed build in the log."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import pytest

from tests.builder import Builder, Done

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@dataclass(frozen=True)
class Place:
    """A root with one build of two steps, without a key, and files that are none of ours."""

    builder: Builder
    build: str

    def run(self, command: str) -> Done:
        """`command`, in which BUILD is the one there is, and CTX its context."""
        context = str(self.builder.context)
        words = [word.replace("BUILD", self.build).replace("CTX", context) for word in command.split()]
        return self.builder.run(*words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Builder(tmp_path_factory.mktemp("mistakes"))
    made.write({"a": "content"})
    made.must_build("FROM scratch\nCOPY a /a\n")
    (made.context / "junk").write_bytes(bytes(range(256)) * 10)
    return Place(made, made.builds()[-1]["id"])


MISTAKES = {
    "replay BUILD --step 1 --all": "--step, --from, --all and --verify exclude each other",
    "replay BUILD --keep": "--before, --patch and --keep are for --shell",
    "replay BUILD": "completed: no step failed (name one with --step, or rebuild all with --verify)",
    "replay BUILD --step 99": "no step matches '99'",
    "replay BUILD --shell --step 2": "a shell needs a terminal",
    "build CTX --on-failure shell": "a shell needs a terminal",
    "browse": "browse needs a terminal (refledger history, show and why print to anywhere)",
    "show BUILD --at +x": "'+x' is no time after the start (write it as +45s or +1m30s)",
    "show BUILD --at 1999-01-01": "began later than 1999-01-01",
    "du --at nonsense": "'nonsense' is no moment (give an event's number, a time such as",
    "du --at 99999": "there is no event 99999 (the log has events 1 to",
    "du --at 1999-01-01": "the log begins later than 1999-01-01",
    "audit checkpoint": "there is no key to sign with (refledger audit keygen makes one",
    "audit checkpoint --subject x": "--subject is for --publish",
    "audit prove": "give SEQ, or --from and --to",
    "audit prove 1": "the log was never signed (refledger audit keygen, then refledger audit checkpoint)",
    "audit provenance BUILD": "made no image (an image gets its digest when it is exported: --push or --output)",
    "audit provenance BUILD --sign": "there is no key to sign with",
    "audit verify CTX/none": "there is nothing to check (name a root, a bundle, or a proof)",
    "audit verify --proof CTX": "there is nothing to check",
    "audit verify --proof CTX/junk": "a proof is one to holders of a key (name the verifier key with --key)",
    "audit verify --proof CTX/junk CTX": "--proof checks a proof alone",
    "audit verify --quick CTX/junk": "--against and --quick are about a root",
    "audit verify --against file:CTX/none": "it cannot be read: No such file or directory",
    "audit verify --against file:": "file: names no file (write file:PATH)",
    "audit verify --key CTX/junk": "this is no key (make one with: refledger audit keygen)",
    "build CTX --json": "--json is for --check and --cache-check",
    "build CTX --check --cache-check": "--check and --cache-check are two questions",
    "build CTX --policy CTX/none": "there is no such policy (--policy names a file of rules)",
    "build CTX --ssh default": "SSH_AUTH_SOCK is not set, so no agent runs here",
    "build CTX --ssh =x": "--ssh '=x' has no id",
    "build CTX --allow x": "--allow x: no such permission (there is security.insecure and network.host)",
    "build CTX --secret src=x": "has no id (write --secret id=NAME,src=FILE or id=NAME,env=VARIABLE)",
    "build CTX --secret id=x,type=y": "no type 'y' (the types are file and env)",
    "build CTX --secret id=x,colour=y": "has an unknown part 'colour=y'",
    "build CTX --attest type=sbom": "there is no image to attest anything of (add --push or",
    "build CTX --attest sbom": "has a part that is no key=value",
    "build CTX --attest type=sbom,mode=max": "type=sbom has no key 'mode'",
    "build CTX --attest type=provenance,mode=all": "no mode 'all' (it is min or max)",
    "build CTX --label =x": "--label '=x' has no name (write --label NAME=VALUE)",
    "build CTX --offline --push -t a/b": "--offline pushes nothing",
    "build CTX --offline --cache-to a/b": "--offline pushes no cache",
    "index create a": "there is no REF to make an index of",
    "append a - - -t x --push": "standard input can be one layer only",
    "rebase a": "it is not said where the image goes",
    "output BUILD 99": "no step matches '99'",
    "diff BUILD nope": "no build 'nope' (`refledger history` lists the builds of this root)",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_told_in_one_line(place: Place, command: str) -> None:
    done = place.run(command)
    assert done.code == 2, done.err
    assert MISTAKES[command] in done.err
    assert done.err.startswith("ERROR: ")
    assert done.err.count("\n") == 1


def test_no_mistake_left_a_build(place: Place) -> None:
    before = len(place.builder.builds())
    for command in ("build CTX --allow x", "build CTX --policy CTX/none", "replay BUILD --keep"):
        place.run(command)
    assert len(place.builder.builds()) == before


def test_a_replay_of_all_steps_from_one_on_runs_those(place: Place) -> None:
    done = place.run("replay BUILD --from load --json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["now"]["exit_code"] == 0
    done = place.run("replay BUILD --all --json")
    assert done.code == 0, done.err
