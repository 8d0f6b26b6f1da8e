"""A Python interpreter as regen's template: it imports once, and every clone begins with what it has imported.

regen starts `python3 -m regen_zygote --import json,ssl`; nobody else needs to. `__main__` is the template's side, this
file is what a clone does. The protocol, and what is and is not in a clone, are in regen's docs/zygote.md. Only the
standard library is used, and of that only what Debian's python3-minimal has.
"""

import _io
import atexit
import builtins
import codecs
import gc
import linecache
import os
import runpy
import signal
import sys
import time
import traceback
import types
from importlib.machinery import BuiltinImporter, SourceFileLoader

try:
    import json
except ImportError:
    # Programs need none; a call is answered with an error that says so.
    json = None

# Of the zygote protocol and of jobs.
VERSION = "1"
# The descriptors of a clone besides its standard streams.
JOB = 3
RESULT = 4
# Where regen mounts the function of a call.
FUNCTION = "/function"
# As regen does for every container whose environment has none.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Options of the interpreter that can be followed after its start; with any other one the clone starts a new interpreter.
OPTIONS = {
    "B": ("dont_write_bytecode",),
    "E": ("ignore_environment",),
    "I": ("isolated", "ignore_environment", "no_user_site", "safe_path"),
    "P": ("safe_path",),
    "R": (),
    "q": ("quiet",),
    "s": ("no_user_site",),
    "u": ("unbuffered",),
}
# Variables that stand for one of them.
VARIABLES = {"PYTHONDONTWRITEBYTECODE": "dont_write_bytecode", "PYTHONUNBUFFERED": "unbuffered",
             "PYTHONNOUSERSITE": "no_user_site"}
if sys.version_info >= (3, 11):
    VARIABLES["PYTHONSAFEPATH"] = "safe_path"


