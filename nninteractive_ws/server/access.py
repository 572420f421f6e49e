"""Access control: the token file and safe bind addresses."""

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import hmac
import logging
import os
from pathlib import Path
import re
import secrets
import shlex
import stat
import sys

from websockets.datastructures import Headers

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.ip_addresses import is_loopback
from nninteractive_ws.redaction import TOKEN_PREFIX
from nninteractive_ws.server.file_lock import FileLocked, file_lock

_log = logging.getLogger(__name__)

_MAX_NAME = 64
#: Subprotocol of web pages. With ``.bearer.`` and a token behind it, it carries the token.
SUBPROTOCOL = "nninteractive.v1"


class AccessError(Exception):
    """A setting of access control cannot be used. ``str()`` is a sentence that says what to do."""


class BadTokenFile(AccessError):
    """A token file that cannot be read, or has an invalid line."""


class InvalidUserName(AccessError):
    """A user name that is invalid, already in use, or unknown."""


class InsecureBind(AccessError):
    """A bind address at which everybody could use the server."""


# ---- tokens -----------------------------------------------------------------------------------------------


class TokenFile:
    """The users with access, one per line: a name and the SHA-256 of a token in hexadecimal. # begins a comment.

    Every connection checks whether the file has changed, and reads it again if so. An added or deleted line takes
    effect at the next connection. A file that became unreadable or invalid changes nothing, and is logged as an error.
    An empty file gives nobody access.

    The digests are neither salted nor slow to compute. Passwords need that, because people choose them and attackers
    guess them. A token is 256 random bits, which cannot be found from its digest.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadTokenFile."""
        self._path = path
        self._state = _state(path)
        self._failed_state: tuple[int, ...] | None = None
        self._digests = _read(path)
        self._warn()

    def user_of(self, token: str) -> str | None:
        """Return the name of the user with this token; None for an unknown or empty token.

        The digest is compared with those of all users, even after a match. So the duration reveals neither the user
        nor how much of a wrong token is right.
        """
        self._reload_if_changed()
        presented, user = _digest(token), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, presented):
                user = name
        return user if token else None

    def _reload_if_changed(self) -> None:
        # The state is taken before the file is read, so the next call sees a change in between.
        state = _state(self._path)
        if state == self._state:
            return
        try:
            self._digests = _read(self._path)
        except BadTokenFile as e:
            if state != self._failed_state:
                _log.error("%s Until then, the previous tokens stay valid.", e)
            self._failed_state = state  # read again at the next call, because the failure may be transient
        else:
            self._state = state
            _log.info("the token file changed and has %d users now", len(self._digests))
            self._warn()

    def _warn(self) -> None:
        try:
            warning = insecure_permissions(self._path)
        except OSError:
            return  # the file was just replaced; the next check sees the new one
        if warning is not None:
            _log.warning("%s", warning)


def users(path: Path) -> list[str]:
    """Return the names in a token file, in the order of its lines. Raises BadTokenFile."""
    return list(_read(path))


def add_user(path: Path, name: str) -> str:
    """Add a user to a token file, and return the new token. Creates the file if there is none.

    Raises InvalidUserName, BadTokenFile, and OSError if the file cannot be written.
    """
    if not name or not name.isprintable() or any(c.isspace() or c == "#" for c in name) or len(name) > _MAX_NAME:
        raise InvalidUserName(
            f'"{name}" cannot be a user name. Use up to {_MAX_NAME} visible characters without blanks and #.'
        )
    token = new_token()
    with _locked(path):
        before = ""
        if path.exists():
            if name in _read(path):
                raise InvalidUserName(
                    f"{name} already has a token in {path}. Remove that token first, or use another name."
                )
            before = path.read_text("utf-8-sig")
        if before and not before.endswith("\n"):
            before += "\n"
        _write(path, f"{before}{name} {_digest(token).hex()}\n")
    return token


def remove_user(path: Path, name: str) -> None:
    """Remove a user from a token file.

    Raises InvalidUserName, BadTokenFile, and OSError if the file cannot be written.
    """
    with _locked(path):
        if name not in _read(path):
            raise InvalidUserName(f"There is no user {name} in {path}. Check the spelling of the name.")
        lines = path.read_text("utf-8-sig").splitlines(keepends=True)
        _write(path, "".join(line for line in lines if _fields(line)[:1] != [name]))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a token file. Without it, two commands at the same time would overwrite each other's change, and
    a revoked token could become valid again."""
    try:
        with file_lock(path.resolve()):
            yield
    except FileLocked as e:
        raise AccessError(str(e)) from e


def insecure_permissions(path: Path) -> str | None:
    """Return a warning if other users of this machine can change a token file, and so get access; else None."""
    if sys.platform == "win32":
        return None  # Windows has access control lists instead of these bits
    file = path.resolve()
    if file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"Other users of this machine can change the token file {path}. Run: chmod go-w {shlex.quote(str(file))}"
    # The folder of a symbolic link counts too, because a user who may write there can replace the link.
    for folder in sorted({*path.absolute().parents, *file.parents}):
        if _others_may_write(folder):
            return (
                f"Other users of this machine can replace the token file {path}, because they may write to {folder}. "
                f"Move the file, or run: chmod go-w {shlex.quote(str(folder))}"
            )
    return None


def _others_may_write(folder: Path) -> bool:
    status = folder.stat()
    if status.st_mode & stat.S_ISVTX:  # such as /tmp, where only the owner of a file can replace it
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private_group(status.st_uid, status.st_gid)


def _is_private_group(user: int, group: int) -> bool:
    """Return whether the user is the only member of a group. Many systems create such a group for each user, and make
    folders writable for it."""
    if sys.platform == "win32":
        return False
    import grp
    import pwd

    try:
        owner, owners_group = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:  # in a container, for instance
        return False
    return owner.pw_name == owners_group.gr_name and set(owners_group.gr_mem) <= {owner.pw_name}


def new_token() -> str:
    """Return a new token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def bearer_token(headers: Headers) -> str:
    """Return the token of a request; empty if it has none, or more than one."""
    values = headers.get_all("Authorization")
    if len(values) != 1:
        return ""
    scheme, _, token = values[0].partition(" ")
    return token if scheme.lower() == "bearer" and token.isascii() else ""


