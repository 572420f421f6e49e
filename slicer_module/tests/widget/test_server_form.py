"""The server group of the Configuration tab: entries and connection test."""

from contextlib import contextmanager, suppress
import socket
import ssl
import threading

import fakes
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.serverForm import userConsents
from panel_harness import Module, RecordingLogic
import pytest
import qt
import slicer
import trustme


def lines(module):
    return module.ui.testResultLabel.text.splitlines()


def press(module, address):
    """Enter an address and press Test connection."""
    module.ui.serverComboBox.setEditText(address)
    module.ui.testConnectionButton.click()


# ---- Test connection --------------------------------------------------------------------------------------


def test_the_test_shows_each_step_and_then_connects(tester, server, wait_until):
    """The steps are those of `nninteractive-ws doctor`, run in a separate process while the panel stays responsive."""
    button, seen = tester.ui.testConnectionButton, []
    press(tester, server.address)
    assert button.text == "Stop the test"
    assert tester.logic.session is None

    def ended():
        seen.append(tester.ui.testResultLabel.text)
        return button.text == "Test connection"

    wait_until(ended)
    results = [line.partition(": ") for line in lines(tester)]
    steps = ["Address", "Proxy", "Connection", "Encryption", "Server", "WebSocket", "Session", "HTTP API", "Upload"]
    assert [sign for sign, _, _ in results] == [
        f"\u2713 {step}" for step in (*steps, "Download", "One prompt", "First mask")
    ]
    assert any(message.endswith("upload") or "upload, part" in message for message in seen), "no progress was shown"
    assert tester.ui.testResultLabel.styleSheet == ""
    wait_until(lambda: tester.logic.server is not None)
    (session,) = [message for sign, _, message in results if sign.endswith("Session")]
    welcome = tester.logic.server
    for word in (welcome.server_version, welcome.model.name, welcome.model.license, welcome.device):
        assert word in session
    assert tester.ui.modelLabel.text.startswith(welcome.model.name)


def test_a_failed_test_shows_the_reason(tester, wait_until):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    press(tester, f"127.0.0.1:{port}")
    wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
    assert lines(tester)[-1].startswith("\u2717 Connection: ")
    assert "Nothing listens" in lines(tester)[-1]
    assert "color" in tester.ui.testResultLabel.styleSheet
    assert tester.logic.session is None, "it connected in spite of the failure"


def test_ssh_runs_without_slicers_library_paths(tester, monkeypatch, tmp_path, wait_until):
    """Slicer's OpenSSL in LD_LIBRARY_PATH would break ssh, but the test program needs these paths."""
    program, seen = tmp_path / "ssh", tmp_path / "seen"
    program.write_text(f"#!/bin/sh\n/usr/bin/env > {seen}\necho it is broken >&2\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/Slicer")
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: {"PATH": str(tmp_path), "MINE": 'of "stärtup"'})
    press(tester, "ssh://gpu-box")
    wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
    assert lines(tester)[-1].startswith("\u2717 ssh: ")
    variables = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert variables["MINE"] == 'of "stärtup"'
    assert "LD_LIBRARY_PATH" not in variables
    assert not [name for name in variables if name.startswith("NNINTERACTIVE_WS_")]


def test_stopping_a_test(tester):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        press(tester, f"127.0.0.1:{silent.getsockname()[1]}")
        assert lines(tester)[0].startswith("Testing 127.0.0.1:")
        tester.panel.server.use()  # as if the address field lost the focus
        assert lines(tester)
        tester.ui.testConnectionButton.click()
        assert (lines(tester), tester.ui.testConnectionButton.text) == ([], "Test connection")
        tester.ui.testConnectionButton.click()
        tester.use("gpu-box")
        assert (lines(tester), tester.ui.testConnectionButton.text) == ([], "Test connection")


def test_a_server_without_consent_is_not_tested(application):
    module = Module(RecordingLogic)
    module.ui.testConnectionButton.click()
    assert lines(module)[0].startswith("Nothing was sent")
    assert module.ui.testConnectionButton.text == "Test connection"
    module.close()


def test_a_failure_of_the_test_program_is_shown(tester, monkeypatch, tmp_path, wait_until):
    program = tmp_path / "PythonSlicer"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    tester.ui.testConnectionButton.click()
    wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
    assert "the state of the server is unknown. Its error: it is broken" in lines(tester)[-1]
    monkeypatch.setenv("PATH", "")
    tester.ui.testConnectionButton.click()
    assert "PythonSlicer" in lines(tester)[-1]


# ---- entries ----------------------------------------------------------------------------------------------


@contextmanager
def tls_server(folder):
    """Run a TLS server with a certificate of a private authority. Yield its address and the certificate's file."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):  # raised when the listener is closed
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(connection, server_side=True) as talk:
                        talk.recv(1000)
                        talk.sendall(b"this is no HTTP")

        threading.Thread(target=serve, daemon=True).start()
        yield f"wss://127.0.0.1:{listener.getsockname()[1]}", str(folder / "server.pem")


def test_the_certificate_of_a_private_authority(tester, tmp_path, wait_until):
    with tls_server(tmp_path) as (address, certificate):
        for path, sign in (("", "\u2717"), (certificate, "\u2713")):
            tester.ui.certificatePathLineEdit.currentPath = path
            press(tester, address)
            wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
            (result,) = [line for line in lines(tester) if "Encryption: " in line]
            assert result.startswith(sign), lines(tester)
        server = tester.logic._controller.server
        assert server == {"address": address, "token": None, "ca": certificate}
        assert tester.logic.connect()
        wait_until(lambda: tester.logic.status.state != "connecting")
        assert "certificate" not in tester.logic.status.message, "the certificate was not trusted"
    tester.use("ws://gpu-box")
    assert tester.logic._controller.server["ca"] is None, "a certificate is used without encryption"
    again = Module(RecordingLogic)
    assert again.ui.certificatePathLineEdit.currentPath == certificate, "the certificate was not stored"
    again.close()


def test_consent_is_stored_for_each_server(application):
    fakes.ctkMessageBox.answers += [qt.QMessageBox.No, qt.QMessageBox.Yes]
    assert not userConsents("ws://a")
    assert userConsents("ws://a")
    assert userConsents("ws://a"), "asked once for each server"
    assert len(fakes.ctkMessageBox.asked) == 2
    assert "ws://a" in fakes.ctkMessageBox.asked[0]


@pytest.fixture
def asking(application):
    """The panel with the real question for consent."""
    module = Module(Logic, consents=userConsents)
    yield module
    module.close()


@pytest.mark.parametrize("others", [[], ["ws://other"], ["ws://one", "ws://two"]])
def test_withdrawing_consent_ends_the_session(asking, server, wait_until, others):
    qt.QSettings().setValue("NNInteractiveWS/agreedServers", [*others, server.address])
    asking.ui.serverComboBox.setEditText(server.address)
    asking.panel.server.use()
    assert asking.logic.connect()
    wait_until(lambda: asking.logic.server is not None)
    asking.ui.withdrawButton.click()
    assert asking.logic.session is None
    assert asking.logic.status.message == ""
    assert f"to {server.address} is withdrawn" in lines(asking)[0]
    fakes.ctkMessageBox.answers += [qt.QMessageBox.No] * 2
    assert not asking.logic.connect()
    assert len(fakes.ctkMessageBox.asked) == 1
    for other in others:
        assert userConsents(other)
    asking.ui.withdrawButton.click()
    assert "nothing to withdraw" in lines(asking)[0]
