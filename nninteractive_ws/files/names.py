"""File names from names of the user, valid on Windows, macOS and Linux alike."""

import hashlib
import re
import unicodedata

#: Characters that Windows does not allow in a name, and terminal control characters.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
#: Device names of Windows, with any extension and in any case.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
#: File systems allow 255 bytes. The extension, and the prefix of a partial file, need some of them.
_MAX_BYTES = 200


def safe_name(name: str) -> str:
    """Return a valid name for a file or folder.

    A valid name is unchanged. Any other name gets a digest of the original, so that different names never collide.
    """
    safe = _FORBIDDEN.sub("_", name)
    safe = re.sub(r"[. ]+$", "_", safe) or "_"  # Windows strips these
    if device := _DEVICE.fullmatch(safe):
        safe = f"{device[1]}_{device[3] or ''}"
    if safe == name and len(name.encode()) <= _MAX_BYTES:
        return name
    return with_digest(safe, name)


def with_digest(name: str, of: str) -> str:
    """Append a digest of a text to a name, to make it unique."""
    digest = hashlib.sha256(of.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    shortened = name.encode()[: _MAX_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{shortened}-{digest}"


def folded(name: str) -> str:
    """Return a key that is equal for names of the same file on Windows or macOS: case-folded and normalized."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def is_utf8(path: str) -> bool:
    """Whether a path is text in UTF-8. Libraries of image formats end the process if it is not."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
