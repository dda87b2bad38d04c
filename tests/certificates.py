"""A certificate authority for tests, by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs what it is asked to; `pair` is its own, self-signed. `rsa`: with keys of that kind, which take longer."""

    def __init__(self, directory: Path, name: str = "authority", *, rsa: bool = False) -> None:
        self._directory = directory
        self._kind = ["rsa:2048"] if rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        directory.mkdir(parents=True, exist_ok=True)
        self.pair = self._new(name, "basicConstraints=critical,CA:true", "keyUsage=keyCertSign,digitalSignature")

    def server(self, name: str = "server") -> Pair:
        """For a server on loopback."""
        return self._new(
            name, "subjectAltName=IP:127.0.0.1,DNS:localhost", "extendedKeyUsage=serverAuth", signer=self.pair
        )

    def client(self, name: str = "client") -> Pair:
        """For who asks."""
        return self._new(name, "extendedKeyUsage=clientAuth", signer=self.pair)

    def tls(self) -> dict[str, object]:
        """What a registry's configuration says of TLS where clients must show a certificate of this authority."""
        server = self.server()
        clients = [str(self.pair.certificate)]
        return {"certificate": str(server.certificate), "key": str(server.key), "clientcas": clients}

    def _new(self, name: str, *extensions: str, signer: Pair | None = None) -> Pair:
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        command = [
            "openssl", "req", "-x509", "-newkey", *self._kind, "-nodes", "-subj", f"/CN={name}", "-days", "2",
            "-keyout", str(pair.key), "-out", str(pair.certificate),
        ]  # fmt: skip
        for extension in extensions:
            command += ["-addext", extension]
        if signer is not None:
            command += ["-CA", str(signer.certificate), "-CAkey", str(signer.key)]
        subprocess.run(command, check=True, capture_output=True)
        return pair
