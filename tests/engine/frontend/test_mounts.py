"""`RUN --mount`: all options, their defaults, and what is refused (Dockerfile reference, "RUN --mount")."""

from __future__ import annotations

import pytest

from engine.errors import DockerfileError
from engine.graph import ContextSource, ImageSource, Mkdir, Mount, Run, Scratch
from engine.stored import graph_from_json
from tests.engine.frontend.support import Images, compile_text, last, last_run, names

_BASE = "FROM x\nENV V=val\nWORKDIR /w\n"


def _mounts(*flags: str, **options: object) -> tuple[Mount, ...]:
    written = " ".join(f"--mount={flag}" for flag in flags)
    return last_run(f"{_BASE}RUN {written} y\n", **options).mounts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flag", "mount"),
    [
        # bind
        ("target=/a", Mount("bind", "/a", input=1, readonly=True)),
        ("type=bind,target=a", Mount("bind", "/w/a", input=1, readonly=True)),
        ("target=.", Mount("bind", "/w", input=1, readonly=True)),
        ("dst=/a,src=b", Mount("bind", "/a", input=1, source="b", readonly=True)),
        ("destination=../a,source=/../b/./c/", Mount("bind", "/a", input=1, source="b/c", readonly=True)),
        ("target=/a,rw", Mount("bind", "/a", input=1)),
        ("target=/a,readwrite", Mount("bind", "/a", input=1)),
        ("target=/a,rw=false", Mount("bind", "/a", input=1, readonly=True)),
        ("target=/a,ro=false", Mount("bind", "/a", input=1)),
        ("target=/a,readonly=1", Mount("bind", "/a", input=1, readonly=True)),
        ("target=/a,ro,rw", Mount("bind", "/a", input=1)),
        ("TYPE=bind,Target=/a", Mount("bind", "/a", input=1, readonly=True)),
        ("target=/$V/${V:+x},source=$V", Mount("bind", "/val/x", input=1, source="val", readonly=True)),
        ("type=bind,from=scratch,target=/a", Mount("bind", "/a", input=1, readonly=True)),
        # cache
        ("type=cache,target=/a", Mount("cache", "/a", id="/a")),
        ("type=cache,target=a/", Mount("cache", "/w/a", id="a")),
        ("type=cache,target=/a,id=$V", Mount("cache", "/a", id="val")),
        ("type=cache,target=/a,sharing=shared", Mount("cache", "/a", id="/a")),
        ("type=cache,target=/a,sharing=private", Mount("cache", "/a", id="/a", sharing="private")),
        ("type=cache,target=/a,sharing=locked", Mount("cache", "/a", id="/a", sharing="locked")),
        ("type=cache,target=/a,ro", Mount("cache", "/a", id="/a", readonly=True)),
        ("type=cache,target=/a,mode=0700,uid=1,gid=2", Mount("cache", "/a", id="/a", mode=0o700, uid=1, gid=2)),
        ("type=cache,target=/a,from=scratch,source=b", Mount("cache", "/a", input=1, source="b", id="/a")),
        ("type=$K,target=/a,id=i", Mount("cache", "/a", id="i")),
        # tmpfs
        ("type=tmpfs,target=/a", Mount("tmpfs", "/a")),
        ("type=tmpfs,dst=/a,size=64", Mount("tmpfs", "/a", size=64)),
        ("type=tmpfs,dst=/a,size=64m", Mount("tmpfs", "/a", size=64 << 20)),
        ("type=tmpfs,dst=/a,size=1.5GiB", Mount("tmpfs", "/a", size=3 << 29)),
        # secret
        ("type=secret,id=s", Mount("secret", "/run/secrets/s", readonly=True, id="s")),
        ("type=secret,id=a/s", Mount("secret", "/run/secrets/s", readonly=True, id="a/s")),
        ("type=secret,source=s", Mount("secret", "/run/secrets/s", readonly=True, id="s")),
        ("type=secret,target=/k/s", Mount("secret", "/k/s", readonly=True, id="s")),
        ("type=secret,id=s,target=k", Mount("secret", "/w/k", readonly=True, id="s")),
        ("type=secret,id=s,env=E", Mount("secret", "", readonly=True, id="s", env="E")),
        ("type=secret,id=s,env=E,target=/k", Mount("secret", "/k", readonly=True, id="s", env="E")),
        ("type=secret,id=s,required", Mount("secret", "/run/secrets/s", readonly=True, id="s", required=True)),
        ("required=true,type=secret,id=s", Mount("secret", "/run/secrets/s", readonly=True, id="s", required=True)),
        ("type=secret,id=s,mode=0440,uid=1,gid=2",
         Mount("secret", "/run/secrets/s", readonly=True, id="s", mode=0o440, uid=1, gid=2)),
        # ssh
        ("type=ssh", Mount("ssh", "/run/buildkit/ssh_agent.0", readonly=True, id="default")),
        ("type=ssh,id=k,target=/s,required=true", Mount("ssh", "/s", readonly=True, id="k", required=True)),
        ("type=ssh,mode=0666,uid=1,gid=2",
         Mount("ssh", "/run/buildkit/ssh_agent.0", readonly=True, id="default", mode=0o666, uid=1, gid=2)),
        # what BuildKit takes and makes nothing of
        ("type=tmpfs,target=/a,from=x,id=b", Mount("tmpfs", "/a")),
    ],
)  # fmt: skip
def test_options_and_their_defaults(flag: str, mount: Mount) -> None:
    text = f"{_BASE}ENV K=cache\nRUN --mount={flag} y\n"
    assert last_run(text).mounts == (mount,)


