"""The web page that the gateway serves: its files, with the headers for caches and for the security of browsers."""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import cached_property
import hashlib
import html
from http import HTTPStatus
from pathlib import Path
import re

from websockets.datastructures import Headers
from websockets.http11 import Response

#: The built page. The folder is missing if the package was built without the page.
PAGE_FOLDER = Path(__file__).parents[1] / "page"
#: Name of the example volume, which is made by :mod:`nninteractive_ws.server.example_volume`.
EXAMPLE = "example.nii.gz"
_INDEX = "index.html"
# Names that the build makes from the content, so that a file of a name never changes.
_HASHED = re.compile(r".+[.-][A-Z0-9]{8}\.\w+")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".gz": "application/gzip",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
# Scripts, workers and WebAssembly of this server only. A worker has the policy of its own file, so every file has it.
# data: and blob: are for images and workers that the page's libraries make.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self' data:",
        "worker-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
# Of every response, so that browsers show none of them in a frame, and take none for a script of another page.
_SECURITY_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: The sentence of a server whose package was built without the page.
MISSING_PAGE = (
    "This server has no web page, because its package was built without one. To get the page, install a released wheel "
    "(pip install 'nninteractive-ws[server]'), or install the package again where PyPI and registry.npmjs.org can be "
    "reached. 3D Slicer, napari and Python work without the page."
)


@dataclass(frozen=True)
class _Body:
    """The content of a file in an encoding of HTTP; "": as it is."""

    content: bytes
    encoding: str = ""

    @cached_property
    def tag(self) -> str:
        """The entity tag."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class PageFile:
    """A file of the page. ``compressed``: its content in gzip; None: it is sent as it is."""

    def __init__(self, name: str, content: bytes, compressed: bytes | None = None) -> None:
        self._name, self._plain = name, _Body(content)
        self._gzip = None if compressed is None else _Body(compressed, "gzip")

    def respond(self, headers: Headers) -> Response:
        """Return the response to a request with these headers."""
        body = self._plain if self._gzip is None or not _accepts_gzip(headers) else self._gzip
        immutable = _HASHED.fullmatch(self._name) is not None
        fields = {
            "Cache-Control": "public, max-age=31536000, immutable" if immutable else "no-cache",
            "ETag": body.tag,
            **({} if self._gzip is None else {"Vary": "Accept-Encoding"}),
            **_opener_policy(headers),
        }
        if _matches(body.tag, headers):
            return http_response(HTTPStatus.NOT_MODIFIED, None, b"", fields)
        fields |= {"Content-Encoding": body.encoding} if body.encoding else {}
        kind = _TYPES.get(Path(self._name).suffix, "application/octet-stream")
        return http_response(HTTPStatus.OK, kind, body.content, fields)


class WebPage:
    """The page of a folder, read into memory. Without such a folder, it has no files."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        contents = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self._files: Mapping[str, PageFile] = {
            name: PageFile(name, content, contents.get(f"{name}.gz"))
            for name, content in contents.items()
            if not name.endswith(".gz")
        }

    @property
    def is_built(self) -> bool:
        return _INDEX in self._files

    @property
    def file_names(self) -> list[str]:
        """The names of the files, without the index."""
        return [name for name in self._files if name != _INDEX]

    def index(self, headers: Headers) -> Response | None:
        """Return the response to ``GET /``. Without a built page, it is a sentence for browsers; None: for programs."""
        if self.is_built:
            return self._files[_INDEX].respond(headers)
        if "text/html" in ",".join(headers.get_all("Accept")):
            return explanation(HTTPStatus.NOT_FOUND, MISSING_PAGE)
        return None

    def file(self, name: str) -> PageFile | None:
        """Return the file of a name, or None."""
        return self._files.get(name)


def explanation(status: HTTPStatus, sentence: str) -> Response:
    """Return a response with a sentence for a person with a browser."""
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>nninteractive-ws</title>'
        f"<p>{html.escape(sentence.strip())}</p></html>\n"
    )
    return http_response(status, _TYPES[".html"], text.encode(), {"Cache-Control": "no-cache"})


def text_response(status: HTTPStatus, text: str) -> Response:
    """Return a response of plain text."""
    return http_response(status, _TYPES[".txt"], text.encode())


def http_response(
    status: HTTPStatus, content_type: str | None, body: bytes, fields: Mapping[str, str] | None = None
) -> Response:
    """Return a response after which the connection is closed. ``fields``: further headers."""
    headers = Headers({"Date": formatdate(usegmt=True), "Connection": "close", **_SECURITY_HEADERS})
    if content_type is not None:
        headers["Content-Type"] = content_type
        headers["Content-Length"] = str(len(body))
    headers.update(fields or {})
    return Response(status.value, status.phrase, headers, body)


def _opener_policy(headers: Headers) -> dict[str, str]:
    """Return the header that separates the page from the one that opened it, if the browser accepts it.

    At an address that is neither https nor loopback, Chromium ignores it and logs an error. Browsers send
    Sec-Fetch-Site to just the other addresses, also if a proxy adds TLS.
    """
    return {"Cross-Origin-Opener-Policy": "same-origin"} if "Sec-Fetch-Site" in headers else {}


def _accepts_gzip(headers: Headers) -> bool:
    """Return whether a request accepts gzip, named and not with the weight 0."""
    codings = ",".join(headers.get_all("Accept-Encoding")).lower().replace(" ", "").split(",")
    names = {coding.partition(";")[0]: coding.partition(";q=")[2] for coding in codings}
    return "gzip" in names and not re.fullmatch(r"0(\.0*)?", names["gzip"])


def _matches(tag: str, headers: Headers) -> bool:
    """Return whether the client has the content of an entity tag."""
    tags = [given.strip() for given in ",".join(headers.get_all("If-None-Match")).split(",")]
    return "*" in tags or any(given.removeprefix("W/") == tag for given in tags)
