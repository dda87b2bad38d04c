"""Every output, from the command line to the tools that read it: skopeo, podman, umoci, runc, tar, and our own FROM."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builder import PROJECT, Builder, base_image, busybox_layer, layer_digests
from tests.registry_fixture import RegistryProcess, digest_of, get_json, layer_tar
from tests.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")

COMPRESSIONS = ("gzip", "zstd", "estargz", "uncompressed")
NAME = "example.test/app:1"
SUFFIXES = {"gzip": "+gzip", "estargz": "+gzip", "zstd": "+zstd", "uncompressed": ""}
EPOCH = {"SOURCE_DATE_EPOCH": "1600000000"}
BOTH = ("--platform", "linux/amd64,linux/arm64")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def run(*command: str, **more: Any) -> str:
    more |= {"text": True, "errors": "replace", "timeout": PATIENCE}
    done = subprocess.run(command, capture_output=True, check=False, **more)
    assert done.returncode == 0, (command, done.stderr[-2000:])
    return str(done.stdout)


def skopeo_digest(place: str) -> str:
    return run("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", place).strip()


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def in_archive(path: Path, name: str) -> bytes:
    with tarfile.open(path) as tar:
        member = tar.extractfile(name)
        assert member is not None
        return member.read()


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs/sha256" / digest.partition(":")[2]).read_bytes()


# ---------------------------------------------------------------- round trips


@dataclass(frozen=True)
class All:
    """One build with every output: `metadata` of it, and its outputs by what they were asked for as."""

    directory: Path
    builder: Builder
    metadata: Mapping[str, Any]
    iid: str

    def output(self, name: str) -> Mapping[str, Any]:
        """What --metadata-file says of the output that went to `name`."""
        dest = str(self.directory / name)
        found: list[Mapping[str, Any]] = [one for one in self.metadata["refledger.outputs"] if one.get("dest") == dest]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> All:
    directory = tmp_path_factory.mktemp("every output")
    builder = Builder(directory)
    builder.write({"app/run.sh": "#!/bin/sh\necho works; cat /app/word\n", "app/word": "word\n"})
    (builder.context / "app/run.sh").chmod(0o755)
    image = base_image(registry, "t/outputs/base", size=50_000)
    args = []
    for kind in COMPRESSIONS:
        force = "force-compression=true"
        args += ["-o", f"type=oci,dest={directory}/{kind}.tar,compression={kind},{force}"]
        args += ["-o", f"type=oci,dest={directory}/{kind},tar=false,compression={kind},{force}"]
    args += ["-o", f"type=oci,dest={directory}/docker-types,tar=false,oci-mediatypes=false"]
    args += ["-o", f"type=registry,name={registry.host}/t/outputs/docker:1,oci-mediatypes=false"]
    args += ["-o", f"type=docker,dest={directory}/docker.tar", "-o", f"type=local,dest={directory}/local"]
    args += ["-o", f"type=tar,dest={directory}/files.tar"]
    builder.must_build(
        f"FROM {image['reference']}\nCOPY --chown=app app /app/\n"
        "RUN ln /app/word /app/hard; ln -s word /app/soft; rm /data/1; mkdir -p /deep/er; chmod 2750 /deep\n"
        'USER app\nENTRYPOINT ["/app/run.sh"]\n',
        "-t", NAME, *args, "--iidfile", str(directory / "iid"), "--metadata-file", str(directory / "metadata"),
    )  # fmt: skip
    metadata = json.loads((directory / "metadata").read_text())
    return All(directory, builder, metadata, (directory / "iid").read_text())


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_skopeo_reads_archives_and_layouts_and_pushes_them_under_the_same_digest(
    everything: All, registry: RegistryProcess, kind: str
) -> None:
    told = everything.output(kind)["digest"]
    assert told == everything.output(f"{kind}.tar")["digest"]
    layout, archive = f"oci:{everything.directory}/{kind}:1", f"oci-archive:{everything.directory}/{kind}.tar:1"
    assert skopeo_digest(layout) == skopeo_digest(archive) == told
    pushed = f"docker://{registry.host}/t/outputs/{kind}:1"
    # reason: skopeo compresses what is plain, and takes a layer in another compression when it knows of one
    run("skopeo", "copy", "-q", "--dest-tls-verify=false", "--preserve-digests", layout, pushed)
    assert skopeo_digest(pushed) == told


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_every_layer_is_compressed_as_it_was_asked_for(everything: All, kind: str) -> None:
    layout = everything.directory / kind
    manifest = json.loads(blob(layout, everything.output(kind)["digest"]))
    types = {layer["mediaType"] for layer in manifest["layers"]}
    assert types == {f"application/vnd.oci.image.layer.v1.tar{SUFFIXES[kind]}"}
    assert len(manifest["layers"]) == 5
    starts = {blob(layout, layer["digest"])[:4] for layer in manifest["layers"]}
    magic = {"gzip": b"\x1f\x8b", "estargz": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
    if kind in magic:
        assert {start[: len(magic[kind])] for start in starts} == {magic[kind]}
    toc = "containerd.io/snapshot/stargz/toc.digest"
    assert {toc in layer.get("annotations", {}) for layer in manifest["layers"]} == {kind == "estargz"}
    config = json.loads(blob(layout, manifest["config"]["digest"]))
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        data = blob(layout, layer["digest"])
        if kind == "zstd":
            data = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        elif kind != "uncompressed":
            data = subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True).stdout
        assert digest_of(data) == diff_id


@pytest.fixture(scope="module")
def podman() -> Iterator[list[str]]:
    """podman with a storage of its own."""
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:  # it takes 50 characters
        command = ["podman", "--root", f"{directory}/root", "--runroot", f"{directory}/run"]
        command += ["--tmpdir", f"{directory}/tmp"]  # reason: who else starts podman now may still be making its own
        command += ["--storage-driver", "vfs", "--log-level", "error"]
        yield command
        run(*command, "rmi", "--all", "--force")


@pytest.mark.parametrize("name", [*(f"{kind}.tar" for kind in COMPRESSIONS), "docker.tar"])
def test_podman_loads_archives_and_gives_them_the_id_that_we_say(everything: All, podman: list[str], name: str) -> None:
    said = run(*podman, "load", "-i", str(everything.directory / name))
    assert NAME in said
    (image,) = everything.output(name)["images"]
    assert run(*podman, "inspect", "--format", "{{.Id}}", NAME).strip() == image["config"].partition(":")[2]
    top = run(*podman, "image", "mount", NAME).strip()
    try:
        assert (Path(top) / "app/word").read_text() == "word\n"
        assert not (Path(top) / "data/1").exists()
    finally:
        run(*podman, "image", "umount", NAME)


def test_the_id_of_an_image_depends_on_its_files_only(everything: All) -> None:
    ids = {name: everything.output(name)["images"][0]["config"] for name in (*COMPRESSIONS, "docker.tar")}
    assert ids["gzip"] == ids["zstd"] == ids["uncompressed"] == ids["docker.tar"] == everything.iid
    assert ids["estargz"] != ids["gzip"]  # its table of contents is a file of the layer


@pytest.mark.parametrize("name", ["gzip", "estargz", "uncompressed"])
def test_umoci_unpacks_and_runc_runs_layouts(everything: All, tmp_path: Path, name: str) -> None:
    assert unpacked_and_run(f"{everything.directory / name}:1", tmp_path) == "works\nword\n"


def test_runc_runs_what_skopeo_makes_of_zstd_and_of_docker_types(
    everything: All, registry: RegistryProcess, tmp_path: Path
) -> None:
    """umoci 0.4.7 knows neither, and skopeo finds no image of docker's in a layout."""
    sources = {"zstd": f"oci:{everything.directory}/zstd:1", "docker": f"docker://{registry.host}/t/outputs/docker:1"}
    for name, source in sources.items():
        plain, layout = f"dir:{tmp_path / name}", f"{tmp_path / name}-layout:1"
        run("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-decompress", source, plain)
        run("skopeo", "copy", "-q", "--format", "oci", plain, f"oci:{layout}")
        assert unpacked_and_run(layout, tmp_path / f"{name}-bundle") == "works\nword\n"


