"""File names made from names that a user chose: valid on Windows, macOS and Linux, whichever wrote them."""

import hashlib
import re
import unicodedata

#: Characters that Windows does not allow in a name, and those that control a terminal.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
#: Devices on Windows, with any ending and in any case.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
#: File systems allow 255. The ending, and the prefix of a file that is being written, need some of them.
_MAX_BYTES = 200


def safe_name(name: str) -> str:
    """A valid name for a file or folder. A valid name stays as it is; any other gets a digest of the original, so that
    two different names never become one."""
    safe = _FORBIDDEN.sub("_", name)
    safe = re.sub(r"[. ]+$", "_", safe) or "_"  # Windows leaves these out
    if device := _DEVICE.fullmatch(safe):
        safe = f"{device[1]}_{device[3] or ''}"
    if safe == name and len(name.encode()) <= _MAX_BYTES:
        return name
    return with_digest(safe, name)


def with_digest(name: str, of: str) -> str:
    """A name with a digest of another text, which makes it unique."""
    digest = hashlib.sha256(of.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    shortened = name.encode()[: _MAX_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{shortened}-{digest}"


def folded(name: str) -> str:
    """A key that is equal for names of one file on Windows or macOS: without case and Unicode normal form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
