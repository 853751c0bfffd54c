"""Check the environment's Hub and proxy settings before huggingface_hub reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from vitdeploy.errors import UsageError

_TIME_LIMITS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_WEB = ("https", "http")
_PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def check_endpoint(endpoint: str | None) -> None:
    """Raise UsageError unless `endpoint`, HF_ENDPOINT and huggingface_hub's time limits are well-formed."""
    for name, address in (("endpoint", endpoint), ("HF_ENDPOINT", os.environ.get("HF_ENDPOINT"))):
        if address is not None:
            _check_address(name, address, _WEB)
            if urlsplit(address).query or urlsplit(address).fragment:
                shown = without_password(address)
                raise UsageError(f"{name} has a query or fragment: {shown!r}", what=name, found=shown, hint="remove it")
    for name in _TIME_LIMITS:
        seconds = os.environ.get(name)
        if seconds is not None and not re.fullmatch("[0-9]{1,6}", seconds):
            raise UsageError(
                f"{name} is not a whole number of seconds: {seconds!r:.100}",
                what=name, found=seconds, hint="correct or unset it",
            )  # fmt: skip


def check_connection() -> None:
    """Raise UsageError for a malformed proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) or missing certificates."""
    for scheme, address in getproxies().items():
        if scheme in (*_WEB, "all") and address:
            complete = address if "://" in address else f"http://{address}"  # as the HTTP libraries read it
            _check_address(f"{scheme.upper()}_PROXY", complete, _PROXIES)
    for name in _CERTIFICATES:
        path = os.environ.get(name)
        if path and not Path(path).exists():
            raise UsageError(f"{name} does not exist: {path!r:.200}", what=name, found=path, hint="correct or unset it")


def check_token(token: str | None) -> None:
    """Raise UsageError for a token, given or from the environment, that a library would show in its error."""
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if token is None and named:
        source, token = "the token of HF_TOKEN", named.strip()
    else:
        source = "the token"
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise UsageError(f"{source} is not printable ASCII without spaces", what="token", hint="copy it again")


def without_password(text: str) -> str:
    """Remove user names and passwords from addresses in a text."""
    return re.sub(r"(://)[^/\s@'\"]*@", r"\1", text)


def _check_address(name: str, address: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(address)
        well_formed = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an IPv6 address, or an invalid port
        well_formed = False
    if not well_formed or re.search(r"[\x00-\x20\x7f]", address):
        shown = without_password(address)
        hint = f"give {schemes[0]}://HOST[:PORT]"
        raise UsageError(f"{name} is not an address: {shown!r:.200}", what=name, found=shown, hint=hint)
