"""I9 from end to end: secrets, keys and passwords of a build are nowhere afterwards."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builder import Builder, busybox_layer
from tests.registry_fixture import HTPASSWD, PASSWORD, USER, RegistryProcess, push_image
from tests.tools.test_run_mounts import holders

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("runc"), reason="builds need root and runc"),
]

DOCKERFILE = """\
FROM {base} AS tested
RUN --mount=type=secret,id=token,required cat /run/secrets/token && env
RUN --mount=type=secret,id=var,env=TOKEN echo "with $TOKEN" && cat /proc/self/mountinfo
RUN --mount=type=ssh,id=key,required test -S "$SSH_AUTH_SOCK" && ls -l "$SSH_AUTH_SOCK"
FROM {base}
COPY --from=tested /etc/passwd /copied
RUN --mount=type=secret,id=token cp /run/secrets/token /tmp.gone && rm /tmp.gone
"""


def test_I9_nothing_of_secrets_keys_and_registry_passwords_is_left_anywhere(tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("openssh-client is not installed")
    outside = tmp_path / "outside"
    outside.mkdir()
    token, variable = (f"tok-{secrets.token_hex(12)}" for _ in range(2))
    (outside / "token").write_text(token)
    key = outside / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    needles = [token, variable, PASSWORD, login, *key.read_text().splitlines()[1:-1]]

    with RegistryProcess(tmp_path / "registry", htpasswd=HTPASSWD) as registry:
        (outside / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
        base = push_image(
            registry.host, "private/base", [busybox_layer(), {"data/x": os.urandom(5000)}],
            config={"Env": ["PATH=/bin"]}, auth=(USER, PASSWORD),
        )["reference"]  # fmt: skip
        builder = Builder(tmp_path / "work")
        env = {"DOCKER_CONFIG": str(outside), "VARIABLE": variable}
        lent = (
            "--secret", f"id=token,src={outside / 'token'}", "--secret", "id=var,env=VARIABLE", "--ssh", f"key={key}",
        )  # fmt: skip
        said = []
        for progress in ("plain", "json"):
            done = builder.build(
                DOCKERFILE.format(base=base), *lent, "--no-cache", "--progress", progress, "-t",
                f"{registry.host}/private/app:1", "--push", "-o", f"type=oci,dest={tmp_path / 'work/app.tar'}",
                env=env,
            )  # fmt: skip
            assert done.code == 0, done.err
            said.append(done.out + done.err)
        assert "with ***" in said[0]
        refused = builder.build(DOCKERFILE.format(base=base), *lent, "--no-cache", env={"VARIABLE": variable})
        assert refused.code == 3, refused.err  # no login: the registry says no, without a word of what was lent
        said.append(refused.out + refused.err)

    for build in builder.builds():
        for command in (("show", build["id"]), ("output", build["id"]), ("events", "--json", "--build", build["id"])):
            told = builder.run(*command)
            said.append(told.out + told.err)
    with (tmp_path / "work/app.tar").open("rb") as archive:
        subprocess.run(["tar", "-xf", "-", "-C", tmp_path / "work"], stdin=archive, check=True)
    blobs = [path for path in (tmp_path / "registry").rglob("*") if path.is_file() and path.name == "data"]
    assert len(blobs) > 5
    for needle in needles:
        assert not [text for text in said if needle in text]
        assert holders(needle, builder.root, builder.context, tmp_path / "work", *blobs) == []
    assert builder.leftovers() == []
