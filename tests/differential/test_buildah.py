"""The same Dockerfile built by us and by buildah: files, owners, modes, times, links and config, compared one by one.

Every difference that stands is in `EXPLAINED` (and in docs/differences.md) with its reason; any other one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.builder import Builder, base_image
from tests.differential.comparing import compare_json, compare_trees
from tests.differential.reading import Tree, read_directory
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "umoci", "skopeo", "runc"))),
    reason="needs root, buildah, umoci, skopeo and runc",
)

DOCKERFILE = """\
ARG BASE
FROM ${BASE} AS build
ARG VERSION=1.2
WORKDIR /src
COPY src .
RUN echo "built ${VERSION} of $(cat main.c)" > out && chmod 4755 out && ln out hard && ln -s out soft

FROM ${BASE}
ARG VERSION=3
ENV NAME="a b" OTHER=${VERSION:-none} PATH=/opt/bin:${PATH}
LABEL org.example.version=${VERSION} "with space"="x y"
WORKDIR /opt/app
WORKDIR data
COPY --chown=1000:50 --chmod=640 src/main.c ./
COPY --from=build /src/out /src/hard /opt/bin/
COPY src/dir /opt/tree/
ADD src/archive.tar /opt/unpacked/
RUN rm /data/1 && mkdir -p /var/lib/x && echo text > /var/lib/x/file && chown 7:8 /var/lib/x/file \\
    && chmod 1777 /var/lib/x && ln -s ../lib /var/lib/link && touch -d @1000000000 /var/lib/x/old
RUN <<EOF
echo one > /heredoc
echo two >> /heredoc
EOF
USER app
EXPOSE 80 53/udp
VOLUME /var/data /var/more
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD true
SHELL ["/bin/sh", "-ec"]
CMD echo default
ENTRYPOINT ["/opt/bin/out", "--flag"]
"""

EXPLAINED = {
    "created": "the time of the build",
    "history": "each tool words its own; entries and empty_layer flags are compared by the test below",
    "rootfs": "diff IDs depend on times; layer counts: ours has one for each WORKDIR that buildah folds into the next",
    "author": "buildah writes an empty one, the image-spec says it is optional",
    "config.Cmd": "the reference: SHELL is used by the shell form of CMD; buildah 1.28 ignores it there",
    "config.Env": "same variables; one that is set again keeps its place here, as in docker; buildah moves it behind",
    "config.Image": "a field of the classic docker builder, not in the image-spec",
    "config.Hostname": "classic docker builder",
    "config.Domainname": "classic docker builder",
    "config.Labels.io.buildah.version": "buildah signs its images with a label",
    "config.OnBuild": "empty in buildah, left out here",
    "config.AttachStdin": "classic docker builder, always false",
    "config.AttachStdout": "classic docker builder, always false",
    "config.AttachStderr": "classic docker builder, always false",
    "config.Tty": "classic docker builder, always false",
    "config.OpenStdin": "classic docker builder, always false",
    "config.StdinOnce": "classic docker builder, always false",
    "container": "classic docker builder",
    "container_config": "classic docker builder: the config of the last container",
    "docker_version": "classic docker builder",
    "id": "docker v1",
    "parent": "docker v1",
    "Size": "docker v1",
}

_STUB = "buildah leaves the mount points its runtime needed; they are no result of a step and are removed here"
_WORKDIR = "WORKDIR made it, as root; buildah makes it only with the COPY --chown that follows, as that owner"
EXPLAINED_FILES = {
    "dev": _STUB, "proc": _STUB, "sys": _STUB, "run": _STUB,
    "etc/hostname": _STUB, "etc/hosts": _STUB, "etc/resolv.conf": _STUB,
    "opt": _WORKDIR, "opt/app": _WORKDIR, "opt/app/data": _WORKDIR,
    "opt/tree": "its time: that of the copied directory, as BuildKit has it; buildah's is the time of the build",
    "opt/unpacked": "an archive's entry for . leaves the destination alone, as in docker; buildah applies it",
}  # fmt: skip


def test_the_same_dockerfile_gives_the_same_image(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    builder = Builder(tmp_path)
    builder.write({"Dockerfile": DOCKERFILE, "src/main.c": "int main;\n", "src/dir/a/b": "x", "src/dir/c": "y"})
    (builder.context / "src/dir/c").chmod(0o755)
    (builder.context / "src/dir/link").symlink_to("a/b")
    archive = builder.context / "src/archive.tar"
    run("tar", "-C", str(builder.context / "src/dir"), "--owner=5", "--group=6", "-cf", str(archive), ".")
    for path in sorted(builder.context.rglob("*")):
        os.utime(path, (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    before = time.time()
    ours, theirs = f"{registry.host}/{repository}/ours:1", f"{registry.host}/{repository}/theirs:1"
    builder.must_build(DOCKERFILE, "--build-arg", f"BASE={image['reference']}", "-t", ours, "--push")
    buildah(tmp_path, builder.context, image["reference"], theirs)

    difference = compare_trees(unpack(ours, tmp_path / "ours"), unpack(theirs, tmp_path / "theirs"), before)
    named = {key: key.partition(" ")[0].strip("/") for key in difference}
    assert {key: how for key, how in difference.items() if named[key] not in EXPLAINED_FILES} == {}
    assert set(EXPLAINED_FILES) <= set(named.values()), "no longer a difference: take it out of the tables"
    left, right = config_of(ours), config_of(theirs)
    assert {key: pair for key, pair in compare_json(left, right, EXPLAINED).items() if key not in EXPLAINED} == {}
    steps = [entry for entry in left["history"] if entry.get("comment", "").startswith("refledger")]
    assert sum(not entry.get("empty_layer") for entry in left["history"]) == len(left["rootfs"]["diff_ids"])
    assert len(steps) == 19


def buildah(tmp_path: Path, context: Path, base: str, target: str) -> None:
    places = ["--root", str(tmp_path / "buildah"), "--runroot", str(tmp_path / "buildah-run")]
    storage = [*places, "--storage-driver", "overlay"]
    # buildah 1.28 knows no heredocs: the same commands as one line
    heredoc = "RUN <<EOF\necho one > /heredoc\necho two >> /heredoc\nEOF"
    text = DOCKERFILE.replace(heredoc, "RUN echo one > /heredoc; echo two >> /heredoc")
    file = tmp_path / "Dockerfile.buildah"
    file.write_text(text)
    run(
        "buildah", *storage, "bud", "--runtime", "runc", "--layers", "--format", "docker", "--tls-verify=false",
        "--build-arg", f"BASE={base}", "-f", str(file), "-t", "result", str(context),
    )  # fmt: skip
    run("buildah", *storage, "push", "--tls-verify=false", "result", f"docker://{target}")


def run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stderr.decode(errors="replace")[-2000:])
    return done.stdout


def unpack(reference: str, directory: Path) -> Tree:
    run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", f"oci:{directory}:x")
    bundle = directory.with_suffix(".bundle")
    run("umoci", "unpack", "--image", f"{directory}:x", str(bundle))
    return read_directory(bundle / "rootfs")


def config_of(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("skopeo", "inspect", "--config", "--raw", "--tls-verify=false", f"docker://{reference}")
    )
    return found
