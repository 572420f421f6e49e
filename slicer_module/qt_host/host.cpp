// Python extension with a QApplication and with Qt through PythonQt, as in Slicer's interpreter.
// Importing it creates the modules PythonQt.QtCore, PythonQt.QtGui and PythonQt.QtUiTools.
//
// take_messages() -> list of str: Qt's warnings since the last call ("QObject::connect: No such signal ...").
// Slicer only logs them. The tests check them.
//
// The global interpreter lock is held while Qt runs, as in Slicer.

#include <PythonQt.h>

#include <QApplication>
#include <QMutex>
#include <QStringList>

void PythonQt_init_QtCore(PyObject*);
void PythonQt_init_QtGui(PyObject*);
void PythonQt_init_QtUiTools(PyObject*);

namespace
{

QMutex messagesMutex; // Qt may warn from any thread
QStringList messages;

void keepMessage(QtMsgType type, const QMessageLogContext&, const QString& message)
{
  if (type == QtFatalMsg) {
    qInstallMessageHandler(nullptr); // Qt aborts after this and must print the reason
    qFatal("%s", qPrintable(message));
  }
  if (type != QtDebugMsg && type != QtInfoMsg) {
    const QMutexLocker locker(&messagesMutex);
    messages.append(message);
  }
}

PyObject* takeMessages(PyObject*, PyObject*)
{
  QStringList taken;
  {
    const QMutexLocker locker(&messagesMutex);
    taken.swap(messages);
  }
  PyObject* list = PyList_New(0);
  for (const QString& message : taken) {
    PyObject* text = list ? PyUnicode_FromString(message.toUtf8().constData()) : nullptr;
    if (!text || PyList_Append(list, text) < 0) {
      Py_XDECREF(text);
      Py_XDECREF(list);
      return nullptr;
    }
    Py_DECREF(text);
  }
  return list;
}

PyMethodDef methods[] = {
  {"take_messages", takeMessages, METH_NOARGS, "Qt's warnings since the last call."},
  {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
  PyModuleDef_HEAD_INIT, "_pythonqt_host", "A QApplication, and Qt through PythonQt.", -1, methods};

// QApplication keeps references to these, and lives as long as the process.
int argumentCount = 1;
char program[] = "pythonqt_host";
char* arguments[] = {program, nullptr};

} // namespace

extern "C" Q_DECL_EXPORT PyObject* PyInit__pythonqt_host()
{
  if (!qApp) {
    qInstallMessageHandler(keepMessage);
    new QApplication(argumentCount, arguments);
  }
  PythonQt::init(PythonQt::IgnoreSiteModule | PythonQt::PythonAlreadyInitialized);
  PythonQt_init_QtCore(nullptr);
  PythonQt_init_QtGui(nullptr);
  PythonQt_init_QtUiTools(nullptr);
  return PyModule_Create(&definition);
}