def complain(text):
    """Writes one line to standard error, whatever has become of sys.stderr."""
    try:
        os.write(2, ("regen_zygote: " + text.replace("\n", " ") + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def flush():
    """Writes what the standard streams hold back."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass


def flush_files():
    """Writes what open files hold back that the collector of garbage knows of: all but those that were frozen."""
    for thing in gc.get_objects():
        if issubclass(type(thing), _io._IOBase):
            try:
                thing.flush()
            except Exception:  # Closed, or only read.
                pass


class Job:
    """What a clone is to do: `arguments`, `variables` as a dictionary, and `call`: (handler, event) or None."""

    def __init__(self, data):
        """Takes a job apart. Raises ValueError with what is wrong with it."""
        if data[-1:] != b"\0":
            raise ValueError("it is cut off")
        self._fields = iter(data[:-1].split(b"\0"))
        if (self._next(), self._next()) != (b"regen-job", VERSION.encode()):
            raise ValueError("it is no job of version " + VERSION)
        self.arguments = [os.fsdecode(argument) for argument in self._list()]
        self.variables = {}
        for variable in self._list():
            name, equals, value = os.fsdecode(variable).partition("=")
            if name and equals:
                # Of two the first counts, as for getenv(3).
                self.variables.setdefault(name, value)
        call = self._list()
        if len(call) not in (0, 2) or not (call or self.arguments):
            raise ValueError("it has neither a program nor a call")
        self.call = call and (call[0].decode("utf-8", "replace"), call[1])
        if next(self._fields, None) is not None:
            raise ValueError("it is too long")

    def _next(self):
        field = next(self._fields, None)
        if field is None:
            raise ValueError("it is cut off")
        return field

    def _list(self):
        count = self._next()
        if not count.isdigit() or len(count) > 9:
            raise ValueError("%.20r is no number" % count)
        return [self._next() for _ in range(int(count))]


class Start:
    """A command line of this interpreter: `kind` is -c, -m or FILE, `what` is the code, the module or the file."""

    def __init__(self, program, options, kind, what, arguments):
        self.program, self.options, self.kind, self.what, self.arguments = program, options, kind, what, arguments
        # All of it, as sys.orig_argv has it.
        self.line = None


def list_candidates(name, variables):
    """The paths at which execvp(3) looks for a program."""
    path = variables.get("PATH", DEFAULT_PATH)
    return [name] if "/" in name else [os.path.join(part, name) for part in path.split(":")]


def find(name, variables):
    """The path of a program, as execvp(3) finds it; None if there is none that can be executed."""
    for path in list_candidates(name, variables):
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None


def plan(interpreter, arguments, variables):
    """What this interpreter has to do to be the program `arguments`; None if only execve(2) can do it."""
    if not os.path.basename(arguments[0]).startswith("python"):
        arguments = _plan_script(arguments, variables)
    program = arguments and find(arguments[0], variables)
    if not program or not interpreter.owns(program):
        return None
    start = _plan_options(program, arguments[1:])
    if start:
        start.line = arguments
    return start if start and interpreter.fits(variables, start.options) else None


def _plan_script(arguments, variables):
    """The command line that the first line of a script asks for; for FILE.py without one this interpreter."""
    name = arguments[0]
    path = find(name, variables)
    if path is None and name.endswith(".py") and os.path.isfile(name):
        path = name
    try:
        with open(path or name, "rb", buffering=0) as file:
            head = file.read(256)
    except OSError:
        return None
    words = []
    if head.startswith(b"#!"):
        # As the kernel reads it: whatever follows the program is one argument.
        words = os.fsdecode(head[2:].split(b"\n")[0].strip()).split(None, 1)
        if words and os.path.basename(words[0]) == "env":
            words = words[1][2:].split() if words[1:] and words[1].startswith("-S") else words[1:]
        if not words or not os.path.basename(words[0]).startswith("python") or b"\n" not in head:
            return None
    elif name.endswith(".py"):
        words = [sys.executable]
    return words and words + [path or name] + arguments[1:]


def _plan_options(program, rest):
    options = set()
    while rest and rest[0].startswith("-"):
        word, rest = rest[0], rest[1:]
        if word == "--":
            break
        if word == "-" or word.startswith("--"):
            return None
        for index, letter in enumerate(word[1:], 2):
            if letter in "cm":
                value = [word[index:]] if word[index:] else rest[:1]
                rest = rest if word[index:] else rest[1:]
                return Start(program, options, "-" + letter, value[0], ["-" + letter] + rest) if value else None
            if letter not in OPTIONS:
                return None
            options.update(OPTIONS[letter])
    # Without a file it would read its standard input.
    return Start(program, options, "FILE", rest[0], rest) if rest and rest[0] != "-" else None


def run(interpreter):
    """What a clone does from its fork to its end. Ends as the program ends: by returning, or by what it raises."""
    try:
        job = Job(_read_job())
    except (ValueError, OSError, MemoryError) as error:
        complain("read the job: %s" % error)
        raise SystemExit(1)
    _renew(interpreter, job.variables)
    if job.call:
        interpreter.complete(os.environ)
        _call(interpreter, job)
    start = plan(interpreter, job.arguments, job.variables)
    if start is None:
        _execute(job)
    _become(interpreter, job, start)


def fork():
    """As os.fork. It is not for people that an interpreter warns of threads here, as it would in __main__."""
    return os.fork()


def _read_job():
    parts = []
    while True:
        part = os.read(JOB, 1 << 16)
        if not part:
            os.close(JOB)
            return b"".join(parts)
        parts.append(part)


def _renew(interpreter, variables):
    """Makes the environment that of the clone, and what a fork copies and no two processes should share, its own."""
    for name in [name for name in os.environ if name not in variables]:
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if variables.get("TZ") != interpreter.zone:
        time.tzset()
    # `random` renews itself.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    # Names of temporary files depend on the pid, which two clones can have in their namespaces.
    if "tempfile" in sys.modules:
        sys.modules["tempfile"]._name_sequence = None


def _execute(job):
    """Becomes a program that this interpreter cannot be."""
    flush()
    # The interpreter ignores SIGPIPE, and a program would inherit that; so it is with what modules ignored and blocked.
    for number in signal.valid_signals():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    name, refused = job.arguments[0], None
    for path in list_candidates(name, job.variables):
        try:
            os.execve(path, job.arguments, job.variables)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            refused = refused or error
    complain("exec '%s': %s" % (name, refused.strerror if isinstance(refused, OSError) else refused or "not found"))
    os._exit(126 if refused else 127)


def _become(interpreter, job, start):
    """Is `python3 OPTIONS FILE|-m MODULE|-c CODE` from here on."""
    interpreter.complete(os.environ)
    read = {} if "ignore_environment" in start.options else job.variables
    options = set(start.options)
    options.update(option for variable, option in VARIABLES.items() if read.get(variable))
    if interpreter.has_utf8_mode(job.variables):
        options.add("utf8_mode")
    _set_flags(options)
    sys.executable = sys._base_executable = os.path.abspath(start.program)
    sys.argv[:] = start.arguments
    if sys.version_info >= (3, 10):
        sys.orig_argv = list(start.line)
    _set_streams(interpreter, os.environ, read.get("PYTHONIOENCODING", ""), "unbuffered" in options)
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={}, __loader__=BuiltinImporter)
    source, first = None, None
    # What it calls its file is absolute since 3.9.
    path = os.path.join(os.getcwd(), start.what) if sys.version_info >= (3, 9) else start.what
    if start.kind == "-c":
        first = ""
    elif start.kind == "-m":
        first = os.getcwd()
    elif os.path.isdir(start.what):
        first = path
    else:
        source = _read_source(start.what)
        if source is None:
            _execute(job)
        first = os.path.dirname(os.path.realpath(start.what))
    # A directory is its own module path, whatever is safe.
    package = source is None and start.kind == "FILE"
    _set_search(interpreter, [] if "safe_path" in options and not package else [first], read)
    sys.modules["__main__"] = main
    try:
        if start.kind == "-c":
            code = start.what + "\n"
            if sys.version_info >= (3, 13):
                linecache.cache["<string>"] = (len(code), None, code.splitlines(True), "<string>")
            exec(compile(code, "<string>", "exec", dont_inherit=True), main.__dict__)
        elif source is None:
            runpy._run_module_as_main(*(("__main__", False) if package else (start.what,)))
        else:
            main.__dict__.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
            exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        _hide_frames(error)
        raise
    raise SystemExit(0)


def _read_source(path):
    """The text of a script; None for what the interpreter itself has to look at: archives, bytecode, what is missing."""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError:
        return None
    return None if b"\0" in source else source


def _strip(error):
    """The traceback of an exception without the frames of this file."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _hide_frames(error):
    """Has the interpreter print an exception that ends it as if the program had been its own."""
    trace, hook = _strip(error), sys.excepthook

    def show(kind, value, ignored):
        if value is error:
            value.with_traceback(trace)
        hook(kind, value, trace if value is error else ignored)

    sys.excepthook = show


def _set_flags(options):
    sys.dont_write_bytecode = "dont_write_bytecode" in options
    flags = sys.flags
    followed = {name for names in OPTIONS.values() for name in names if hasattr(flags, name)}
    followed.add("utf8_mode")
    if any(bool(getattr(flags, name)) != (name in options) for name in followed):
        # Objects of its type cannot be made.
        names = [name for name in dir(flags) if name[0] != "_" and type(getattr(flags, name)) in (int, bool)
                 and not name.startswith("n_")]
        values = {name: getattr(flags, name) for name in names}
        values.update({name: type(values[name])(name in options) for name in followed})
        sys.flags = types.SimpleNamespace(**values)


def _set_streams(interpreter, variables, wanted, unbuffered):
    """Makes the standard streams as the interpreter does at its start: for the descriptors that are there now."""
    given, _, errors = wanted.partition(":")
    lenient = interpreter.set_locale(variables)
    encoding = codecs.lookup(given).name if given else sys.getfilesystemencoding()
    errors = errors or ("surrogateescape" if lenient and not given else "strict")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _open_stream(number, name, encoding, "backslashreplace" if number == 2 else errors, unbuffered)
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def _open_stream(number, name, encoding, errors, unbuffered):
    mode, direct = "w" if number else "r", unbuffered and number > 0
    try:
        binary = open(number, mode + "b", buffering=0 if direct else -1, closefd=False)
    except OSError:
        return None
    raw = binary if direct else binary.raw
    raw.name = "<%s>" % name
    # Standard error is written by lines since 3.9, whatever it is.
    lines = not unbuffered and (raw.isatty() or (number == 2 and sys.version_info >= (3, 9)))
    text = _io.TextIOWrapper(binary, encoding, errors, "\n", lines, write_through=unbuffered)
    text.mode = mode
    return text


def _set_search(interpreter, first, read):
    """Sets sys.path: `first`, then PYTHONPATH, then what the template has."""
    given = read.get("PYTHONPATH", "")
    own = [os.path.abspath(part) for part in given.split(":")] if given else []
    sys.path[:] = first + list(dict.fromkeys(own + interpreter.search))
    # What the template knew of these directories was true in its root.
    cache = sys.path_importer_cache
    for part in [part for part, finder in cache.items() if finder is None] + first + own:
        cache.pop(part or os.getcwd(), None)


class Refusal(Exception):
    """A call that could not be made, or has no answer: one of the error types of the protocol."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def _call(interpreter, job):
    """Calls a function, writes its answer and ends: with 0, or with 1 for an error.

    The end is that of the interpreter without its last part: it would take every object of the template to pieces, and
    so copy nearly all its memory for nothing.
    """
    # As `-c` has it; what it is does not matter to a function.
    sys.argv[:] = job.arguments or [""]
    _set_streams(interpreter, os.environ, job.variables.get("PYTHONIOENCODING", ""),
                 bool(job.variables.get("PYTHONUNBUFFERED")))
    directory = os.getcwd()
    _set_search(interpreter, [FUNCTION] + ([directory] if directory != FUNCTION else []), job.variables)
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.set_inheritable(RESULT, False)
    answer, status = _answer(*job.call)
    # What it printed is there before its answer is.
    flush()
    try:
        while answer:
            answer = answer[os.write(RESULT, answer):]
        os.close(RESULT)
    except BrokenPipeError:
        # Whoever asked has had enough of it, and says so.
        status = 1
    except OSError as error:
        complain("write the result: %s" % error)
        status = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    flush()
    flush_files()
    os._exit(status)


def _answer(handler, event):
    """The answer to a call as bytes, and the exit status."""
    if json is None:
        return (b'{"error": {"type": "ModuleNotFoundError", "message": "this Python has no module json, which calls need '
                b'(Debian: install python3)", "traceback": ""}}'), 1
    try:
        return _encode(handler, _invoke(handler, event)), 0
    except BaseException as error:  # Also a function that calls sys.exit().
        kind = error.kind if isinstance(error, Refusal) else type(error).__name__
        try:
            message = str(error)
        except Exception:
            message = "its message cannot be read"
        trace = "" if isinstance(error, Refusal) else "".join(
            traceback.format_exception(type(error), error, _strip(error)))
        answer = {"error": {"type": kind, "message": message, "traceback": trace}}
        return json.dumps(answer).encode(), 1


def _encode(handler, result):
    try:
        return json.dumps({"result": result}, allow_nan=False).encode()
    except Exception as error:
        raise Refusal("ResultNotJson", "what '%s' returned is no JSON: %s" % (handler, error)) from None


def _invoke(handler, event):
    module, _, path = handler.partition(":")
    if not module or not path:
        raise Refusal("HandlerNotFound", "'%s' is not of the form MODULE:NAME" % handler)
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        # Not one that the module itself lacks.
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise Refusal("HandlerNotFound", "there is no module '%s' in %s or the working directory"
                      % (module, FUNCTION)) from None
    function = sys.modules[module]
    for name in path.split("."):
        try:
            function = getattr(function, name)
        except AttributeError:
            raise Refusal("HandlerNotFound", "module '%s' has no '%s'" % (module, path)) from None
    if not callable(function):
        raise Refusal("HandlerNotCallable", "'%s' is a %s" % (handler, type(function).__name__))
    result = function(json.loads(event))
    if hasattr(type(result), "__await__"):
        import asyncio
        result = asyncio.run(_wait(result))
    return result


async def _wait(awaitable):
    return await awaitable