def test_commas_and_quotes_are_those_of_csv() -> None:
    assert _mounts("'type=cache,\"target=/a,b\",id=c'")[0].target == "/a,b"
    assert _mounts("'type=cache,target=/a,\"id=say \"\"hi\"\"\"'")[0].id == "say hi"  # expanding takes quotes off


def test_several_mounts_keep_their_order_and_share_inputs() -> None:
    text = f"FROM t AS tools\n{_BASE}RUN --mount=target=/a --mount=from=tools,target=/b --mount=target=/c,source=d \\\n"
    vertex = last(f"{text} --mount=type=ssh --mount=from=other:1,target=/e --mount=type=ssh y\n")
    assert isinstance(vertex.op, Run)
    assert [(mount.target, mount.input) for mount in vertex.op.mounts] == [
        ("/a", 1), ("/b", 2), ("/c", 1), ("/run/buildkit/ssh_agent.0", -1), ("/e", 3),
        ("/run/buildkit/ssh_agent.1", -1),
    ]  # fmt: skip
    assert len(vertex.inputs) == 4


def test_a_bind_takes_from_the_context_a_stage_or_an_image() -> None:
    text = "FROM x AS a\nRUN 1\nFROM x\nRUN --mount=target=/c --mount=from=a,target=/s --mount=from=i:2,target=/i y\n"
    images = Images()
    graph = compile_text(text, images, ignore=("*.md",))
    context, stage, image = (graph.by_digest[digest].op for digest in last(text, ignore=("*.md",)).inputs[1:])
    assert context == ContextSource(excludes=("*.md",))
    assert isinstance(stage, Run)
    assert isinstance(image, ImageSource)
    assert images.asked == [[("x", "linux/amd64"), ("i:2", "linux/amd64")]]


def test_a_stage_that_only_a_mount_needs_is_built_before() -> None:
    text = "FROM scratch AS a\nWORKDIR /a\nFROM scratch AS b\nFROM scratch\nRUN --mount=from=a,target=/m y\n"
    assert [type(vertex.op) for vertex in compile_text(text).vertices] == [Scratch, Mkdir, Run]


def test_a_mount_of_the_own_base_is_no_second_input_of_another_kind() -> None:
    vertex = last("FROM scratch AS a\nWORKDIR /a\nFROM a\nRUN --mount=from=a,target=/m y\n")
    assert vertex.inputs[0] == vertex.inputs[1]


def test_caches_can_have_a_namespace() -> None:
    namespace = {"BUILDKIT_CACHE_MOUNT_NS": "team"}
    assert _mounts("type=cache,target=/a", build_args=namespace)[0].id == "team//a"


