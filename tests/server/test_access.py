"""Access control with real files, addresses, certificates and connections."""

import errno
import hashlib
import logging
import os
from pathlib import Path
import re
import socket
import ssl
import stat
import subprocess
import sys
import threading

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from helpers.threads import run_in_thread
import pytest
import trustme
from websockets.datastructures import Headers

from nninteractive_ws.ip_addresses import is_loopback
from nninteractive_ws.redaction import TOKEN_PREFIX
from nninteractive_ws.server import file_lock
from nninteractive_ws.server.access import (
    AccessError,
    BadTokenFile,
    InsecureBind,
    InvalidUserName,
    TokenFile,
    add_user,
    bearer_token,
    check_bind_address,
    client_token,
    has_client_token,
    insecure_permissions,
    new_token,
    offers_subprotocol,
    remove_user,
    users,
)
from nninteractive_ws.server.tls import BadCertificate, tls_context

posix = pytest.mark.skipif(os.name != "posix", reason="modes and owners of files")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def line(name: str, token: str) -> str:
    return f"{name} {hashlib.sha256(token.encode()).hexdigest()}\n"


# ---- adding and removing ----------------------------------------------------------------------------------


def test_a_token_identifies_its_user(path: Path) -> None:
    alice, bob = add_user(path, "alice"), add_user(path, "bob")
    known = TokenFile(path)
    assert known.user_of(alice) == "alice"
    assert known.user_of(bob) == "bob"
    for wrong in ("", "alice", alice[:-1], alice + "x", alice.upper(), hashlib.sha256(alice.encode()).hexdigest()):
        assert known.user_of(wrong) is None


def test_an_empty_token_identifies_no_user(path: Path) -> None:
    """Also if the line is handwritten, and if the environment variable is empty."""
    path.write_text(line("alice", ""))
    assert TokenFile(path).user_of("") is None


def test_tokens_are_random_and_not_in_the_file(path: Path) -> None:
    tokens = [add_user(path, f"user{n}") for n in range(5)]
    assert len(set(tokens)) == 5
    for token in tokens:
        assert token.startswith(TOKEN_PREFIX)
        assert len(token) == len(TOKEN_PREFIX) + 43  # 256 bits in base64
        assert token[len(TOKEN_PREFIX) :] not in path.read_text()
    assert users(path) == [f"user{n}" for n in range(5)]


def test_removing_a_user_keeps_the_other_lines(path: Path) -> None:
    before = f"# of the ward\n\n{line('alice', 'a')}{line('al', 'b')}  {line('bob', 'c').strip()} # laptop"
    path.write_text(before)
    remove_user(path, "alice")
    assert path.read_text() == before.replace(line("alice", "a"), "")
    token = add_user(path, "carla")  # after a line without a line end
    assert users(path) == ["al", "bob", "carla"]
    assert TokenFile(path).user_of(token) == "carla"
    with pytest.raises(InvalidUserName, match="There is no user alice"):
        remove_user(path, "alice")


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "a\n", "a\u2028b", "a\u00a0b", "a#b", "#", "a\x1bb", "a" * 65])
def test_invalid_user_names_are_refused(path: Path, name: str) -> None:
    with pytest.raises(InvalidUserName, match="cannot be a user name"):
        add_user(path, name)
    assert not path.exists()


def test_a_duplicate_user_name_is_refused(path: Path) -> None:
    token = add_user(path, "Zoë")
    with pytest.raises(InvalidUserName, match="already"):
        add_user(path, "Zoë")
    assert TokenFile(path).user_of(token) == "Zoë"


def test_an_invalid_token_file_is_not_modified(path: Path) -> None:
    path.write_text("nonsense\n")
    with pytest.raises(BadTokenFile):
        add_user(path, "alice")
    with pytest.raises(BadTokenFile):
        remove_user(path, "nonsense")
    assert path.read_text() == "nonsense\n"


@posix
def test_the_token_file_is_private_unless_the_owner_changes_its_mode(path: Path) -> None:
    umask = os.umask(0)
    try:
        add_user(path, "alice")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    add_user(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_token_file_keeps_its_owner(path: Path) -> None:
    add_user(path, "alice")
    os.chown(path, 1234, 2345)
    remove_user(path, "alice")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_writing_follows_a_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "real")
    add_user(path, "alice")
    assert path.is_symlink()
    assert users(tmp_path / "real") == ["alice"]


