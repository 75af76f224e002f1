"""What a name in a config or a bundle stands for, and how modules of a user's own add names to img2img's.

Kinds of task, data and backbone, mask methods and strategies are each found in a `Registry`. All enter it in one way:

    @TASKS.register("sharpen")
    class Sharpen(Task): ...

    @DATA.register("stack")             BACKBONES, METHODS and STRATEGIES likewise
    class Stack(ImageDataset): ...

`imports` of an experiment and `--import` of a command name modules of the user's own that do so, see `import_modules`. A bundle
comes from other people: it names kinds but no modules, and opening one imports nothing by itself.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from img2img.errors import InputError, first_line
from img2img.files.paths import expanded

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Callable[..., Any])


_VARIABLES = {
    "task kind": "TASKS",
    "data kind": "DATA",
    "backbone kind": "BACKBONES",
    "mask method": "METHODS",
    "comparison method": "STRATEGIES",
}
"""What the registries are called in code, by `Registry.what`."""


class Registry(Mapping[str, T]):
    """The classes or functions that names in configs and files stand for.

    Args:
        what: what such a name is called in messages, "task kind".
        base: the class that all entries derive from.
        attribute: the class attribute that `register` sets to the name, for instances that store it, such as "kind".
        functions: functions that return an instance of `base` are entries too.
        own: the names of img2img itself, each with the module that registers it. That module is imported when the name is first
            asked for, since some load heavy libraries.
    """

    def __init__(
        self,
        what: str,
        base: type[Any],
        *,
        own: Mapping[str, str],
        attribute: str | None = None,
        functions: bool = False,
    ) -> None:
        self.what = what
        self._base = base
        self._attribute = attribute
        self._functions = functions
        self._own = dict(own)
        self._entries: dict[str, T] = {}

    @property
    def _call(self) -> str:
        return f"@{_VARIABLES.get(self.what, 'REGISTRY')}.register('mine')"

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that enters a class or a function under a name, and sets the class's `kind` or `name` to it.

        It is the outermost decorator. A module that is reloaded, or a notebook cell that runs again, replaces its own definition.

        Args:
            name: what configs and files call it.

        Raises:
            InputError: the name is no text, or is that of a definition elsewhere; the class has another name already; or what is
                decorated is of another sort, such as a class that does not derive from `Task`.
        """
        if not isinstance(name, str) or not name:
            raise InputError(
                f"a {self.what} was registered as {name!r}: expected a name as text; write for instance {self._call}"
            )

        def enter(entry: Entry) -> Entry:
            self._check_sort(name, entry)
            self._check_free(name, entry)
            if self._attribute is not None:
                given = vars(entry).get(self._attribute, name)
                if given != name:
                    raise InputError(
                        f"{_shown(entry)} is registered as the {self.what} {name!r} and has {self._attribute} = {given!r}: "
                        "expected one name for one class; leave one out, or derive a second class"
                    )
                setattr(entry, self._attribute, name)
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return enter

    def check_registered(self, entry: type[Any]) -> None:
        """Check that a class is registered itself: its name in a file would else stand for the class that it derives from.

        Raises:
            InputError: it is not.
        """
        if self._attribute not in vars(entry):
            raise InputError(
                f"{_shown(entry)} is no registered {self.what}, so a file could not name it: expected a class of its own name; "
                f"write {self._call} above the class"
            )

    def find(self, name: Any) -> T:
        """What `name` stands for.

        Raises:
            InputError: the name is unknown.
        """
        if isinstance(name, str) and name in self:
            return self[name]
        raise InputError(
            f"{self.what} {name!r} is unknown; known: {', '.join(sorted(self))}. If it is one of your own, import the module "
            "that defines it first: `import MODULE` in Python, imports=[MODULE] in a config, --import MODULE on the command line"
        )

    def has_own(self, name: object) -> bool:
        """Whether a name is img2img's own, rather than one that a user's module entered."""
        return name in self._own

    def __getitem__(self, name: str) -> T:
        if name not in self._entries and name in self._own:
            importlib.import_module(self._own[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._own

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._own, *self._entries)))

    def __len__(self) -> int:
        return len(self._own.keys() | self._entries.keys())

    def _check_sort(self, name: str, entry: Any) -> None:
        base = self._base
        made = entry if isinstance(entry, type) else getattr(entry, "__annotations__", {}).get("return", base)
        fits = not isinstance(made, type) or issubclass(made, base)  # an annotation may be text, or a union
        if fits and (isinstance(entry, type) or (self._functions and callable(entry))):
            return
        wanted = f"a class that derives from {base.__module__}.{base.__qualname__}"
        if self._functions:
            wanted += ", or a function that returns one"
        raise InputError(f"{_shown(entry)} is registered as the {self.what} {name!r}: expected {wanted}; correct it")

    def _check_free(self, name: str, entry: Any) -> None:
        other = self._entries.get(name)
        if name in self._own and getattr(entry, "__module__", None) != self._own[name]:
            first = "img2img itself"  # not imported to be compared: that may take seconds
        elif other is not None and _origin(other) != _origin(entry):
            first = _shown(other)
        else:
            return
        raise InputError(
            f"the {self.what} {name!r} is defined twice, by {first} and by {_shown(entry)}: expected one definition of a name; "
            "give yours another (in a notebook, restart if you meant to replace it)"
        )


