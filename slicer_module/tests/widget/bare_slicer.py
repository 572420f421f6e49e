"""A Slicer without the packages that the module needs, run in a separate process.

``python -S bare_slicer.py FOLDER SITE_PACKAGES CHECKOUT CASE``: without ``site``, Python has only its standard library.
Links in FOLDER add the contents of SITE_PACKAGES except for those packages. The fake pip "installs" them by adding
SITE_PACKAGES and CHECKOUT to sys.path. The exit status is 0 if the case passes.
"""

from pathlib import Path
from subprocess import CalledProcessError
import sys

_MISSING = ("_editable_impl_nninteractive", "blosc2", "msgpack", "msgspec", "nninteractive_ws", "websockets")


def _linkOthers(folder, sitePackages):
    folder.mkdir()
    for path in sitePackages.iterdir():
        if not path.name.startswith(_MISSING) and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)


class Bare:
    """The application with the open module. ``wrong``: exceptions that Qt would only print."""

    def __init__(self, folder, sitePackages, checkout, testing=False):
        import slicer_application

        slicer_application.install()
        import slicer

        self.slicer, self.pip = slicer, slicer.packaging.pip
        self.wrong = []
        sys.excepthook = self._onException
        self._paths = [str(sitePackages), str(checkout)]
        self.pip.run = lambda requirements: self.makeAvailable()
        self.application = slicer_application.Application(folder / "settings", testing)
        self.application.start()
        import NNInteractiveWS

        self.widget = self.application.createModule(NNInteractiveWS)
        slicer.util.selectModule("NNInteractiveWS")

    def _onException(self, kind, error, trace):
        self.wrong.append(error)
        sys.__excepthook__(kind, error, trace)

    def makeAvailable(self):
        sys.path.extend(self._paths)

    def page(self):
        """The page's widgets: reason, button and note. The list is empty if the panel is shown."""
        find = self.slicer.util.findChildren
        names = ("installReason", "installButton", "installNote")
        return [widget for name in names for widget in find(self.widget.parent, name=name)]

    def pressInstall(self, *answers):
        import fakes

        fakes.ctkMessageBox.answers += answers
        self.page()[1].click()
        assert not fakes.ctkMessageBox.answers, "the user was not asked"
        return fakes.ctkMessageBox.asked

    def checkPanel(self):
        """Check that the module works."""
        assert self.page() == []
        self.slicer.app.processEvents()
        assert self.widget.ui.pointButton.visible
        self.slicer.selfTests["NNInteractiveWS"]()

    def end(self):
        self.application.quit()
        assert not self.wrong, self.wrong


def decline_and_agree(bare):
    import qt

    reason, button, note = bare.page()
    assert "nninteractive-ws>=" in reason.text
    assert (button.text, note.text) == ("Install...", "")
    bare.slicer.selfTests["NNInteractiveWS"]()  # skips its tests without the packages
    bare.pressInstall(qt.QMessageBox.Cancel)
    assert bare.pip.installed == []
    assert "Nothing was installed" in bare.page()[2].text
    bare.slicer.util.selectModule("")
    bare.slicer.util.selectModule("NNInteractiveWS")
    assert bare.widget.ui is None
    bare.pip.run = _failingPip
    bare.pressInstall(qt.QMessageBox.Ok)
    assert "pip could not install nninteractive-ws" in bare.page()[2].text
    bare.pip.run = lambda requirements: bare.makeAvailable()
    bare.pressInstall(qt.QMessageBox.Ok)
    assert bare.pip.requesters == ["nnInteractive WS"] * 2
    assert len(bare.pip.installed) == 2
    bare.checkPanel()


def _failingPip(requirements):
    raise CalledProcessError(1, "pip")


def agree_in_slicer_5_10(bare):
    import qt

    sys.modules["slicer.packaging"] = None  # Slicer 5.10 has no such module
    bare.slicer.util.pip_install = bare.pip.pip_install
    bare.pressInstall(qt.QMessageBox.Cancel)
    assert bare.pip.installed == []
    assert "Nothing was installed" in bare.page()[2].text
    asked = bare.pressInstall(qt.QMessageBox.Ok)
    assert "nninteractive-ws>=" in asked[-1]
    assert len(bare.pip.installed) == 1
    bare.checkPanel()


def install_by_hand(bare):
    bare.makeAvailable()
    assert len(bare.page()) == 3
    bare.slicer.util.selectModule("")
    bare.slicer.util.selectModule("NNInteractiveWS")
    bare.checkPanel()


def install_nothing_while_testing(bare):
    bare.pressInstall()
    sys.modules["slicer.packaging"] = None
    bare.slicer.util.pip_install = bare.pip.pip_install
    bare.pressInstall()
    assert bare.pip.installed == []
    assert bare.page()[2].text == "Nothing was installed."


def ask_for_the_phantom(bare):
    import fakes
    from NNInteractiveWSLib.sampleData import addPhantom
    import qt

    fakes.ctkMessageBox.answers += [qt.QMessageBox.Cancel, qt.QMessageBox.Ok]
    assert addPhantom() is None
    assert "Nothing was installed" in fakes.ctkMessageBox.asked[-1]
    fakes.ctkMessageBox.answers += [qt.QMessageBox.Ok]
    assert addPhantom().GetImageData().GetScalarRange()[1] > 0


CASES = {
    case.__name__: case
    for case in (
        decline_and_agree,
        agree_in_slicer_5_10,
        install_by_hand,
        install_nothing_while_testing,
        ask_for_the_phantom,
    )
}


def main():
    folder, sitePackages, checkout = map(Path, sys.argv[1:4])
    case = sys.argv[4]
    _linkOthers(folder / "packages", sitePackages)
    sys.path.append(str(folder / "packages"))
    sys.path.append(str(checkout / "slicer_module" / "NNInteractiveWS"))
    import pythonqt

    pythonqt.load()
    bare = Bare(folder, sitePackages, checkout, testing="testing" in case)
    CASES[case](bare)
    bare.end()


if __name__ == "__main__":
    main()