def test_writing_is_atomic_for_readers(path: Path) -> None:
    """The file is rewritten repeatedly. Every read returns a complete file."""
    token = add_user(path, "alice")
    over = threading.Event()

    def write() -> None:
        for n in range(100):
            add_user(path, f"user{n}")
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        assert users(path)[0] == "alice"
        assert TokenFile(path).user_of(token) == "alice"
        seen.add(len(users(path)))
    writer.join()
    assert len(seen) > 1
    assert [p.name for p in path.parent.iterdir()] == ["tokens"]


# ---- changes of the file ----------------------------------------------------------------------------------


def test_a_change_takes_effect_immediately(path: Path) -> None:
    alice = add_user(path, "alice")
    known = TokenFile(path)
    bob = add_user(path, "bob")
    assert known.user_of(bob) == "bob"
    remove_user(path, "alice")
    assert known.user_of(alice) is None
    assert known.user_of(bob) == "bob"


def test_a_change_in_place_takes_effect_immediately(path: Path) -> None:
    """As by an editor that writes into the file: the inode stays the same, here also the size and the time."""
    path.write_text(line("alice", "old"))
    known = TokenFile(path)
    before = path.stat()
    with path.open("r+") as file:
        file.write(line("alice", "new"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert known.user_of("old") is None
    assert known.user_of("new") == "alice"


def test_an_empty_token_file_accepts_no_token(path: Path) -> None:
    token = add_user(path, "alice")
    known = TokenFile(path)
    path.write_text("")
    assert known.user_of(token) is None
    assert known.user_of("") is None


@pytest.mark.parametrize("trouble", ["gone", "wrong", "a folder"])
def test_an_invalid_change_keeps_the_old_tokens_and_is_logged_once(
    path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    alice = add_user(path, "alice")
    good = path.read_text()
    known = TokenFile(path)
    if trouble == "wrong":
        path.write_text("alice secret-by-mistake\n")
    else:
        path.unlink()
        if trouble == "a folder":
            path.mkdir()
    for _ in range(3):
        assert known.user_of(alice) == "alice"
        assert known.user_of("x") is None
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert str(path) in record.getMessage()
    assert "secret-by-mistake" not in record.getMessage()
    if trouble == "a folder":
        path.rmdir()
    path.write_text(good + line("bob", "b"))
    assert known.user_of("b") == "bob"


def test_a_change_takes_effect_although_the_file_could_not_be_read_at_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while the process has too many open files."""
    alice, bob = add_user(path, "alice"), add_user(path, "bob")
    known = TokenFile(path)
    remove_user(path, "bob")
    with monkeypatch.context() as patch:

        def read_text(*_: object) -> str:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(Path, "read_text", read_text)
        assert known.user_of(alice) == "alice"
    assert known.user_of(bob) is None
    assert known.user_of(alice) == "alice"


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_reloaded_once_it_is_readable(path: Path) -> None:
    alice = add_user(path, "alice")
    known = TokenFile(path)
    path.write_text(line("bob", "b"))
    path.chmod(0)
    assert known.user_of(alice) == "alice"
    path.chmod(0o600)
    assert known.user_of(alice) is None
    assert known.user_of("b") == "bob"


@pytest.mark.parametrize(
    "content",
    [
        "alice\n",
        "alice 12ab\n",
        f"alice {'g' * 64}\n",
        f"alice {'a' * 65}\n",
        f"alice {'a' * 64} more\n",
        f"{line('alice', 'a')}{line('alice', 'b')}",
        f"{line('alice', 'a')}{line('bob', 'a')}",
        b"\xff\xfe",
        None,
    ],
)
def test_an_invalid_file_is_refused_at_startup(path: Path, content: str | bytes | None) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(BadTokenFile, match="tokens"):
        TokenFile(path)


def test_files_edited_by_other_programs_are_read(path: Path) -> None:
    """Line ends and byte order mark of Windows, and digests in capitals."""
    digest = hashlib.sha256(b"a").hexdigest().upper()
    path.write_bytes(b"\xef\xbb\xbf# tokens\r\nalice\t" + digest.encode() + b"\r\n")
    assert TokenFile(path).user_of("a") == "alice"


# ---- concurrent changes -----------------------------------------------------------------------------------

ADD = "import sys; from pathlib import Path; from nninteractive_ws.server.access import add_user; "
REMOVE = ADD.replace("add_user", "remove_user")


def start(code: str) -> "subprocess.Popen[str]":
    """Start a process that has done its imports, and runs its code after a line on standard input."""
    before, after = code.rsplit("; ", 1)
    waiting = f"{before}; print(flush=True); sys.stdin.readline(); {after}"
    process = subprocess.Popen(
        [sys.executable, "-c", waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_concurrent_changes_are_all_kept(path: Path) -> None:
    """In separate processes, like commands. A removed user stays removed, and added ones stay."""
    rounds = 25
    for n in range(rounds):
        add_user(path, f"old{n}")
    remove = f"[remove_user(Path({str(path)!r}), f'old{{n}}') for n in range({rounds})]"
    adds = [f"[add_user(Path({str(path)!r}), f'new{who}-{{n}}') for n in range({rounds})]" for who in range(3)]
    processes = [start(REMOVE + remove), *(start(ADD + add) for add in adds)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(users(path)) == sorted(f"new{who}-{n}" for who in range(3) for n in range(rounds))
    assert [p.name for p in path.parent.iterdir()] == ["tokens"]


def test_a_command_reports_a_lock_timeout(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_user(path, "alice")
    monkeypatch.setattr(file_lock, "LOCK_TIMEOUT_S", 0.2)
    with file_lock.file_lock(path), pytest.raises(AccessError, match="Another process holds the lock"):
        remove_user(path, "alice")
    remove_user(path, "alice")
    assert users(path) == []


@posix
def test_a_terminated_process_releases_the_lock(path: Path) -> None:
    add_user(path, "alice")
    code = (
        f"import os, sys; from pathlib import Path; from nninteractive_ws.server.file_lock import file_lock\n"
        f"with file_lock(Path({str(path)!r})): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert (path.parent / ".tokens.lock").exists()
    remove_user(path, "alice")
    assert [p.name for p in path.parent.iterdir()] == ["tokens"]


# ---- write permissions ------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o664])
def test_a_writable_token_file_causes_a_warning(path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    alice = add_user(path, "alice")
    known = TokenFile(path)
    assert insecure_permissions(path) is None
    path.chmod(mode)
    warning = insecure_permissions(path)
    assert warning is not None
    assert f"chmod go-w {path}" in warning
    assert caplog.records == []
    assert known.user_of(alice) == "alice"  # the change is detected
    assert warning in [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    path.chmod(0o644)
    assert insecure_permissions(path) is None


@posix
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(("mode", "warned"), [(0o777, True), (0o757, True), (0o1777, False), (0o755, False)])
def test_a_writable_folder_causes_a_warning(
    tmp_path: Path, depth: int, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A user with write permission for a folder can replace its contents: the file, or a folder above it."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "tokens"
    add_user(path, "alice")
    wide = folder if depth == 0 else folder.parent
    wide.chmod(mode)
    TokenFile(path)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == warned
    assert not warned or f"chmod go-w {wide}" in warnings[0]


@posix
def test_the_folder_of_a_link_is_checked(tmp_path: Path) -> None:
    real, wide = tmp_path / "real", tmp_path / "wide"
    real.mkdir()
    wide.mkdir()
    add_user(real / "tokens", "alice")
    (wide / "tokens").symlink_to(real / "tokens")
    assert insecure_permissions(wide / "tokens") is None
    wide.chmod(0o777)
    assert insecure_permissions(real / "tokens") is None
    assert str(wide) in str(insecure_permissions(wide / "tokens"))


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_a_shared_group_causes_a_warning(tmp_path: Path) -> None:
    add_user(tmp_path / "tokens", "alice")
    tmp_path.chmod(0o770)
    assert insecure_permissions(tmp_path / "tokens") is None, "root's own group"
    os.chown(tmp_path, 0, 12345)
    assert str(tmp_path) in str(insecure_permissions(tmp_path / "tokens"))


# ---- the header -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "token"),
    [
        (["Bearer abc"], "abc"),
        (["bearer abc"], "abc"),
        (["Bearer  abc"], " abc"),
        (["Bearer"], ""),
        (["Basic abc"], ""),
        (["abc"], ""),
        (["Bearer caf\u00e9"], ""),
        (["Bearer abc", "Bearer def"], ""),
        ([], ""),
    ],
)
def test_the_token_of_a_request(values: list[str], token: str) -> None:
    headers = Headers()
    for value in values:
        headers["Authorization"] = value
    assert bearer_token(headers) == token


@pytest.mark.parametrize(
    ("authorization", "offered", "token"),
    [
        ([], [], ""),
        (["Bearer a"], [], "a"),
        ([], ["nninteractive.v1, nninteractive.v1.bearer.a"], "a"),
        ([], ["nninteractive.v1", "nninteractive.v1.bearer.a"], "a"),  # two headers
        ([], ["nninteractive.v1.bearer.a,nninteractive.v1"], "a"),
        (["Bearer a"], ["nninteractive.v1.bearer.a"], "a"),
        (["Basic b"], ["nninteractive.v1.bearer.a"], "a"),  # a proxy's own login
        (["Bearer a"], ["nninteractive.v1.bearer.b"], ""),
        (["Bearer a", "Bearer a"], ["nninteractive.v1.bearer.a"], ""),
        ([], ["nninteractive.v1.bearer.a, nninteractive.v1.bearer.b"], ""),
        ([], ["nninteractive.v1.bearer."], ""),
        ([], ["nninteractive.v2.bearer.a, bearer.a, NNINTERACTIVE.V1.BEARER.A"], ""),
    ],
)
def test_the_token_of_a_client(authorization: list[str], offered: list[str], token: str) -> None:
    headers = Headers()
    for value in authorization:
        headers["Authorization"] = value
    for value in offered:
        headers["Sec-WebSocket-Protocol"] = value
    assert client_token(headers) == token
    assert has_client_token(headers) == bool(authorization or "nninteractive.v1.bearer." in "".join(offered))
    assert offers_subprotocol(headers) == any("nninteractive.v1" in re.split(", ?", value) for value in offered)


# ---- bind addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback_requires_no_tokens(host: str) -> None:
    assert is_loopback(host)
    for has_tokens in (False, True):
        assert check_bind_address(host, has_tokens, has_tls=False, insecure=False) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "2001:db8::1", "gpu-box", "localhost.example"])
def test_other_addresses_require_tokens(host: str) -> None:
    assert not is_loopback(host)
    for has_tls in (False, True):
        with pytest.raises(InsecureBind, match="--token-file"):
            check_bind_address(host, has_tokens=False, has_tls=has_tls, insecure=False)
        warning = check_bind_address(host, has_tokens=False, has_tls=has_tls, insecure=True)
        assert warning is not None
        assert "without tokens" in warning
    for insecure in (False, True):
        assert check_bind_address(host, has_tokens=True, has_tls=True, insecure=insecure) is None
        warning = check_bind_address(host, has_tokens=True, has_tls=False, insecure=insecure)
        assert warning is not None
        assert "--tls-cert" in warning


# ---- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write_pair(folder: Path, authority: trustme.CA, name: str = "own") -> tuple[Path, Path]:
    made = authority.issue_cert("localhost")
    cert, key = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(key))
    return cert, key


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """Return the negotiated TLS version, over a real socket."""
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as wrapped:
                wrapped.sendall(b"x")
        except ssl.SSLError:
            left.close()  # the client reports the error

    with run_in_thread(serve, right.close), client.wrap_socket(right, server_hostname="localhost") as wrapped:
        wrapped.recv(1)
        return wrapped.version()


def test_a_valid_certificate_is_accepted(tmp_path: Path, authority: trustme.CA) -> None:
    client = ssl.create_default_context()
    authority.configure_trust(client)
    context = tls_context(*write_pair(tmp_path, authority))
    assert handshake(context, client) == "TLSv1.3"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(context, client) == "TLSv1.2"


def test_old_tls_versions_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    context = tls_context(*write_pair(tmp_path, authority))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_invalid_certificates_are_refused(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key = write_pair(tmp_path, authority)
    _, other = write_pair(tmp_path, authority, "other")
    with pytest.raises(BadCertificate, match=r"other-key.pem does not match the certificate"):
        tls_context(cert, other)
    with pytest.raises(BadCertificate, match=r"nothing.pem cannot be read: No such file"):
        tls_context(tmp_path / "nothing.pem", key)
    with pytest.raises(BadCertificate, match=r"nothing.pem cannot be read: No such file"):
        tls_context(cert, tmp_path / "nothing.pem")
    with pytest.raises(BadCertificate, match="cannot be read: Is a directory"):
        tls_context(tmp_path, key)
    with pytest.raises(BadCertificate, match="not a certificate and its key"):
        tls_context(key, cert)
    (tmp_path / "empty.pem").touch()
    with pytest.raises(BadCertificate, match="not a certificate and its key"):
        tls_context(tmp_path / "empty.pem", key)


def test_an_unsupported_key_type_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    cert, _ = write_pair(tmp_path, authority)
    rsa = tmp_path / "rsa.pem"
    authority.issue_cert("localhost", key_type=trustme.KeyType.RSA).private_key_pem.write_to_path(str(rsa))
    with pytest.raises(BadCertificate, match=r"rsa.pem does not match the certificate"):
        tls_context(cert, rsa)


def test_an_encrypted_key_is_refused_without_a_prompt(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key = write_pair(tmp_path, authority)
    plain = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    with pytest.raises(BadCertificate, match=r"own-key.pem is encrypted.*openssl pkey"):
        tls_context(cert, key)


def test_new_tokens_differ() -> None:
    assert len({new_token() for _ in range(100)}) == 100
