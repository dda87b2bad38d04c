"""Scenes: `build`, and what builds a recorded build again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from tests.crash.outcomes import (
    SECRET,
    attested,
    both,
    bundled,
    files,
    layout,
    manifest,
    nothing,
    outputs,
    tagged,
    traces,
    whole_cache,
)
from tests.crash.place import Place
from tests.crash.scene import BASE, FILES, STEPS, Commands, Scene, build, first_build, recorded, write

_REPLAY = ("replay", "--progress", "plain")


def _pulling(kind: str) -> Commands:
    dockerfile = "FROM {base}\nRUN echo made > /result\n"
    return lambda place: build(place, dockerfile, "--snapshotter", kind, "-o", f"type=local,dest={place.out}/tree")


def _image(place: Place, more: str = "") -> list[str]:
    return ["-o", f"type=image,push=true,rewrite-timestamp=true,name={place.name}{more}"]


def _pushing(kind: str) -> Commands:
    return lambda place: build(
        place, STEPS, "--snapshotter", kind, *_image(place),
        "--metadata-file", f"{place.out}/metadata.json", "--iidfile", f"{place.out}/iid",
    )  # fmt: skip


def _pushed_and_told(place: Place) -> object:
    told = json.loads((place.out / "metadata.json").read_bytes())
    return tagged(place), told["containerimage.digest"], (place.out / "iid").read_text(), sorted(files(place.out))


def _archives(place: Place) -> Sequence[str]:
    kinds = [f"type=oci,dest={place.out}/oci.tar", f"type=docker,dest={place.out}/docker.tar",
             f"type=tar,dest={place.out}/files.tar"]  # fmt: skip
    return build(place, FILES, *(word for kind in kinds for word in ("-o", kind)))


def _layout(place: Place) -> Sequence[str]:
    return build(place, FILES, "-t", "app:1", "-o", f"type=oci,tar=false,dest={place.out}/layout")


def _compressed(kind: str) -> Commands:
    return lambda place: build(
        place, FILES, *_image(place, f",compression={kind},force-compression=true"),
        "-o", f"type=oci,dest={place.out}/oci.tar,compression={kind},force-compression=true",
    )  # fmt: skip


def _caching(place: Place) -> Sequence[str]:
    cache = f"{place.host}/{place.repository}/cache:1"
    return build(
        place, FILES, "--cache-from", cache, "--cache-to", f"type=registry,ref={cache},mode=max",
        "-t", place.name, "--push",
    )  # fmt: skip


def _caching_here(place: Place) -> Sequence[str]:
    cache = f"{place.out}/layout"
    return build(place, STEPS, "--cache-to", f"type=local,dest={cache},mode=max", *_image(place))


def _attesting(place: Place) -> Sequence[str]:
    return build(place, FILES, "--attest", "type=provenance,mode=max", "--attest", "type=sbom", *_image(place))


def _policed(place: Place) -> Sequence[str]:
    rules = f"""
        [[rule]]
        name = "ours"
        kind = "images"
        allow = ["{place.host}"]
        [[rule]]
        name = "looked at"
        kind = "layers"
        fetch = true
    """
    place.write({"policy.toml": rules})
    return build(place, "FROM {base}\nCOPY file /file\n", "--policy", f"{place.context}/policy.toml", *_image(place))


def _secretive(place: Place) -> Sequence[str]:
    place.write({"token": SECRET})
    step = "--mount=type=secret,id=token --mount=type=cache,target=/kept"
    lines = f"FROM {{base}}\nRUN {step} cat /run/secrets/token > /dev/null && echo a > /kept/a && cat /kept/a > /b\n"
    return build(place, f"# syntax=docker/dockerfile:1\n{lines}", "--secret", f"id=token,src={place.context}/token",
                 "-o", f"type=local,dest={place.out}/tree")  # fmt: skip


def _traces(place: Place) -> object:
    place.write({"token": ""})  # which is in the context by a person's own doing
    return traces(place)


def _adding(place: Place) -> Sequence[str]:
    layer = manifest(place.host, BASE, "latest").json()["layers"][1]["digest"]
    url = f"http://{place.host}/v2/{BASE}/blobs/{layer}"
    steps = f"FROM {{base}}\nADD --checksum={layer} {url} /layer.tar.gz\nADD {url} /again\n"
    return build(place, steps, *_image(place))


def _broken(place: Place) -> Sequence[str]:
    return build(place, "FROM {base}\nRUN echo before > /before\nRUN cat /before && sleep 0.5 && false\n")


def _mended(place: Place) -> Sequence[str]:
    return build(place, "FROM {base}\nRUN echo before > /before\nRUN cat /before && true\n", *_image(place))


def _broken_and_bundled(place: Place) -> Sequence[str]:
    bundle = f"{place.out}/failed.bundle"
    return build(place, "FROM {base}\nRUN cat /etc/passwd && false\n", "--bundle-on-failure", bundle)


def _has_failed(place: Place) -> None:
    place.run(_broken(place))


def _puller_has_died(place: Place) -> None:
    """A layer is mountable here, and no event tells how it came."""
    died = place.run(_pulling("directory")(place), "before:LayerPulled")
    assert died.killed, died.err


def _has_hits(place: Place) -> None:
    """The second build took everything from the first."""
    first_build(place)
    first_build(place)


def _bundle_has_failed(place: Place) -> None:
    place.run(_broken_and_bundled(place))
    shutil.rmtree(place.root)  # as on another machine
    place.root.mkdir()
    (place.out / "failed.bundle").rename(place.context / "failed.bundle")


def _same(place: Place) -> Sequence[str]:
    """With a step of its own, so that the two meet at the pulls only."""
    write(place, STEPS)
    return ["build", str(place.context), "--progress", "plain", "--no-cache",
            "-t", f"{place.host}/{place.repository}/beside:1", "--push"]  # fmt: skip


SCENES = (
    Scene("build, erofs", _pulling("erofs"), outputs),
    Scene("build, directory", _pulling("directory"), outputs),
    Scene("build, found layers", _pulling("directory"), outputs, _puller_has_died),
    Scene("push, erofs", _pushing("erofs"), _pushed_and_told),
    Scene("push, directory", _pushing("directory"), _pushed_and_told),
    Scene("archives", _archives, outputs),
    Scene("layout", _layout, outputs),
    Scene("zstd", _compressed("zstd"), both(tagged, outputs)),
    Scene("estargz", _compressed("estargz"), both(tagged, outputs)),
    Scene("cache-to", _caching, both(tagged, whole_cache)),
    Scene("cache-to, local", _caching_here, both(tagged, layout)),
    Scene("attest", _attesting, attested),
    Scene("policy", _policed, tagged),
    Scene("secret", _secretive, both(outputs, _traces)),
    Scene("ADD", _adding, tagged),
    Scene("failing build", _broken, tagged, codes=(1,), then=_mended),
    Scene("bundle on failure", _broken_and_bundled, bundled, codes=(1,)),
    Scene("replay", lambda place: [*_REPLAY, recorded(place)], nothing, _has_failed, codes=(1,)),
    Scene("replay of hits", lambda place: [*_REPLAY, "--verify", recorded(place, 1)], nothing, _has_hits),
    Scene("replay of a bundle", lambda place: [*_REPLAY, f"{place.context}/failed.bundle"], nothing, _bundle_has_failed,
          codes=(1,)),
    Scene("replay --verify", lambda place: [*_REPLAY, "--verify", recorded(place)], nothing, first_build),
    Scene("the same beside", _pushing("erofs"), _pushed_and_told, beside=_same),
)  # fmt: skip
