"""The server's part of the Configuration tab: what is entered reaches the logic, and a server is tested."""

from contextlib import contextmanager, suppress
import socket
import ssl
import threading

from assembled import Module, Noted
from NNInteractiveWSLib.serverForm import userAgrees
import qt
import standins
import trustme


def lines(module):
    return module.ui.testResultLabel.text.splitlines()


def press(module, address):
    """Enter an address and press Test connection."""
    module.ui.serverComboBox.setEditText(address)
    module.ui.testConnectionButton.click()


# ---- Test connection --------------------------------------------------------------------------------------


def test_each_step_is_told_and_then_it_is_connected(tester, server, wait_until):
    """They are those of `nninteractive-ws doctor`, found by a program of its own while this one goes on."""
    button, seen = tester.ui.testConnectionButton, []
    press(tester, server.address)
    assert button.text == "Stop the test"
    assert tester.logic.session is None

    def ended():
        seen.append(tester.ui.testResultLabel.text)
        return button.text == "Test connection"

    wait_until(ended)
    said = [line.partition(": ") for line in lines(tester)]
    steps = ["Address", "Proxy", "Connection", "Encryption", "Server", "WebSocket", "Session", "Upload", "Download"]
    assert [sign for sign, _, _ in said] == [f"\u2713 {step}" for step in (*steps, "One prompt", "First mask")]
    assert any(words.endswith("upload") or "upload, part" in words for words in seen), "it tells as it goes on"
    assert tester.ui.testResultLabel.styleSheet == ""
    wait_until(lambda: tester.logic.server is not None)
    (session,) = [words for sign, _, words in said if sign.endswith("Session")]
    welcome = tester.logic.server
    for word in (welcome.server, welcome.model.name, welcome.model.license, welcome.device):
        assert word in session
    assert tester.ui.modelLabel.text.startswith(welcome.model.name)


def test_a_test_that_fails_says_why(tester, wait_until):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    press(tester, f"127.0.0.1:{port}")
    wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
    assert lines(tester)[-1].startswith("\u2717 Connection: ")
    assert "Nothing listens" in lines(tester)[-1]
    assert "color" in tester.ui.testResultLabel.styleSheet
    assert tester.logic.session is None, "there is nothing to connect to"


def test_a_test_is_stopped(tester):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        press(tester, f"127.0.0.1:{silent.getsockname()[1]}")
        assert lines(tester)[0].startswith("Looking at 127.0.0.1:")
        tester.panel.server.use()  # the focus has left the address
        assert lines(tester)
        tester.ui.testConnectionButton.click()
        assert (lines(tester), tester.ui.testConnectionButton.text) == ([], "Test connection")
        tester.ui.testConnectionButton.click()
        tester.use("gpu-box")
        assert (lines(tester), tester.ui.testConnectionButton.text) == ([], "Test connection")


def test_a_server_that_the_user_does_not_agree_to_is_not_tested(application):
    module = Module(Noted)
    module.ui.testConnectionButton.click()
    assert lines(module)[0].startswith("Nothing was sent")
    assert module.ui.testConnectionButton.text == "Test connection"
    module.close()


def test_a_test_that_cannot_be_made_says_so(tester, monkeypatch, tmp_path, wait_until):
    program = tmp_path / "PythonSlicer"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    tester.ui.testConnectionButton.click()
    wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
    assert "says nothing about the server: it is broken" in lines(tester)[-1]
    monkeypatch.setenv("PATH", "")
    tester.ui.testConnectionButton.click()
    assert "PythonSlicer" in lines(tester)[-1]


# ---- what is entered --------------------------------------------------------------------------------------


@contextmanager
def house(folder):
    """Something with a certificate that only its house knows: the address, and the certificate's file."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):  # until it is closed
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(connection, server_side=True) as talk:
                        talk.recv(1000)
                        talk.sendall(b"this is no HTTP")

        threading.Thread(target=serve, daemon=True).start()
        yield f"wss://127.0.0.1:{listener.getsockname()[1]}", str(folder / "server.pem")


def test_the_certificate_of_a_house(tester, tmp_path, wait_until):
    with house(tmp_path) as (address, certificate):
        for path, sign in (("", "\u2717"), (certificate, "\u2713")):
            tester.ui.certificatePathLineEdit.currentPath = path
            press(tester, address)
            wait_until(lambda: tester.ui.testConnectionButton.text == "Test connection")
            (said,) = [line for line in lines(tester) if "Encryption: " in line]
            assert said.startswith(sign), lines(tester)
        server = tester.logic._conversation.server
        assert server == {"address": address, "token": None, "ca": certificate}
        assert tester.logic.connect()
        wait_until(lambda: tester.logic.status.state != "connecting")
        assert "certificate" not in tester.logic.status.words, "it was trusted"
    tester.use("ws://gpu-box")
    assert tester.logic._conversation.server["ca"] is None, "there is none without encryption"
    again = Module(Noted)
    assert again.ui.certificatePathLineEdit.currentPath == certificate, "it is remembered"
    again.close()


def test_images_go_where_the_user_agreed(application):
    standins.ctkMessageBox.answers += [qt.QMessageBox.No, qt.QMessageBox.Yes]
    assert not userAgrees("ws://a")
    assert userAgrees("ws://a")
    assert userAgrees("ws://a"), "asked once for each server"
    assert len(standins.ctkMessageBox.asked) == 2
    assert "ws://a" in standins.ctkMessageBox.asked[0]