def test_mounts_survive_being_stored() -> None:
    graph = compile_text(f"{_BASE}RUN --mount=type=cache,target=/a,mode=0700 --mount=target=/b y\n")
    assert graph_from_json(graph.to_json()).vertices == graph.vertices


def test_a_mount_is_part_of_what_names_a_step() -> None:
    digests = {last(f"{_BASE}RUN {flag} y\n").digest for flag in ("", "--mount=type=ssh", "--mount=type=ssh,id=b")}
    assert len(digests) == 3


def test_the_name_of_the_step_says_its_mounts() -> None:
    assert names(compile_text("FROM scratch\nRUN --mount=type=ssh  y\n"))[-1] == "[1/1] RUN --mount=type=ssh y"


@pytest.mark.parametrize(
    ("flag", "what", "hint"),
    [
        ("", "needs options", "--mount=type=cache"),
        ("type=volume,target=/a", "unsupported mount type 'volume'", "known: bind"),
        ("type=cach,target=/a", "unsupported mount type 'cach'", "did you mean cache?"),
        ("targt=/a", "unexpected key 'targt'", "did you mean target?"),
        ("target", "'target' in --mount=target needs a value", "target="),
        ("target=/", "invalid mount target '/'", ""),
        ("target=/a,ro=perhaps", "invalid value for readonly: 'perhaps'", "true or false"),
        ("type=cache", "a cache mount needs a target", ""),
        ("type=cache,target=/a,sharing=none", "unsupported sharing value 'none'", "known: shared"),
        ("target=/a,sharing=shared", "unexpected key 'sharing' for mount type 'bind'", "cache"),
        ("target=/a,required", "unexpected key 'required' for mount type 'bind'", "secret and ssh"),
        ("target=/a,mode=0700", "unexpected key 'mode' for mount type 'bind'", ""),
        ("type=tmpfs,target=/a,uid=1", "unexpected key 'uid' for mount type 'tmpfs'", ""),
        ("type=cache,target=/a,size=1", "unexpected key 'size' for mount type 'cache'", "tmpfs"),
        ("type=ssh,env=A", "unexpected key 'env' for mount type 'ssh'", "secret"),
        ("type=cache,target=/a,mode=rwx", "invalid value 'rwx' for mode", "octal"),
        ("type=cache,target=/a,mode=17777", "invalid value '17777' for mode", "octal"),
        ("type=cache,target=/a,uid=me", "invalid value 'me' for uid", "number"),
        ("type=cache,target=/a,gid=4294967296", "invalid value '4294967296' for gid", "number"),
        ("type=tmpfs,target=/a,size=big", "invalid size: 'big'", "size=64m"),
        ("type=tmpfs,target=/a,size=9999999999p", "too large", ""),
        ("type=secret", "a secret mount needs an id", "id=NAME"),
        ("type=secret,id=a,from=b", "takes nothing from='b'", ""),
        ("type=secret,id=a,source=b", "either id= or source=", ""),
        ("type=secret,id=a,env=B=C", "env='B=C' is not the name of a variable", ""),
        ("'\"type=cache'", "unexpected end of data", "quote a whole option"),
        ("type=cache,target=${U:?needed}", "U: needed", ""),
    ],
)  # fmt: skip
def test_what_no_mount_can_be_is_said(flag: str, what: str, hint: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        compile_text(f"FROM x\nRUN --mount={flag} y\n")
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.line == 2


def test_a_misspelt_stage_is_suggested_when_it_is_no_image() -> None:
    with pytest.raises(DockerfileError) as caught:
        compile_text("FROM x AS builder\nFROM x\nRUN --mount=from=Bilder,target=/a y\n")
    assert caught.value.hint == "did you mean builder?"


def test_an_option_has_no_more_characters_than_a_path() -> None:
    with pytest.raises(DockerfileError, match=r"target= of a mount has 5001 characters"):
        compile_text(f"FROM x\nENV A={'y' * 5000}\nRUN --mount=type=cache,target=/$A b\n")
