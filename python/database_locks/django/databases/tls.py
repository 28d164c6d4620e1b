"""TLS options of the drivers of MySQL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import urls


class Tls:
    """Collects the TLS options of either driver, and writes those of the URL."""

    def __init__(self, *, driver_checks_names: bool) -> None:
        # With a CA, PyMySQL checks the certificate and the name; mysqlclient checks the name only
        # if an option asks for it.
        self.checks_names = driver_checks_names
        self.mode = ""
        self.on = False
        self.off = False
        self.files: dict[str, str] = {}
        self.check_name: bool | None = None
        self.verify: bool | None = None

    def takes(self, key: str, value: Any, problems: list[urls.Problem]) -> bool:
        """Take in an option. Returns whether it is about TLS."""
        if key == "ssl":
            self._dict(value, problems)
        elif key == "ssl_mode":
            self.mode = urls.text(value)
        elif key == "ssl_disabled":
            self.off = bool(value)
        elif key in ("ssl_ca", "ssl_cert", "ssl_key"):
            if value:
                self._file(key.removeprefix("ssl_"), value)
        elif key == "ssl_verify_cert":
            self.verify = None if value is None else bool(value)
            self.on |= bool(value)
        elif key == "ssl_verify_identity":
            self.check_name = None if value is None else bool(value)
            self.on |= bool(value)
        elif key in ("ssl_key_password", "bind_address"):
            if value:
                problems.append(urls.unsupported(key))
        else:
            return False
        return True

    def _file(self, what: str, path: Any) -> None:
        self.on = True
        self.files[what] = os.path.abspath(urls.text(path))

    def _dict(self, value: Any, problems: list[urls.Problem]) -> None:
        if not isinstance(value, Mapping):
            if value is True:
                self.on = True
            elif value not in (None, False, ""):
                problems.append(
                    urls.unsupported(
                        "ssl",
                        f"is an object ({type(value).__name__}), which cannot be used for locks",
                        "give a dict of ca, cert and key",
                    )
                )
            return
        for key, given in value.items():
            if given is None or given == "":
                continue
            if key in ("ca", "cert", "key"):
                self._file(key, given)
            elif key == "check_hostname":
                self.on, self.check_name = True, bool(given)
            elif key == "verify_mode":
                self.on, self.verify = True, _verifies(given)
            else:
                problems.append(
                    urls.Problem(
                        f"['OPTIONS']['ssl'][{key!r}]",
                        "cannot be used for locks",
                        f"give ca, cert, key, check_hostname and verify_mode only, or {urls.WAY_OUT}",
                    )
                )

    def write(self, options: dict[str, str], problems: list[urls.Problem]) -> None:
        """Write the options of the URL."""
        if self.off:
            options["sslmode"] = "disable"
            return
        ca = self.files.get("ca")
        if self.mode:
            mode = self.mode
        elif not self.on:
            # Neither driver asks for TLS. The core uses it if the server offers it.
            return
        elif ca is None or self.verify is False:
            mode = "require"
        else:
            names = self.checks_names if self.check_name is None else self.check_name
            mode = "verify-full" if names else "verify-ca"
        if self.verify and ca is None:
            problems.append(
                urls.unsupported(
                    "ssl",
                    "asks for a verified certificate without saying by which CA",
                    "name the file of its CA: 'ca'",
                )
            )
        options["sslmode"] = mode
        # With a CA the core verifies the chain in every mode.
        if ca is not None and self.verify is not False:
            options["sslrootcert"] = ca
        for what, name in (("cert", "sslcert"), ("key", "sslkey")):
            if what in self.files:
                options[name] = self.files[what]


def _verifies(given: Any) -> bool | None:
    """PyMySQL's ``verify_mode``: a bool, a word, or a constant of `ssl`."""
    word = urls.text(given).lower()
    if word in ("none", "0", "false", "no", "verifymode.cert_none"):
        return False
    if word in ("optional", "1", "true", "yes", "required", "2"):
        return True
    return True