def _origin(entry: Any) -> tuple[str, str]:
    """Where a class or function is defined: its file, or its module where that has none (a notebook), and its name there.

    A file may be imported under two names, as `__main__` and by `imports` for instance, and is the same module still.
    """
    module = getattr(entry, "__module__", "")
    return getattr(sys.modules.get(module), "__file__", None) or module, getattr(entry, "__qualname__", repr(entry))


def _shown(entry: Any) -> str:
    where, name = _origin(entry)
    return f"{name} in {where}"


def import_modules(names: Iterable[str]) -> None:
    """Import modules of the user's own, which enter what they define; one that is imported already is left as it is.

    A file's folder is appended to `sys.path`, and so is the working directory where a module is found nowhere else: worker
    processes, forked or spawned, get the same path and find them too.

    Args:
        names: `my_package.tasks`, a module that is installed or in the working directory; or `path/to/my_backbone.py`, a file,
            relative to the working directory.

    Raises:
        InputError: there is no such module or file, or its name is taken by another module. What a module itself raises while
            it is imported goes through as it is.
    """
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"imports got {name!r}: expected the name of a module or a .py file; correct it")
        importlib.invalidate_caches()  # the file may have been written a moment ago
        if name.endswith(".py"):
            _import_file(name)
            name = str(expanded(name).resolve())
        else:
            _import_module(name)
        _imported[name] = None


def import_explained(names: Iterable[str], what: str) -> None:
    """`import_modules` for who does not read tracebacks: a module that fails is an `InputError` too, which says where and how.

    Args:
        names: the modules.
        what: named them, such as "--import".

    Raises:
        InputError: there is none, or it fails: says in which file and line, and how.
    """
    for name in names:
        try:
            import_modules([name])
        except InputError:
            raise
        except Exception as error:  # whatever the user's code raises
            file, line = _place(error)
            where = f"{file}, line {line}: " if file else ""
            why = error.msg if isinstance(error, SyntaxError) else first_line(error)
            raise InputError(
                f"{what} {name}: {where}{type(error).__name__}: {why}. Expected a module that can be imported: correct it"
            ) from error


def _place(error: Exception) -> tuple[str | None, int | None]:
    """File and line of the user's own code at which its import failed; None where that is not known."""
    if isinstance(error, SyntaxError):
        return error.filename, error.lineno
    importers = (str(Path(__file__).parent), str(Path(importlib.__file__).parent), "<")  # who asked for it
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(importers)]
    own = [frame for frame in frames if Path(frame.filename).parent == Path(frames[0].filename).parent]  # not what it calls
    return (own[-1].filename, own[-1].lineno) if own else (None, None)


_imported: dict[str, None] = {}


def imported() -> tuple[str, ...]:
    """What `import_modules` has imported, files by their full path: what a process on another machine is to import as well."""
    return tuple(_imported)


def _import_file(name: str) -> None:
    path = expanded(name).resolve()
    if not path.is_file():
        raise InputError(f"imports got {name!r}, and there is no file {path}: correct the path, which starts here")
    if not path.stem.isidentifier():
        raise InputError(f"imports got {name!r}: expected a file name of letters, digits and _, such as my_task.py; rename it")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    known = sys.modules.get(path.stem)
    spec = importlib.util.find_spec(path.stem) if known is None else None
    found = str(getattr(known or spec, "__file__" if known else "origin", None))
    if Path(found).resolve() != path:
        raise InputError(f"imports got {name!r}, but the module {path.stem!r} is another one here ({found}): rename the file")
    importlib.import_module(path.stem)


def _import_module(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"imports got {name!r}: expected the name of a module, such as my_tasks, or a file that ends in .py")
    top = name.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        sys.path.append(str(Path.cwd()))  # a script's own folder is on the path, the one it is started from is not
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it needs itself is not
        raise InputError(
            f"imports got {name!r}, and there is no module {error.name!r}, neither installed nor in {Path.cwd()}: install it, "
            "start in its folder, or give the file as path/to/my_module.py"
        ) from None
