"""Requests over HTTP on connections that stay open, by the standard library alone.

`urllib.request` opens a connection for every request, which over TLS takes longer than an image.
"""

from __future__ import annotations

import base64
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

SCHEMES = ("http", "https")
_TIMEOUT_SECONDS = 30
_REDIRECTS = 5
_Key = tuple[str, str, int | None]


class RedirectError(HTTPException):
    """An address leads to where nobody should follow."""


class _Idle:
    """Open connections of this process that wait for their next request; any thread takes one that no other has."""

    def __init__(self) -> None:
        self._clear()
        if hasattr(os, "register_at_fork"):
            # A connection that two processes write to would mix their requests.
            os.register_at_fork(after_in_child=self._forget)

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[_Key, list[HTTPConnection]] = {}

    def _forget(self) -> None:
        waiting = self._waiting
        self._clear()  # with a lock of its own: a thread of the parent may have held the old one
        for connection in (connection for group in waiting.values() for connection in group):
            connection.close()

    def take(self, key: _Key) -> HTTPConnection | None:
        with self._lock:
            group = self._waiting.get(key)
            return group.pop() if group else None

    def give(self, key: _Key, connection: HTTPConnection) -> None:
        with self._lock:
            self._waiting.setdefault(key, []).append(connection)

    def close(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for connection in (connection for group in waiting.values() for connection in group):
            connection.close()


_idle = _Idle()


def close_idle() -> None:
    """Close the connections that wait for a next request."""
    _idle.close()


@contextmanager
def get(url: str, headers: dict[str, str]) -> Iterator[tuple[HTTPResponse, str]]:
    """Yield the answer to a GET, and the address that gave it after redirects; its body is the caller's to read.

    Proxies are taken from the environment (`https_proxy`, `no_proxy`). The header Authorization stays with the host
    that it is for. The connection is kept if the body was read to its end.

    Raises OSError or HTTPException for whatever goes wrong on the way, but not for the status of the answer.
    """
    for _ in range(_REDIRECTS + 1):
        parts = urlsplit(url)
        connection, response = _send(parts, headers)
        whole = False
        try:
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                yield response, url
                whole = response.isclosed() and not response.will_close
                return
        finally:
            if whole:
                _idle.give(_key(parts), connection)
            else:
                response.close()
                connection.close()
        url = urljoin(url, location)
        target = urlsplit(url)
        if target.scheme not in SCHEMES or (parts.scheme, target.scheme) == ("https", "http"):
            raise RedirectError(f"it leads to {target.scheme}://{target.netloc}, which is not followed")
        if (target.scheme, target.netloc) != (parts.scheme, parts.netloc):
            headers = {name: value for name, value in headers.items() if name != "Authorization"}
    raise RedirectError(f"it leads on more than {_REDIRECTS} times")


def _key(parts: SplitResult) -> _Key:
    return parts.scheme, parts.hostname or "", parts.port


def _send(parts: SplitResult, headers: dict[str, str]) -> tuple[HTTPConnection, HTTPResponse]:
    """Send a request, on a connection that waits if there is one."""
    proxy = _proxy(parts)
    # A proxy for plain HTTP is told the whole address.
    server = (parts.scheme, parts.netloc) if proxy and parts.scheme == "http" else ("", "")
    target = quote(urlunsplit((*server, parts.path or "/", parts.query, "")), safe="%/:=&?~+!$,;'@()*[]")
    if (kept := _idle.take(_key(parts))) is not None:
        try:
            kept.request("GET", target, headers=headers)
            return kept, kept.getresponse()
        except (OSError, HTTPException):  # its server has closed it meanwhile
            kept.close()
    connection = _connect(parts, proxy)
    try:
        connection.request("GET", target, headers=headers)
        return connection, connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _proxy(parts: SplitResult) -> SplitResult | None:
    address = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    return urlsplit(address if "://" in address else f"http://{address}") if address else None


def _connect(parts: SplitResult, proxy: SplitResult | None) -> HTTPConnection:
    """A connection to the host of an address, perhaps through a proxy; it opens with its first request."""
    at = proxy or parts
    if parts.scheme == "http":
        return HTTPConnection(at.hostname or "", at.port, timeout=_TIMEOUT_SECONDS)
    connection = HTTPSConnection(
        at.hostname or "", at.port, timeout=_TIMEOUT_SECONDS, context=ssl.create_default_context()
    )
    if proxy:
        login = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}".encode()
        known = {"Proxy-Authorization": f"Basic {base64.b64encode(login).decode()}"} if proxy.username else {}
        connection.set_tunnel(parts.hostname or "", parts.port, known)
    return connection
