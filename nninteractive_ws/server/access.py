"""Who may use the server: tokens in a file, addresses that are safe to listen at, TLS."""

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import hmac
import ipaddress
import logging
import os
from pathlib import Path
import re
import secrets
import shlex
import ssl
import stat
import tempfile
from typing import NoReturn

from websockets.datastructures import Headers

from nninteractive_ws.redaction import TOKEN_PREFIX
from nninteractive_ws.server.file_lock import FileLocked, file_lock

_log = logging.getLogger(__name__)

_MAX_NAME = 64


class AccessError(Exception):
    """Access to the server cannot be set up like that. ``str()`` is a sentence with the cure."""


class BadTokenFile(AccessError):
    """A token file that cannot be read, or has a wrong line."""


class BadUser(AccessError):
    """A name that cannot be given to a user, is taken, or is nobody's."""


class NotSafe(AccessError):
    """A server that everybody could use."""


class BadCertificate(AccessError):
    """A certificate or key with which the server cannot speak TLS."""


# ---- tokens -----------------------------------------------------------------------------------------------


class TokenFile:
    """The users who may come in: lines of a name and the SHA-256 of a token, in hexadecimal; # begins a comment.

    The file is looked at whenever somebody comes, and read again where it has changed: a line that is added or
    deleted counts from the next connection on. A file that became unreadable or wrong changes nothing, and the
    log says so; a file without lines lets nobody in.

    The digests are neither salted nor slow to compute. That is for passwords, which people choose and which are
    therefore guessed; a token is 256 random bits, and nobody finds those from their digest.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadTokenFile."""
        self._path = path
        self._state = _state(path)
        self._digests = _read(path)
        self._warn()

    def user_of(self, token: str) -> str | None:
        """Whose token this is; None: nobody's, as the empty one is.

        It is compared with everybody's, also where it was found, and by digest: how long that takes says neither
        whose token it was nor how much of a wrong one was right.
        """
        self._read_again_where_changed()
        presented, user = _digest(token), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, presented):
                user = name
        return user if token else None

    def _read_again_where_changed(self) -> None:
        # Looked at before it is read: what changes in between is seen by the next call.
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._digests = _read(self._path)
        except BadTokenFile as e:
            _log.error("%s Until then, the tokens that were known before are.", e)
        else:
            _log.info("the token file has changed; users now: %d", len(self._digests))
            self._warn()

    def _warn(self) -> None:
        try:
            warning = insecure_permissions(self._path)
        except OSError:
            return  # the file was just replaced; the next check finds the new one
        if warning is not None:
            _log.warning("%s", warning)


def users(path: Path) -> list[str]:
    """The names in a token file, in its order. Raises BadTokenFile."""
    return list(_read(path))


def add_user(path: Path, name: str) -> str:
    """Add a line for a new user to a token file, which is made where there is none; the user's token.

    Raises BadUser, BadTokenFile, and OSError where the file cannot be written.
    """
    if not name or not name.isprintable() or any(c.isspace() or c == "#" for c in name) or len(name) > _MAX_NAME:
        raise BadUser(f'"{name}" cannot be a name: take up to {_MAX_NAME} visible characters without blanks and #.')
    token = new_token()
    with _changing(path):
        before = ""
        if path.exists():
            if name in _read(path):
                raise BadUser(f"{name} has a token in {path} already. Remove that one first, or take another name.")
            before = path.read_text("utf-8-sig")
        if before and not before.endswith("\n"):
            before += "\n"
        _write(path, f"{before}{name} {_digest(token).hex()}\n")
    return token