def unpacked_and_run(image: str, directory: Path) -> str:
    bundle = directory / "bundle"
    directory.mkdir(exist_ok=True)
    run("umoci", "unpack", "--image", image, str(bundle))
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    assert (bundle / "rootfs/app/word").stat().st_uid == 1000
    return run("runc", "run", "-b", str(bundle), f"outputs-{os.getpid()}-{directory.name[-20:].replace(' ', '-')}")


@pytest.mark.parametrize("name", [*COMPRESSIONS, "docker-types", "docker.tar"])
def test_our_own_from_builds_on_it(everything: All, tmp_path: Path, name: str) -> None:
    layout = everything.directory / name
    if name.endswith(".tar"):  # docker's archive is a layout as well
        (tmp_path / "layout").mkdir()
        run("tar", "-xf", str(layout), "-C", str(tmp_path / "layout"))
        layout = tmp_path / "layout"
    other = Builder(tmp_path)
    other.must_build(
        "FROM base AS app\nUSER root\nRUN cat /app/hard > /copy\nFROM scratch\nCOPY --from=app /copy /app/soft /out/\n",
        "--build-context", f"base=oci-layout://{layout}:1", "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert (tmp_path / "out/out/copy").read_text() == (tmp_path / "out/out/soft").read_text() == "word\n"
    (resolved,) = other.events("SourceResolved")
    assert resolved["data"]["digest"] == everything.output(name)["digest"]


def test_our_own_reader_takes_one_file_of_a_pushed_estargz_by_range(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    builder.write({"files/big": random.Random(1).randbytes(3_000_000), "files/small": "small\n"})
    name = f"{registry.host}/{repository}:1"
    builder.must_build("FROM scratch\nCOPY files /\n", "-o", f"type=registry,name={name},compression=estargz")
    other = Builder(tmp_path / "other")
    other.must_build(f"FROM scratch\nCOPY --from={name} /small /\n", "-o", str(tmp_path / "out"))
    assert (tmp_path / "out/small").read_text() == "small\n"
    (fetched,) = other.events("FilesFetched")
    assert (fetched["data"]["files"], fetched["data"]["bytes"] < 1_000) == (1, True)
    assert other.events("LayerPulled") == []


def test_docker_types_are_dockers_throughout(everything: All, registry: RegistryProcess) -> None:
    pushed = f"docker://{registry.host}/t/outputs/docker:1"
    assert skopeo_digest(pushed) == everything.output("docker-types")["digest"]
    layout = everything.directory / "docker-types"
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert entry["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.loads(blob(layout, entry["digest"]))
    assert manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    types = {layer["mediaType"] for layer in manifest["layers"]}
    assert types == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}


def test_metadata_has_what_buildx_says_and_each_output_besides(everything: All) -> None:
    said, first = everything.metadata, everything.output("gzip.tar")
    assert said["containerimage.digest"] == first["digest"]
    assert said["containerimage.config.digest"] == everything.iid == first["images"][0]["config"]
    assert said["containerimage.descriptor"] == first["descriptor"]
    assert said["containerimage.descriptor"]["digest"] == first["digest"]
    assert said["image.name"] == NAME
    assert [one["type"] for one in said["refledger.outputs"]] == [*["oci"] * 9, "image", "docker", "local", "tar"]
    assert everything.output("zstd")["compression"] == "zstd"
    assert everything.output("files.tar")["digest"] == sha256(everything.directory / "files.tar")
    assert "digest" not in everything.output("local")


def test_the_log_tells_each_export_with_its_compression(everything: All) -> None:
    for one in everything.builder.events("ExportStarted", "Exported"):
        data = one["data"]
        if data["kind"] == "image":
            continue
        output = everything.output(Path(data["target"]).name)
        assert (data["kind"], data["compression"]) == (output["type"], output.get("compression", ""))
        if "descriptor" in output:
            assert data["digest"] == output["digest"]


# ---------------------------------------------------------------- files


def _files(root: Path) -> dict[str, tuple[object, ...]]:
    """What there is below `root`, hard links by the first of their names."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[tuple[int, int], str] = {}
    for path in sorted(root.rglob("*")):
        info, name = path.lstat(), str(path.relative_to(root))
        same = first.setdefault((info.st_dev, info.st_ino), name) if not path.is_dir() or path.is_symlink() else ""
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else info.st_rdev
        xattrs = tuple((key, os.getxattr(path, key, follow_symlinks=False))
                       for key in os.listxattr(path, follow_symlinks=False))  # fmt: skip
        found[name] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, same, content, xattrs)
    return found


def test_a_tar_and_a_directory_have_the_same_files(everything: All, tmp_path: Path) -> None:
    tar, out = everything.directory / "files.tar", tmp_path / "out"
    out.mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "--same-owner", "-xpf", str(tar), "-C", str(out))
    files = _files(out)
    assert files == _files(everything.directory / "local")
    assert files["deep"][0] == 0o42750
    assert files["app/hard"][4] == files["app/word"][4] == "app/hard"
    assert files["app/soft"][5] == "word"
    assert "data/1" not in files
    with tarfile.open(tar) as opened:
        names = opened.getnames()
    assert names == sorted(names, key=lambda name: name.split("/"))


def test_devices_attributes_and_odd_names_are_in_a_tar(builder: Builder, tmp_path: Path) -> None:
    builder.write({"plain": "x"})
    os.setxattr(builder.context / "plain", "user.note", b"\x00\xff")
    files = dict(busybox_layer())
    layout = hand_made_layout(tmp_path / "layout", [layer_tar(files)])
    long = "/".join(["d" * 90] * 4)
    builder.must_build(
        f"FROM base AS made\nRUN busybox mknod /null c 1 3; busybox mkfifo /pipe; mkdir -p /{long}; "
        f"echo deep > /{long}/f; printf x > \"/$(printf 'a\\377b')\"\n"
        "FROM scratch\nCOPY --from=made /null /pipe /\nCOPY --from=made /d* /d/\nCOPY --from=made /a* /\n",
        "--build-context", f"base=oci-layout://{layout}", "-o", f"type=tar,dest={tmp_path}/x.tar",
    )  # fmt: skip
    with tarfile.open(tmp_path / "x.tar") as tar:
        members = {member.name: member for member in tar}
    assert (members["null"].ischr(), members["null"].devmajor, members["null"].devminor) == (True, 1, 3)
    assert members["pipe"].isfifo()
    assert members["a\udcffb"].size == 1
    assert members[f"d/{long.partition('/')[2]}/f"].size == 5


def test_a_tar_goes_to_standard_output_as_it_goes_to_a_file(builder: Builder, tmp_path: Path) -> None:
    builder.write({"a/b": "c", "Dockerfile": "FROM scratch\nCOPY a /x/\n"})
    command = [sys.executable, "-m", "tools.cli.main", "build", str(builder.context), "--progress", "plain"]
    done = subprocess.run(
        [*command, "-o", "-", "-o", f"type=tar,dest={tmp_path}/x.tar"],
        env=builder.env, cwd=PROJECT, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == (tmp_path / "x.tar").read_bytes()
    assert run("tar", "-tf", str(tmp_path / "x.tar")) == "x/\nx/b\n"


@pytest.mark.parametrize("kind", ["tar", "oci"])
def test_what_stands_at_a_dest_and_is_no_file_is_written_to(builder: Builder, tmp_path: Path, kind: str) -> None:
    null, pipe = tmp_path / "null", tmp_path / "pipe"
    os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(pipe)
    with (tmp_path / "read").open("wb") as out, subprocess.Popen(["cat", str(pipe)], stdout=out) as reader:
        outputs = [f"type={kind},dest={dest}" for dest in (null, pipe, tmp_path / "file")]
        builder.must_build("FROM scratch\nCOPY <<x /x\nx\n", *(f"--output={output}" for output in outputs))
        assert reader.wait(PATIENCE) == 0
    assert (tmp_path / "read").read_bytes() == (tmp_path / "file").read_bytes()
    assert (stat.S_ISCHR(null.stat().st_mode), null.stat().st_rdev) == (True, os.makedev(1, 3))


def test_standard_output_is_not_for_two(builder: Builder) -> None:
    for progress in ("quiet", "json"):
        refused = builder.build("FROM scratch\nLABEL a=b\n", "-o", "-", "--progress", progress)
        assert refused.code == 2
        assert f"dest=- and --progress {progress} both want standard output" in refused.err


def test_no_file_is_later_than_the_epoch_and_two_builds_give_the_same(tmp_path: Path) -> None:
    tars = []
    for number in range(2):
        other = Builder(tmp_path / str(number))
        other.write({"old": "x", "new": "y"})
        os.utime(other.context / "old", (1_500_000_000, 1_500_000_000))
        os.utime(other.context / "new", (1_700_000_000 + number, 1_700_000_000 + number))
        dest = tmp_path / f"{number}.tar"
        other.must_build("FROM scratch\nCOPY old new /\nWORKDIR /w\n", "-o", f"type=tar,dest={dest}",
                         "-o", f"{tmp_path}/out{number}", env=EPOCH)  # fmt: skip
        tars.append(dest)
    assert tars[0].read_bytes() == tars[1].read_bytes()
    with tarfile.open(tars[0]) as tar:
        assert {member.name: member.mtime for member in tar} == {"old": 15e8, "new": 16e8, "w": 16e8}
    times = {path.name: path.stat().st_mtime for path in (tmp_path / "out1").iterdir()}
    assert times == {"old": 15e8, "new": 16e8, "w": 16e8}


def test_platforms_have_directories_or_share_one_tree(builder: Builder, tmp_path: Path) -> None:
    out, tar, one, merged = (tmp_path / name for name in ("out", "x.tar", "one.tar", "merged"))
    builder.must_build(
        "FROM scratch\nARG TARGETARCH\nCOPY <<x /only-$TARGETARCH\n$TARGETARCH\nx\n", *BOTH,
        "-o", f"type=tar,dest={tar}", "-o", str(out), "-o", f"type=tar,dest={one},platform-split=false",
        "-o", f"type=local,dest={merged},platform-split=false",
    )  # fmt: skip
    assert run("tar", "-tf", str(tar)).split() == [
        "linux_amd64/", "linux_amd64/only-amd64", "linux_arm64/", "linux_arm64/only-arm64",
    ]  # fmt: skip
    assert (out / "linux_arm64/only-arm64").read_text() == "arm64\n"
    assert run("tar", "-tf", str(one)).split() == ["only-amd64", "only-arm64"]
    assert sorted(path.name for path in merged.iterdir()) == ["only-amd64", "only-arm64"]
    assert builder.events("BlobCreated") == [], "files need no layers that are packed"


@pytest.mark.parametrize("kind", ["tar", "local"])
def test_one_path_of_two_platforms_does_not_go_into_one_tree(builder: Builder, tmp_path: Path, kind: str) -> None:
    dest = tmp_path / "dest"
    refused = builder.build(
        "FROM scratch\nARG TARGETARCH\nCOPY <<x /d/same\n$TARGETARCH\nx\n", *BOTH,
        "-o", f"type={kind},dest={dest},platform-split=false",
    )  # fmt: skip
    assert refused.code == 2
    assert "'d/same' is there for several platforms" in refused.err.replace("/d/same", "d/same")
    assert kind == "local" or not dest.exists()
    assert builder.leftovers() == []


# ---------------------------------------------------------------- what moves


def test_I2_a_push_in_one_registry_and_an_image_that_is_only_composed_fetch_no_layer(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    mark = registry.mark()
    out = f"{registry.host}/{repository}/out"
    builder.must_build(
        f"FROM {image['reference']}\nLABEL a=b\n", "-t", f"{out}:1", "-o", "type=image,compression=zstd",
        "-o", "type=registry,compression=estargz", "-o", f"type=registry,name={out}-two,annotation.a=b",
    )  # fmt: skip
    assert registry.layer_gets(layer_digests(image), since=mark) == []
    pushes = builder.events("Exported")
    assert [push["data"]["target"] for push in pushes] == [f"{out}:1", f"{out}-two:latest"]
    assert {layer["transport"] for push in pushes for layer in push["data"]["layers"]} == {"mounted"}
    assert skopeo_digest(f"docker://{out}:1") == pushes[0]["data"]["digest"]


def test_I2_another_compression_is_for_new_layers_unless_it_is_forced(
    builder: Builder, registry: RegistryProcess, repository: str
) -> None:
    image = base_image(registry, f"{repository}/base")
    name, forced = f"{registry.host}/{repository}/out:1", f"{registry.host}/{repository}/out:2"
    dockerfile = f"FROM {image['reference']}\nCOPY --link <<x /x\nx\n"
    mark = registry.mark()
    builder.must_build(dockerfile, "-o", f"type=registry,name={name},compression=zstd")
    assert registry.layer_gets(layer_digests(image), since=mark) == []
    one = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"))["layers"]
    assert [layer["digest"] for layer in one[:3]] == layer_digests(image)
    assert [layer["mediaType"].rpartition("+")[2] for layer in one] == ["gzip"] * 3 + ["zstd"]
    for _ in range(2):
        mark = registry.mark()
        builder.must_build(dockerfile, "-o", f"type=registry,name={forced},compression=zstd,force-compression=true")
    assert registry.layer_gets(layer_digests(image), since=mark) == []  # the second time nothing is converted
    two = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{forced}"))["layers"]
    assert {layer["mediaType"].rpartition("+")[2] for layer in two} == {"zstd"}
    assert two[3] == one[3]


def test_a_layout_that_has_the_layers_is_written_again_without_them(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base")
    marks = []
    for label in ("one", "two"):
        marks.append(registry.mark())
        builder.must_build(
            f"FROM {image['reference']}\nLABEL a={label}\n", "-t", f"x.test/y:{label}",
            "-o", f"type=oci,dest={tmp_path}/layout,tar=false",
        )  # fmt: skip
    assert len(registry.layer_gets(layer_digests(image), since=marks[0])) == 3
    assert registry.layer_gets(layer_digests(image), since=marks[1]) == []
    assert list((builder.root / "layers").iterdir()) == []
    index = json.loads((tmp_path / "layout/index.json").read_bytes())
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]] == ["one", "two"]
    digests = [skopeo_digest(f"oci:{tmp_path}/layout:{label}") for label in ("one", "two")]
    assert digests == [entry["digest"] for entry in index["manifests"]]


def test_a_layout_without_names_has_the_last_image_only(builder: Builder, tmp_path: Path) -> None:
    for label in ("one", "two"):
        builder.must_build(f"FROM scratch\nLABEL a={label}\n", "-o", f"type=oci,dest={tmp_path}/layout,tar=false")
    (entry,) = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    config = json.loads(blob(tmp_path / "layout", entry["digest"]))["config"]["digest"]
    assert json.loads(blob(tmp_path / "layout", config))["config"]["Labels"] == {"a": "two"}


def test_an_image_that_is_not_pushed_goes_nowhere_and_is_told(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    mark, metadata = registry.mark(), tmp_path / "metadata"
    dockerfile, name = "FROM scratch\nCOPY <<x /x\nx\n", f"{registry.host}/{repository}:1"
    done = builder.must_build(dockerfile, "-t", name, "-o", "type=image", "--metadata-file", str(metadata))
    assert registry.requests()[mark:] == []
    assert "type=image without push=true: the image was composed, and went nowhere" in done.err
    assert builder.events("ExportStarted", "Exported") == []
    builder.must_build(dockerfile, "-t", name, "-o", "type=image", "--push")
    assert skopeo_digest(f"docker://{name}") == json.loads(metadata.read_text())["containerimage.digest"]


def test_a_push_by_digest_makes_no_tag(builder: Builder, registry: RegistryProcess, repository: str) -> None:
    name = f"{registry.host}/{repository}"
    for platforms in ((), BOTH):
        builder.must_build(
            "FROM scratch\nCOPY <<x /x\nx\n", *platforms, "-o",
            f"type=image,name={name},push-by-digest=true,name-canonical=true,push=true",
        )  # fmt: skip
        pushed = builder.events("Exported")[-1]["data"]
        assert pushed["target"] == f"{name}@{pushed['digest']}"
        assert digest_of(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{pushed['target']}").encode())
    tags = subprocess.run(
        ["skopeo", "list-tags", "--tls-verify=false", f"docker://{name}"], capture_output=True, text=True, check=False
    )
    assert '"latest"' not in tags.stdout


def test_several_platforms_are_told_each(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    name = f"{registry.host}/{repository}:1"
    builder.must_build(
        "FROM scratch\nARG TARGETARCH\nCOPY <<x /x\n$TARGETARCH\nx\n", *BOTH, "-o", f"type=registry,name={name}",
        "--annotation", "index,manifest:a=b", "--annotation", "manifest-descriptor[linux/arm64]:only=arm",
        "--metadata-file", str(tmp_path / "metadata"),
    )  # fmt: skip
    said = json.loads((tmp_path / "metadata").read_text())
    raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    index = json.loads(raw)
    assert digest_of(raw.encode()) == said["containerimage.digest"] == said["containerimage.descriptor"]["digest"]
    assert index["annotations"] == {"a": "b"}
    assert [entry.get("annotations") for entry in index["manifests"]] == [None, {"only": "arm"}]
    for entry in index["manifests"]:
        platform = f"linux/{entry['platform']['architecture']}"
        assert entry["digest"] == said[f"containerimage.digest/{platform}"]
        manifest = json.loads(
            run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name[:-2]}@{entry['digest']}")
        )
        assert manifest["annotations"] == {"a": "b"}
        assert manifest["config"]["digest"] == said[f"containerimage.config.digest/{platform}"]
    assert "containerimage.config.digest" not in said


def test_two_forms_of_one_image_are_told_apart(builder: Builder, tmp_path: Path) -> None:
    done = builder.must_build(
        "FROM scratch\nCOPY <<x /x\nx\n", "-o", f"type=oci,dest={tmp_path}/a.tar",
        "-o", f"type=oci,dest={tmp_path}/b.tar,compression=zstd,compression-level=19",
    )  # fmt: skip
    digests = [skopeo_digest(f"oci-archive:{tmp_path}/{name}.tar") for name in "ab"]
    assert f"type=oci,dest={tmp_path}/a.tar: {digests[0]} (gzip)" in done.err
    assert f"type=oci,dest={tmp_path}/b.tar: {digests[1]} (zstd:19)" in done.err


# ---------------------------------------------------------------- foreign layers, times


URL = "https://elsewhere.test/layer.tar"


def hand_made_layout(directory: Path, tars: list[bytes], *, foreign: bool = False, lacks: bool = False) -> Path:
    """A layout of one image of uncompressed `tars`; `foreign`: the first is not to be distributed; `lacks` it."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> str:
        digest = digest_of(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return digest

    layers = []
    for number, data in enumerate(tars):
        layer: dict[str, Any] = {
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": put(data), "size": len(data),
        }  # fmt: skip
        if foreign and number == 0:
            layer |= {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "urls": [URL]}
            if lacks:
                (blobs / layer["digest"].partition(":")[2]).unlink()
        layers.append(layer)
    config = json.dumps({
        "os": "linux", "architecture": "amd64", "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }).encode()  # fmt: skip
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": manifest_type, "layers": layers,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config), "size": len(config)},
    }).encode()  # fmt: skip
    top = {"mediaType": manifest_type, "digest": put(manifest), "size": len(manifest)}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return directory


def test_foreign_layers_stay_where_they_are_when_it_is_asked_for(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    tars = [layer_tar({"windows/": b""}), layer_tar({"ours": b"x"})]
    layout = hand_made_layout(tmp_path / "in", tars, foreign=True, lacks=True)
    context = ("--build-context", f"base=oci-layout://{layout}")
    dockerfile = "FROM base\nLABEL a=b\n"
    out = tmp_path / "out"
    builder.must_build(dockerfile, *context, "-o", f"type=oci,dest={out},tar=false,prefer-nondist-layers=true")
    (entry,) = json.loads((out / "index.json").read_bytes())["manifests"]
    layers = json.loads(blob(out, entry["digest"]))["layers"]
    assert layers[0]["mediaType"] == "application/vnd.oci.image.layer.nondistributable.v1.tar"
    assert layers[0]["urls"] == [URL]
    assert "urls" not in layers[1]
    held = {path.name for path in (out / "blobs/sha256").iterdir()}
    assert layers[0]["digest"].partition(":")[2] not in held
    assert layers[1]["digest"].partition(":")[2] in held
    refused = builder.build(dockerfile, *context, "-o", f"type=oci,dest={tmp_path}/x.tar")
    assert refused.code == 3
    assert f"layer {digest_of(tars[0])[7:19]}" in refused.err.replace("sha256:", "")
    assert "prefer-nondist-layers=true leaves it there" in refused.err
    assert not (tmp_path / "x.tar").exists()


def test_foreign_layers_are_given_out_as_all_others_otherwise(
    builder: Builder, registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    tars = [layer_tar({"windows/": b""}), layer_tar({"ours": b"x"})]
    layout = hand_made_layout(tmp_path / "in", tars, foreign=True)
    name = f"{registry.host}/{repository}:1"
    builder.must_build(
        "FROM base\nLABEL a=b\n", "--build-context", f"base=oci-layout://{layout}", "-o", f"type=registry,name={name}"
    )
    manifest = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
    assert [sorted(layer) for layer in manifest["layers"]] == [["digest", "mediaType", "size"]] * 2
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}
    assert registry.blob_path(digest_of(tars[0])).read_bytes() == tars[0]


def test_rewritten_times_give_two_builds_one_digest_and_leave_the_base_alone(
    registry: RegistryProcess, repository: str, tmp_path: Path
) -> None:
    image = base_image(registry, f"{repository}/base", layers=1)
    digests = []
    for number in range(2):
        other = Builder(tmp_path / str(number))
        other.write({"file": "content"})
        os.utime(other.context / "file", (1_700_000_000 + number, 1_700_000_000 + number))
        other.must_build(
            f"FROM {image['reference']}\nCOPY file /\nENV a=b\n", "-t", f"{registry.host}/{repository}/out{number}",
            "-o", "type=registry,rewrite-timestamp=true,compression=zstd", env=EPOCH,
        )  # fmt: skip
        (pushed,) = other.events("Exported")
        assert pushed["data"]["layers"][0]["digest"] == layer_digests(image)[0]
        digests.append(pushed["data"]["digest"])
    assert digests[0] == digests[1]
    name = f"docker://{registry.host}/{repository}/out0:latest"
    manifest = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", name))
    config = get_json(registry.host, f"/v2/{repository}/out0/blobs/{manifest['config']['digest']}")
    assert config["created"] == "2020-09-13T12:26:40Z"
