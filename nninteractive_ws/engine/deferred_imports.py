"""Imports of a library that wait until they are needed, so that a worker starts in half the time."""

from collections.abc import Iterator, Sequence
import contextlib
import importlib
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
import sys
from types import ModuleType
from typing import Any


class _DeferredName:
    """A function, class or module of a deferred module. It can be called, subclassed, and given to isinstance."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _resolve(self) -> Any:
        module = _load(self._module)
        if not hasattr(module, self._name):
            with contextlib.suppress(ModuleNotFoundError):
                return importlib.import_module(f"{self._module}.{self._name}")
        return getattr(module, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._resolve()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolve(), name)

    def __instancecheck__(self, instance: object) -> bool:
        # A module that was not imported has no instances.
        is_loaded = not isinstance(sys.modules.get(self._module), _DeferredModule | None)
        return is_loaded and isinstance(instance, self._resolve())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._resolve(),)


class _DeferredModule(ModuleType):
    """Takes the place of a module while :func:`defer_imports` runs. Afterwards, it passes on the module's names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return _DeferredName(self.__name__, name)
        return getattr(importlib.import_module(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Finds deferred modules and everything in them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self.names):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextlib.contextmanager
def defer_imports(*names: str) -> Iterator[None]:
    """Import these modules, and those in them, when something of theirs is used first, and not in this context.

    A module that is used in this context is imported at once. Modules that are imported already stay as they are.
    """
    finder = _Finder([name for name in names if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _DeferredModule)]:
            _forget(name)


def _load(name: str) -> ModuleType:
    """Import a module in earnest."""
    if isinstance(sys.modules.get(name), _DeferredModule):  # it is used while imports are deferred
        for finder in sys.meta_path:
            if isinstance(finder, _Finder):
                finder.names = [root for root in finder.names if name != root and not name.startswith(f"{root}.")]
        for part in [part for part in sys.modules if name == part or name.startswith(f"{part}.")]:
            if isinstance(sys.modules[part], _DeferredModule):
                _forget(part)
    return importlib.import_module(name)


def _forget(name: str) -> None:
    module = sys.modules.pop(name)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
        delattr(sys.modules[parent], child)