def client_token(headers: Headers) -> str:
    """Return the token of a client; empty if it has none, or several that differ.

    A web page cannot set headers of a WebSocket, so it offers the token as a subprotocol. A proxy's own login may
    occupy the Authorization header, with another scheme than Bearer.
    """
    if len(headers.get_all("Authorization")) > 1:
        return ""
    tokens = {token for token in (bearer_token(headers), *_subprotocol_tokens(headers)) if token}
    return tokens.pop() if len(tokens) == 1 else ""


def has_client_token(headers: Headers) -> bool:
    """Return whether a client presents a token, valid or not."""
    return "Authorization" in headers or bool(_subprotocol_tokens(headers))


def offers_subprotocol(headers: Headers) -> bool:
    """Return whether a client offers :data:`SUBPROTOCOL`, which the response then confirms."""
    return SUBPROTOCOL in _offered(headers)


def _offered(headers: Headers) -> list[str]:
    return [name.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for name in value.split(",")]


def _subprotocol_tokens(headers: Headers) -> list[str]:
    prefix = f"{SUBPROTOCOL}.bearer."
    return [name.removeprefix(prefix) for name in _offered(headers) if name.startswith(prefix) and name.isascii()]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _state(path: Path) -> tuple[int, ...]:
    """Return values that differ after a change of the file. Of its times, only ctime cannot be set by a user, and
    chmod changes it too."""
    try:
        status = path.stat()
    except OSError as e:
        return (e.errno or 0,)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _fields(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _read(path: Path) -> dict[str, bytes]:
    """Return digests by name. Raises BadTokenFile, which never shows a line, because it may hold a token by mistake."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as e:
        raise BadTokenFile(
            f"The token file {path} cannot be read ({e.strerror or e}). To create one, run "
            "`nninteractive-ws token NAME --file FILE`."
        ) from e
    except UnicodeDecodeError as e:
        raise BadTokenFile(f"The token file {path} is not UTF-8 text. Correct it, or create a new one.") from e
    digests: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        parts = _fields(line)
        if not parts:
            continue
        if len(parts) != 2 or not re.fullmatch("[0-9a-fA-F]{64}", parts[1]):
            raise BadTokenFile(
                f"Line {number} of the token file {path} is not a name and the SHA-256 of a token. Correct the line, "
                "or delete it and run `nninteractive-ws token`."
            )
        name, digest = parts[0], bytes.fromhex(parts[1])
        if name in digests or digest in digests.values():
            raise BadTokenFile(
                f"Line {number} of the token file {path} repeats the name or token of another line. Delete one of them."
            )
        digests[name] = digest
    return digests


def _write(path: Path, text: str) -> None:
    """Replace a file atomically. The new file keeps the owner and mode of the old one; without an old one, only its
    owner may read it."""
    path = path.resolve()  # the file, not the link to it
    with atomic_write(path, private=True) as new:
        with new.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _copy_owner_and_mode(new, path.stat())


def _copy_owner_and_mode(path: Path, other: os.stat_result) -> None:
    # An administrator may change the file of a server that runs as another user, which must still be able to read it.
    own = path.stat()
    if sys.platform != "win32" and (own.st_uid, own.st_gid) != (other.st_uid, other.st_gid):
        os.chown(path, other.st_uid, other.st_gid)
    path.chmod(other.st_mode & 0o777)


# ---- bind addresses ---------------------------------------------------------------------------------------


def check_bind_address(host: str, has_tokens: bool, has_tls: bool, insecure: bool) -> str | None:
    """Check that it is safe to listen at an address. Return a warning, or None. Raises InsecureBind.

    ``insecure``: whether the user accepts a server without tokens.
    """
    if is_loopback(host):
        return None
    where = f"at {host}" if host else "at every address"
    if not has_tokens:
        if not insecure:
            raise InsecureBind(
                f"A server that listens {where} without tokens can be used by everybody who can reach this machine. "
                "Create a token (nninteractive-ws token NAME --file FILE) and serve with --token-file FILE. Or listen "
                "at 127.0.0.1, and let users connect through SSH. To serve without tokens nevertheless, add --insecure."
            )
        return f"The server listens {where} without tokens. Everybody who can reach this machine can use it."
    if not has_tls:
        return (
            f"The server listens {where} without TLS. Tokens and images are sent unencrypted. Serve with --tls-cert "
            "and --tls-key, or put a proxy with TLS in front of the server."
        )
    return None
