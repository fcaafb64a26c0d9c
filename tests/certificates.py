"""Certificates of the tests' own, for the daemon and for those who call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme
from turnkeep.client.session import Tls
from turnkeep.config import AccessSettings


class Certificates:
    """An authority, the daemon's certificate, and those of clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority_file = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.authority_file)
        self.renew()

    def renew(self) -> None:
        """Give the daemon another certificate."""
        self.issue("daemon", "localhost")

    def issue(self, name: str, *names: str, authority: trustme.CA | None = None) -> Tls:
        """Return a certificate with this common name and these alternative names."""
        issued = (authority or self.authority).issue_cert(*names, common_name=name)
        key, chain = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        issued.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        return Tls(authority=str(self.authority_file), certificate=str(chain), key=str(key))

    def settings(self, **lists: Any) -> AccessSettings:
        """Return what has the daemon serve TLS on a free port."""
        return AccessSettings(
            listen="127.0.0.1:0",
            certificate=str(self.folder / "daemon.pem"),
            key=str(self.folder / "daemon.key"),
            client_authority=str(self.authority_file),
            **lists,
        )
