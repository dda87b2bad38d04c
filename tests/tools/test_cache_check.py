"""`refledger build --cache-check`: what would run, and why, is told before anything runs; and it is what then runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, Done, base_image, layer_digests
from tests.registry_fixture import RegistryProcess, push_image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def check(builder: Builder, *args: str) -> dict[str, Any]:
    """The answer as JSON, of a check that did nothing."""
    before = _tree(builder)
    done = builder.run("build", str(builder.context), "--cache-check", "--json", *args)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    did = {
        "VertexCompleted", "MaterializationRequested", "PullStarted", "LayerPulled", "LocalCreated", "CacheRecorded",
        "ContextKept", "ExportStarted", "BlobCreated", "RuntimeChosen",
    }  # fmt: skip
    events = builder.events(build=found["build"])
    assert not did.intersection(event["type"] for event in events if not _context(event))
    assert _tree(builder) == before
    assert builder.leftovers() == []
    return found


def _context(event: dict[str, Any]) -> bool:
    return event["type"] == "VertexCompleted" and str(event["data"]["name"]).startswith("[internal]")


def _tree(builder: Builder) -> set[Path]:
    return {path for name in ("layers", "snapshots", "cache") for path in (builder.root / name).glob("*")}


def would(found: dict[str, Any]) -> dict[str, str]:
    """What would be done with each step, by its title."""
    return {step["name"].partition("] ")[2]: step["would"] for step in found["steps"]}


def text(builder: Builder, *args: str) -> Done:
    done = builder.run("build", str(builder.context), "--cache-check", *args)
    assert (done.code, done.err) == (0, "")
    return done


def ran(builder: Builder) -> set[str]:
    """The titles of the steps that ran in the last build."""
    found = builder.events("VertexStarted", build=builder.builds()[0]["id"])
    return {event["data"]["name"].partition("] ")[2] for event in found if "[internal]" not in event["data"]["name"]}


def test_nothing_was_built_so_everything_would_run_and_be_pulled(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder.write({"Dockerfile": f"FROM {image['reference']}\nRUN one\nRUN two\n"})
    before = registry.mark()
    found = check(builder)
    assert would(found) == {"RUN one": "run", "RUN two": "run"}
    assert found["would_run"] == 2
    assert {item["name"]: item["bytes"] for item in found["lacking"]} == {
        layer["digest"]: layer["size"] for layer in image["layers"]
    }  # fmt: skip
    assert found["bytes"] == sum(layer["size"] for layer in image["layers"])
    assert registry.layer_gets(layer_digests(image), since=before) == []
    out = text(builder).out
    assert "2 of 2 steps would run" in out
    assert f"would be pulled, at most {found['bytes'] / 1e6:.1f}MB:" in out
    assert image["reference"].removesuffix(":latest") in out


def test_all_is_cached(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nRUN true\n")
    found = check(builder)
    assert (would(found), found["would_run"], found["lacking"]) == ({"RUN true": "cached"}, 0, [])
    out = text(builder).out
    assert "0 of 1 step would run" in out
    assert "nothing would be pulled" in out


def test_the_first_reason_is_told_and_what_follows_it(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"src/a": "1", "src/b": "1"})
    builder.must_build(f"FROM {image['reference']}\nRUN echo before\nCOPY src /src\nRUN cat /src/a\n")
    built = builder.builds()[0]["id"]
    builder.write({"src/a": "2"})
    found = check(builder)
    assert would(found) == {"RUN echo before": "cached", "COPY src /src": "run", "RUN cat /src/a": "run"}
    assert found["against"] == built
    lines = text(builder).out.splitlines()
    assert lines[1] == "2 of 3 steps would run"
    assert built in lines[2]
    steps = [line.strip() for line in lines[4:]]
    assert steps[0].startswith("cached      2  ")
    assert steps[1].startswith("would run   4  ")
    assert steps[2] == "files that it copies differ"
    assert steps[3].startswith("src/a  changed")
    assert steps[5] == "it follows step 4"
    builder.must_build((builder.context / "Dockerfile").read_text())
    assert ran(builder) >= {"COPY src /src", "RUN cat /src/a"}
    assert "RUN echo before" not in ran(builder)


def test_what_depends_on_what_a_stage_will_make_is_told_as_open(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.write({"src/used": "1", "src/unused": "1"})
    dockerfile = (
        f"FROM {image['reference']} AS made\nCOPY src /src\nRUN cat /src/used > /out\n"
        f"FROM {image['reference']}\nCOPY --from=made /out /out\nRUN cat /out\n"
    )
    builder.must_build(dockerfile)
    builder.write({"src/unused": "2"})
    found = check(builder)
    assert would(found) == {
        "COPY src /src": "run", "RUN cat /src/used > /out": "run", "COPY --from=made /out /out": "run-unless",
        "RUN cat /out": "run-unless",
    }  # fmt: skip
    out = text(builder).out
    assert "4 of 4 steps would run, 2 of them perhaps not" in out
    assert out.count("unless what it copies turns out the same") == 1
    assert out.count("unless what it stands on turns out the same") == 1
    builder.must_build(dockerfile)
    assert not {"COPY --from=made /out /out", "RUN cat /out"} & ran(builder)
    assert set(would(check(builder)).values()) == {"cached"}


def test_a_step_that_its_key_by_content_finds_without_reading_is_told_as_cached(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    """The stage was changed and its file stayed the same; what stands on the copy of that file is known by content."""
    image = base_image(registry, f"{repository}/base", layers=1)

    def dockerfile(comment: str, last: str) -> str:
        return (
            f"FROM {image['reference']} AS made\nRUN echo same > /out # {comment}\n"
            f"FROM {image['reference']}\nCOPY --from=made /out /out\n{last}"
        )

    builder.must_build(dockerfile("one", "RUN cat /out\n"))
    builder.must_build(dockerfile("two", ""))
    builder.write({"Dockerfile": dockerfile("two", "RUN cat /out\n")})
    assert would(check(builder))["RUN cat /out"] == "cached"
    builder.must_build(dockerfile("two", "RUN cat /out\n"))
    assert ran(builder) == set()


def test_a_check_is_in_the_log_and_explained_and_compared_with_nothing(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo 1\n"
    builder.must_build(dockerfile)
    first = builder.builds()[0]["id"]
    builder.write({"Dockerfile": dockerfile.replace("echo 1", "echo 2")})
    checked = check(builder)["build"]
    (started,) = builder.events("BuildStarted", build=checked)
    assert started["data"]["options"]["cache_check"] is True
    assert (builder.builds()[0]["status"], builder.builds()[0]["checked"]) == ("completed", True)
    assert " checked " in builder.run("history").out
    explained = builder.run("why", checked).out
    assert "1 would run" in explained
    assert "its command differs" in explained
    builder.must_build((builder.context / "Dockerfile").read_text())
    assert json.loads(builder.run("why", builder.builds()[0]["id"], "--json").out)["against"] == first


def test_without_a_network_it_tells_what_is_missing(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n")
    builder.write({"Dockerfile": f"FROM {image['reference']}\nRUN echo 1\n"})
    before = registry.mark()
    found = check(builder, "--offline")
    assert would(found) == {"RUN echo 1": "run"}
    assert [item["name"] for item in found["lacking"]] == layer_digests(image)
    assert registry.requests()[before:] == []
    assert "not here, and --offline asks nobody:" in text(builder, "--offline").out
    builder.write({"Dockerfile": "FROM nowhere.invalid/x\n"})
    unknown = builder.run("build", str(builder.context), "--cache-check", "--offline")
    assert unknown.code == 3
    assert "nowhere.invalid/x" in unknown.err


def test_an_export_is_asked_for_its_bytes_but_not_made(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    builder.must_build(f"FROM {image['reference']}\nLABEL a=b\n")
    out = tmp_path / "out"
    found = check(builder, "--output", f"type=local,dest={out}")
    assert found["lacking"][0]["needed_by"] == [f"--output type=local,dest={out}"]
    assert not out.exists()
    target = f"{registry.host}/{repository}/app:1"
    assert check(builder, "-t", target, "--push")["lacking"] == []
    assert builder.events("Exported") == []


def test_lost_bytes_would_be_made_again(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    image = push_image(registry.host, f"{repository}/base", [{"a": b"1"}])
    builder.write({"own": "1"})
    builder.must_build(f"FROM {image['reference']}\nCOPY own /own\n")
    for path in (builder.root / "snapshots").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = check(builder)
    assert would(found) == {"COPY own /own": "run"}
    assert found["steps"][0]["reason"] == "bytes-lost"


def test_questions_that_do_not_fit_together_are_refused(builder: Builder) -> None:
    builder.write({"Dockerfile": "FROM scratch\n"})
    both = builder.run("build", str(builder.context), "--check", "--cache-check")
    assert (both.code, "two questions" in both.err) == (2, True)
    alone = builder.run("build", str(builder.context), "--json")
    assert alone.code == 2


def test_progress_as_json_ends_with_the_answer_as_json(builder: Builder) -> None:
    builder.write({"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    done = builder.run("build", str(builder.context), "--cache-check", "--progress", "json")
    *events, answer = map(json.loads, done.out.splitlines())
    assert events[0]["type"] == "BuildStarted"
    assert answer["would_run"] == 1


def test_a_cache_elsewhere_is_asked_and_what_it_knows_is_not_taken_over(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    dockerfile = f"FROM {image['reference']}\nRUN echo made > /made\n"
    target = f"type=registry,ref={registry.host}/{repository}/cache,mode=max"
    builder.must_build(dockerfile, "--cache-to", target)
    other = Builder(tmp_path / "other")
    other.write({"Dockerfile": dockerfile})
    source = f"type=registry,ref={registry.host}/{repository}/cache"
    out = f"type=local,dest={tmp_path / 'out'}"
    before = registry.mark()
    found = check(other, "--cache-from", source, "--output", out)
    assert would(found) == {"RUN echo made > /made": "cached"}
    assert len(found["lacking"]) == 2
    assert registry.layer_gets([item["name"] for item in found["lacking"]], since=before) == []
    assert would(check(other)) == {"RUN echo made > /made": "run"}
