"""The web page of a remote server in Chromium, reached in the ways of docs/guides/web-page.md."""

from pathlib import Path
import subprocess
from typing import Any

from helpers.browser import OTHER_HOST, UNAUTHORIZED, PageUser, page_user
from helpers.documents import blocks
from helpers.end_to_end import ServerProcess, listens, wait_until
from helpers.http import free_port
from helpers.nginx import nginx_server
from helpers.sshd import sshd_in_path
import nibabel as nib
import numpy as np
import pytest
import trustme

from nninteractive_ws import connect
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.access import add_user

pytestmark = pytest.mark.slow

#: A voxel of the example's liver.
POINT = (40, 50, 56)
#: Small, because Chromium renders on the CPU.
SCREEN = {"width": 1024, "height": 600}


@pytest.fixture(scope="module")
def expected(server: str, example: Path) -> Mask:
    """The mask of the Python client for the point."""
    with connect(server) as session:
        session.set_image(np.asarray(nib.nifti1.load(example).dataobj))
        segment = session.segment("liver")
        segment.add_point(POINT)
        return np.array(segment.mask)


def segment_example(user: PageUser, folder: Path) -> Mask:
    """Open the example, click on the point, save, and return the voxels of the file."""
    user.wait_for_status("Connected.")
    user.page.get_by_role("button", name="Open example").first.click()
    if OTHER_HOST in user.page.url:
        user.expect(user.page.locator("#consent-host")).to_have_text(user.page.evaluate("() => location.host"))
        user.click("Agree")
    user.wait_for_status("The image is on the server.")
    user.prompt(POINT)
    return np.asarray(nib.nifti1.load(user.save("Save as .nii.gz label map", folder)).dataobj) != 0


def enter_token(user: PageUser, token: str) -> None:
    user.expect(user.page.locator("#token-reason")).to_contain_text("This server needs a token")
    user.page.get_by_label("Token from the administrator").fill(token)
    user.press("Enter")


def port_of(server: ServerProcess) -> int:
    return int(server.address.rpartition(":")[2])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key."""
    path = tmp_path_factory.mktemp("certificate") / "pem"
    trustme.CA().issue_cert(OTHER_HOST).private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.mark.sshd
def test_through_an_ssh_tunnel(browser: Any, server: str, expected: Mask, tmp_path: Path) -> None:
    port, target = free_port(), server.removeprefix("ws://")
    with sshd_in_path(tmp_path), subprocess.Popen(["ssh", "-N", "-L", f"{port}:{target}", "gpu-box"]) as tunnel:
        try:
            wait_until(lambda: listens(port), 20)
            with page_user(browser, viewport=SCREEN) as user:
                user.open(f"http://127.0.0.1:{port}")
                mask = segment_example(user, tmp_path)
        finally:
            tunnel.terminate()
    np.testing.assert_array_equal(mask, expected)


def test_with_tls_and_tokens(browser: Any, start: Any, certificate: Path, expected: Mask, tmp_path: Path) -> None:
    token = add_user(tmp_path / "tokens", "alice")
    tls = ("--tls-cert", str(certificate), "--tls-key", str(certificate))
    options = ("--token-file", str(tmp_path / "tokens"), *tls, "--log-level", "debug")
    server = start(*options, log=tmp_path / "log")
    with page_user(browser, viewport=SCREEN, ignore_https_errors=True) as user:
        user.expected_problems = UNAUTHORIZED
        user.open(f"https://{OTHER_HOST}:{port_of(server)}")
        enter_token(user, token)
        mask = segment_example(user, tmp_path)
    np.testing.assert_array_equal(mask, expected)
    log = (tmp_path / "log").read_text()
    assert "user=alice" in log
    assert token not in log


@pytest.mark.nginx
def test_behind_nginx(browser: Any, start: Any, certificate: Path, expected: Mask, tmp_path: Path) -> None:
    token = add_user(tmp_path / "tokens", "alice")
    server = start("--token-file", str(tmp_path / "tokens"), "--log-level", "debug", log=tmp_path / "server")
    (block,) = [block for block in blocks("nginx") if block.document == "docs/guides/web-page.md"]
    locations = block.text.replace("127.0.0.1:1528", f"127.0.0.1:{port_of(server)}")
    with (
        nginx_server(tmp_path, locations, certificate) as port,
        page_user(browser, viewport=SCREEN, ignore_https_errors=True) as user,
    ):
        user.expected_problems = UNAUTHORIZED
        user.open(f"https://{OTHER_HOST}:{port}/segment")
        enter_token(user, token)
        mask = segment_example(user, tmp_path)
        assert user.page.url == f"https://{OTHER_HOST}:{port}/segment/"
    np.testing.assert_array_equal(mask, expected)
    logs = {name: (tmp_path / name).read_text() for name in ("server", "access", "log")}
    assert "user=alice" in logs["server"]
    assert "GET /segment/" in logs["access"]
    assert not [name for name, text in logs.items() if token in text]