def remove_user(path: Path, name: str) -> None:
    """Take a user's line out of a token file. Raises BadUser, BadTokenFile, and OSError where it cannot be written."""
    with _changing(path):
        if name not in _read(path):
            raise BadUser(f"There is no {name} in {path}.")
        lines = path.read_text("utf-8-sig").splitlines(keepends=True)
        _write(path, "".join(line for line in lines if _words(line)[:1] != [name]))


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Hold the lock of a token file. Without it, two commands at the same moment would undo each other, and a revoked
    token would be valid again."""
    try:
        with file_lock(path.resolve()):
            yield
    except FileLocked as e:
        raise AccessError(str(e)) from e


def insecure_permissions(path: Path) -> str | None:
    """A warning where other users of this machine may change a token file, and so let themselves in; else None."""
    if os.name != "posix":
        return None  # Windows has access control lists instead of these bits
    file = path.resolve()
    if file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"Other users of this machine may change the token file {path}. Run: chmod go-w {shlex.quote(str(file))}"
    # The folder of a symbolic link counts, too: a user who may write there can point the link elsewhere.
    for folder in sorted({*path.absolute().parents, *file.parents}):
        if _others_may_write(folder):
            return (
                f"Other users of this machine may replace the token file {path}, since they may write to {folder}. "
                f"Move it, or run: chmod go-w {shlex.quote(str(folder))}"
            )
    return None


def _others_may_write(folder: Path) -> bool:
    found = folder.stat()
    if found.st_mode & stat.S_ISVTX:  # such as /tmp: only its owner can replace a file
        return False
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_private_group(found.st_uid, found.st_gid)


def _is_private_group(user: int, group: int) -> bool:
    """Whether the user is the only member of a group. Many systems create such a group for each user, and make folders
    writable for it."""
    import grp
    import pwd

    try:
        owner, owners_group = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:  # in a container, for instance
        return False
    return owner.pw_name == owners_group.gr_name and set(owners_group.gr_mem) <= {owner.pw_name}


def new_token() -> str:
    """256 random bits, as text."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def bearer_token(headers: Headers) -> str:
    """The token of a request; empty where it has none, or more than one."""
    given = headers.get_all("Authorization")
    if len(given) != 1:
        return ""
    scheme, _, token = given[0].partition(" ")
    return token if scheme.lower() == "bearer" and token.isascii() else ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _state(path: Path) -> tuple[int, ...]:
    """What differs once a file has changed. Of the times, ctime is the one that nobody can set, and chmod does."""
    try:
        found = path.stat()
    except OSError as e:
        return (e.errno or 0,)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _words(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _read(path: Path) -> dict[str, bytes]:
    """Digests by name. Raises BadTokenFile, whose sentence shows no line: one may hold a token by mistake."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as e:
        raise BadTokenFile(
            f"The token file {path} cannot be read ({e.strerror or e}). `nninteractive-ws token NAME --file FILE` "
            "makes one."
        ) from e
    except UnicodeDecodeError as e:
        raise BadTokenFile(f"The token file {path} is not text in UTF-8; correct it, or make a new one.") from e
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = _words(line)
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch("[0-9a-fA-F]{64}", words[1]):
            raise BadTokenFile(
                f"Line {number} of the token file {path} is not a name and the SHA-256 of a token; correct it, or "
                "delete it and use `nninteractive-ws token`."
            )
        name, digest = words[0], bytes.fromhex(words[1])
        if name in found or digest in found.values():
            raise BadTokenFile(f"Line {number} of the token file {path} has a name or token again; delete one of them.")
        found[name] = digest
    return found


def _write(path: Path, text: str) -> None:
    """Put a file in the place of another in one step; readable by its owner alone, or as the other was."""
    path = path.resolve()  # the file, not the link to it
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tokens-")
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _take_owner_and_mode(new, path.stat())
        new.replace(path)
    except BaseException:
        new.unlink()
        raise


def _take_owner_and_mode(path: Path, other: os.stat_result) -> None:
    # An administrator may change the file of a server that runs as somebody else, and is to go on reading it.
    mine = path.stat()
    if (mine.st_uid, mine.st_gid) != (other.st_uid, other.st_gid):
        os.chown(path, other.st_uid, other.st_gid)
    path.chmod(other.st_mode & 0o777)


# ---- where to listen --------------------------------------------------------------------------------------


def check_listening(host: str, has_tokens: bool, has_tls: bool, insecure: bool) -> str | None:
    """Whether it is safe to listen at an address: None, or a sentence to warn with. Raises NotSafe.

    ``insecure``: whether the user has said that it need not be.
    """
    if is_loopback(host):
        return None
    where = f"at {host}" if host else "at every address"
    if not has_tokens:
        if not insecure:
            raise NotSafe(
                f"Listening {where} without tokens would let everybody in who can reach this machine. Make a token "
                "(nninteractive-ws token NAME --file FILE) and serve with --token-file FILE; or listen at 127.0.0.1 "
                "and let people come through SSH. With --insecure it is done all the same."
            )
        return f"Everybody who can reach this machine can use the server: it listens {where} and wants no token."
    if not has_tls:
        return (
            f"Tokens and images travel unencrypted to the server {where}: serve with --tls-cert and --tls-key, or put "
            "a proxy that speaks TLS in front of it."
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there. The empty one, 0.0.0.0 and :: are everywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


# ---- TLS --------------------------------------------------------------------------------------------------

# What OpenSSL says to a key that is not the certificate's: one of the same kind, or of another.
_OTHER_KEY = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """For a server that speaks TLS 1.2 or newer. ``cert``: its certificate and those between it and the
    authority's, in this order; both files are PEM. Raises BadCertificate."""
    for path in (cert, key):
        try:
            path.open("rb").close()
        except OSError as e:
            raise BadCertificate(f"{path} cannot be read: {e.strerror or e}.") from e

    def no_password() -> NoReturn:  # OpenSSL would ask on the terminal, and there may be none
        raise BadCertificate(
            f"The key in {key} is encrypted. Write one that is not: openssl pkey -in {key} -out plain-key.pem"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as e:
        if e.reason in _OTHER_KEY:
            raise BadCertificate(f"The key in {key} is not that of the certificate in {cert}.") from e
        raise BadCertificate(f"{cert} and {key} are not a certificate and its key, in PEM ({e.reason or e}).") from e
    return context
