"""A program that runs beside Slicer. Nothing here blocks."""

import qt


class ChildProcess:
    """A running program. Close its standard input to ask it to end.

    It calls ``onLine(line)`` for each line of its output, and ``onEnded(code, reason)`` when it ends. ``code``: its
    exit status, or None if it crashed or did not start. ``reason``: why it did not start, or an empty text.
    """

    def __init__(self, program, arguments, environment, onLine, onEnded):
        self._onLine, self._onEnded = onLine, onEnded
        self._unread = ""
        # Owned by the application, as the process may outlive this object for some seconds.
        self._process = qt.QProcess(qt.QApplication.instance())
        inherited = qt.QProcessEnvironment()
        for name, value in environment.items():
            inherited.insert(name, value)
        self._process.setProcessEnvironment(inherited)
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        for signal, slot in self._connections():
            self._process.connect(signal, slot)
        self._output = qt.QTextStream(self._process)  # the type of a QByteArray in Python depends on PythonQt's version
        self._process.start(program, arguments)

    def closeInput(self):
        self._process.closeWriteChannel()

    def end(self, timeoutMs):
        """Close its standard input, and kill it after a timeout. No callback is called afterward."""
        process = self._release()
        process.connect("finished(int,QProcess::ExitStatus)", process, "deleteLater()")
        timeout = qt.QTimer(process)
        timeout.setSingleShot(True)
        timeout.connect("timeout()", process, "kill()")
        timeout.start(timeoutMs)
        process.closeWriteChannel()

    def _connections(self):
        return (
            ("readyReadStandardOutput()", self._read),
            ("errorOccurred(QProcess::ProcessError)", self._onError),
            ("finished(int,QProcess::ExitStatus)", self._onFinished),
        )

    def _release(self):
        process = self._process
        for signal, slot in self._connections():
            process.disconnect(signal, slot)
        self._process = self._output = None
        return process

    def _read(self):
        text = self._unread + self._output.readAll().replace("\r", "\n")  # progress bars end with \r
        *lines, self._unread = text.split("\n")
        for line in lines:
            self._onLine(line)
            if self._process is None:  # the callback has ended the program
                return

    def _onError(self, error):
        if error == qt.QProcess.FailedToStart:  # otherwise the process ends, too
            process = self._release()
            process.deleteLater()
            self._onEnded(None, process.errorString())

    def _onFinished(self, code, status):
        self._read()
        if self._process is not None and self._unread:
            self._onLine(self._unread)
        if self._process is not None:
            self._release().deleteLater()
            self._onEnded(None if status == qt.QProcess.CrashExit else code, "")
