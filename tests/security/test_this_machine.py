"""What other users of this machine, and whoever filled a context, can make a build read or write outside of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builder import PROJECT, Builder, base_image
from tests.registry_fixture import RegistryProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

SECRET = "root:$6$of-this-machine:19000:0:99999:7:::"
NOBODY = 65534


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


# ---------------------------------------------------------------- the context


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.dockerignore", ".dockerignore"])
def test_a_link_out_of_the_context_is_not_read_as_dockerfile_or_dockerignore(builder: Builder, name: str) -> None:
    """Its first line would be in the error, and all of it in the record, in bundles and in provenance."""
    outside = builder.context.parent / "shadow"
    outside.write_text(SECRET + "\n")
    builder.write({"Dockerfile": "FROM scratch\nLABEL a=b\n"})
    (builder.context / name).unlink(missing_ok=True)
    (builder.context / name).symlink_to(outside)
    done = builder.run("build", str(builder.context))
    assert done.code == 2
    assert "link to something that is not in the context" in done.err
    assert "6$of-this" not in done.out + done.err
    assert not builder.root.exists() or not [p for p in builder.root.rglob("*") if p.is_file() and _holds(p)]


def _holds(path: Path) -> bool:
    return SECRET.encode() in path.read_bytes()


def test_links_inside_of_the_context_and_files_named_outside_of_it_are_read(builder: Builder) -> None:
    builder.write({"real/Dockerfile": "FROM scratch\nLABEL a=b\n"})
    (builder.context / "Dockerfile").symlink_to("/real/Dockerfile")  # as a path of the context
    assert builder.run("build", str(builder.context), "--check").code == 0
    outside = builder.context.parent / "Dockerfile.outside"
    outside.symlink_to(builder.context / "real/Dockerfile")  # whoever runs the build named it
    assert builder.run("build", str(builder.context), "-f", str(outside), "--check").code == 0


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_a_pipe_or_a_device_is_no_dockerfile_and_nobody_waits_for_it(builder: Builder, name: str) -> None:
    builder.write({"Dockerfile": "FROM scratch\n"})
    (builder.context / name).unlink(missing_ok=True)
    os.mkfifo(builder.context / name)
    done = builder.run("build", str(builder.context), "--check")
    assert (done.code, "not a regular file" in done.err) == (2, True)
    (builder.context / name).unlink()
    os.mknod(builder.context / name, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    assert builder.run("build", str(builder.context), "--check").code == 2


def test_a_dockerfile_without_end_is_refused(builder: Builder) -> None:
    with (builder.context / "Dockerfile").open("wb") as file:
        file.truncate(1 << 40)
    done = builder.run("build", str(builder.context))
    assert (done.code, "larger than 16777216 bytes" in done.err) == (2, True)
    assert builder.run("build", str(builder.context), "-f", "/dev/zero").code == 2


# ---------------------------------------------------------------- the root


def test_a_root_that_others_may_write_to_is_refused(builder: Builder) -> None:
    builder.write({"Dockerfile": "FROM scratch\nLABEL a=b\n"})
    for mode, owner in ((0o777, 0), (0o1777, 0), (0o700, NOBODY)):
        root = builder.context.parent / f"root-{mode:o}-{owner}"
        root.mkdir()
        root.chmod(mode)
        os.chown(root, owner, owner)
        done = builder.run("--root", str(root), "build", str(builder.context))
        assert (done.code, "others may write to this directory" in done.err) == (2, True), done.err
        assert list(root.iterdir()) == []


def test_the_directory_of_whoever_called_sudo_can_be_a_root(builder: Builder) -> None:
    builder.root.mkdir()
    os.chown(builder.root, NOBODY, NOBODY)
    builder.must_build("FROM scratch\nLABEL a=b\n", env={"SUDO_UID": str(NOBODY)})


@pytest.fixture(scope="module")
def of_any_umask(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> dict[str, tuple[Builder, str]]:
    """By umask: a root that was made by hand and built in, and the digest of what was built."""
    base = base_image(registry, "security/umask", size=1000)["reference"]
    done = {}
    for umask in ("000", "077"):
        builder = Builder(tmp_path_factory.mktemp(f"umask-{umask}"))
        builder.root.mkdir(mode=0o755)
        builder.root.chmod(0o755)
        builder.write({
            "Dockerfile": f"FROM {base}\nCOPY f /a/b/f\nWORKDIR /w/x\n"
            "RUN --mount=type=cache,target=/c touch /c/y; mkdir -p r/s; echo > r/f; chmod 777 /w\n"
            "USER 1000\n"
            "RUN --mount=type=bind,target=/ctx --mount=type=bind,rw,target=/rw cat /ctx/f /rw/f; echo h > /w/z\n"
            "RUN <<EOF\ncat /a/b/f /etc/resolv.conf\nEOF\n",
            "f": "x",
        })  # fmt: skip
        (builder.context / "f").chmod(0o644)
        run = f'umask {umask}; exec "$0" -m tools.cli.main build "$1" --metadata-file "$2" -o "type=oci,dest=$3"'
        out = builder.context.parent
        made = subprocess.run(
            ["/bin/sh", "-c", run, sys.executable, str(builder.context), str(out / "facts"), str(out / "image.tar")],
            env={**builder.env, "SOURCE_DATE_EPOCH": "1600000000"}, cwd=PROJECT, capture_output=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        done[umask] = builder, json.loads((out / "facts").read_text())["containerimage.digest"]
    return done


@pytest.mark.parametrize("umask", ["000", "077"])
def test_nothing_of_a_root_can_be_read_or_written_by_others_whatever_the_umask(
    of_any_umask: dict[str, tuple[Builder, str]], umask: str
) -> None:
    root = of_any_umask[umask][0].root
    assert stat.S_IMODE(root.stat().st_mode) == 0o750  # it was 0755; the group is its owner's to choose
    loose = [path for path in root.rglob("*") if path.lstat().st_mode & 0o002 and not path.is_symlink()]
    assert [path for path in loose if "fs" not in path.relative_to(root).parts] == []  # what is in layers is theirs


def test_an_image_is_the_same_whatever_the_umask(of_any_umask: dict[str, tuple[Builder, str]]) -> None:
    assert len({digest for _, digest in of_any_umask.values()}) == 1
