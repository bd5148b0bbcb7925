"""Taking out what a stranger may not read.

* Always: private keys in any common form, invite tokens, and paths (they name people and customers).
* On request: the names of nodes, groups and the cluster, and addresses; each becomes the same short id
  everywhere, so that a report still tells who did what.

Better too much than too little: an ordinary word that is also the name of a group goes as well. Keys of JSON
objects stay; only values are looked at.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

TOKEN: Final = re.compile(r"cmn1-[a-z2-7]{4,}", re.IGNORECASE)
"""What ``invite`` prints."""
_PRIVATE_PEM: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_PATH: Final = re.compile(r"(?<![\w.:/<>-])/(?:[^\s/\"'`|;:,()<>\\]+/)*[^\s/\"'`|;:,()<>\\]+")
_PUBLIC: Final = (
    "/etc/systemd",
    "/usr/lib/systemd",
    "/usr/local/lib/systemd",
    "/run/systemd",
    "/proc",
    "/sys",
)
"""Paths that are the same on every machine and say nothing about its owner."""
_IPV4: Final = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
_IPV6: Final = re.compile(r"(?<![\w:])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:])")
_SECRET_BYTES_MIN: Final = 16
"""Shorter ones would be found by chance."""


class Redactor:
    """Replaces secrets, paths and names in texts and JSON documents."""

    def __init__(
        self,
        *,
        secrets: Iterable[bytes] = (),
        prefixes: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Make one.

        Args:
            secrets: Bytes of keys, in the form of their files.
            prefixes: Directories and what to call them.
            names: Names and what to call them; None: names and addresses stay.
        """
        self._secrets = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
        self._prefixes = sorted((prefixes or {}).items(), key=lambda pair: -len(pair[0]))
        self._hides_names = names is not None
        self._aliases = {name: alias for name, alias in (names or {}).items() if name}
        # One expression, the longest first: what a name was replaced by is not looked at again.
        words = "|".join(re.escape(name) for name in sorted(self._aliases, key=len, reverse=True))
        self._name = re.compile(rf"(?<!\w)(?:{words})(?!\w)") if words else None

    def document(self, value: Any) -> Any:
        """Return a JSON value with every text in it redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.document(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(item) for item in value]
        return value

    def lines(self, text: str) -> str:
        """Return a log: each line that is a JSON object is treated as one."""
        # A key that was printed stands on several lines.
        whole = _PRIVATE_PEM.sub("<private key>", text)
        return "\n".join(self._line(line) for line in whole.splitlines()) + ("\n" if text else "")

    def text(self, text: str) -> str:
        """Return ``text`` without secrets, paths and, if asked to, names and addresses."""
        text = _PRIVATE_PEM.sub("<private key>", text)
        for secret in self._secrets:
            text = text.replace(secret, "<secret>")
        text = TOKEN.sub("<token>", text)
        for prefix, alias in self._prefixes:
            text = re.sub(rf"(?<![\w/]){re.escape(prefix)}(?![\w.-])", alias, text)
        text = _PATH.sub(_hide_path, text)
        if self._hides_names:
            if self._name is not None:
                text = self._name.sub(lambda found: self._aliases[found[0]], text)
            text = _IPV6.sub(_hide_address, _IPV4.sub(_hide_address, text))
        return text

    def leaks(self, data: bytes) -> bool:
        """Tell whether there is a secret in what is about to be given away."""
        text = data.decode("utf-8", "replace")
        return bool(
            any(secret in text for secret in self._secrets)
            or TOKEN.search(text)
            or "PRIVATE KEY-----" in text
        )

    def _line(self, line: str) -> str:
        try:
            value = json.loads(line)
        except ValueError:
            return self.text(line)
        return json.dumps(self.document(value)) if isinstance(value, dict) else self.text(line)


def short_id(kind: str, name: str) -> str:
    """Return a name for something whose own id is not known: the same for the same name."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _forms(secret: bytes) -> list[str]:
    """Return how a secret may appear in a text."""
    if len(secret) < _SECRET_BYTES_MIN:
        return []
    if secret.startswith(b"-----BEGIN"):
        # Each line of the body alone, and the last 32 bytes: the seed of an Ed25519 key (RFC 8410).
        lines = [line.strip() for line in secret.splitlines() if line and not line.startswith(b"-----")]
        der = base64.b64decode(b"".join(lines))
        return [line.decode() for line in lines if len(line) >= _SECRET_BYTES_MIN] + _forms(der[-32:])
    forms = [secret.hex(), secret.hex().upper(), base64.b64encode(secret).decode()]
    forms += [base64.urlsafe_b64encode(secret).decode(), base64.b32encode(secret).decode().rstrip("=")]
    forms += [secret.decode("utf-8", "replace"), repr(secret)[2:-1]]
    return forms


def _hide_path(found: re.Match[str]) -> str:
    path = found[0]
    return path if path.startswith(_PUBLIC) else f"<{short_id('path', path)}>"


def _hide_address(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    if address.is_loopback or address.is_unspecified:
        return found[0]
    return f"<{short_id('address', str(address))}>"
