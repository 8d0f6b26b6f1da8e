"""The template's side: imports, tells regen that it is ready, and forks when it is asked to.

    python3 -m regen_zygote [--import MODULE[,MODULE…]]… [--path DIR]…

regen starts it and sets REGEN_OCI_ZYGOTE and REGEN_OCI_ZYGOTE_FD. What a child does is in the package.
"""

import _locale
import errno
import gc
import os
import site
import sys

from . import JOB, RESULT, VERSION, complain, flush, flush_files, fork, run

# The longest message of the protocol, in bytes.
LIMIT = 4096
USAGE = "usage: python3 -m regen_zygote [--import MODULE[,MODULE...]]... [--path DIR]..."

# Variables of the interpreter that a clone follows, or reads when it needs them. With any other one that is not as the
# template had it the clone starts a new interpreter.
FOLLOWED = {
    "PYTHONASYNCIODEBUG", "PYTHONBREAKPOINT", "PYTHONCOERCECLOCALE", "PYTHONDONTWRITEBYTECODE", "PYTHONIOENCODING",
    "PYTHONNOUSERSITE", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONUNBUFFERED", "PYTHONUSERBASE",
}
# Variables that it reads at its start and that have an underscore; images have many of their own (PYTHON_VERSION).
UNDERSCORED = {
    "PYTHON_CONTEXT_AWARE_WARNINGS", "PYTHON_CPU_COUNT", "PYTHON_DISABLE_REMOTE_DEBUG", "PYTHON_FROZEN_MODULES",
    "PYTHON_GIL", "PYTHON_JIT", "PYTHON_LAZY_IMPORTS", "PYTHON_PERF_JIT_SUPPORT", "PYTHON_THREAD_INHERIT_CONTEXT",
    "PYTHON_TLBC",
}


def find_locale(variables):
    """The name of the locale of characters."""
    return variables.get("LC_ALL") or variables.get("LC_CTYPE") or variables.get("LANG") or "C"


def is_utf8(locale):
    return locale.lower().endswith((".utf-8", ".utf8"))


class Interpreter:
    """What the template's interpreter is, as far as a clone has to compare or to change it. Made before the imports."""

    def __init__(self, paths):
        variables = dict(os.environ)
        self.executable = sys.executable
        self.real = os.path.realpath(sys.executable)
        self.started = {name: value for name, value in variables.items() if name.startswith("PYTHON")}
        self.locale = find_locale(variables)
        # If it was not done for the template, it is switched off, or the image has no such locale.
        self.coerces = variables.get("LC_ALL") or self.locale not in ("C", "POSIX")
        self.always_utf8 = "PYTHONUTF8" in variables or "utf8" in sys._xoptions or sys.version_info >= (3, 15)
        self.zone = variables.get("TZ")
        own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        left_out = {os.path.abspath(part) for part in variables.get("PYTHONPATH", "").split(":") if part} | {own}
        search = sys.path if getattr(sys.flags, "safe_path", 0) or sys.flags.isolated else sys.path[1:]
        self.search = paths + [part for part in search if part not in left_out]
        user = site.getusersitepackages()
        self.user_site = user if user in sys.path else None
        self.user_part = user[len(site.getuserbase()):]

    def complete(self, variables):
        """Adds to the variables of a clone what an interpreter adds at its start (PEP 538)."""
        if self.coerces and not variables.get("LC_ALL") and find_locale(variables) in ("C", "POSIX"):
            if variables.get("PYTHONCOERCECLOCALE") != "0":
                variables["LC_CTYPE"] = "C.UTF-8"

    def has_utf8_mode(self, variables):
        """Whether an interpreter that starts with `variables` is in the UTF-8 mode (PEP 540)."""
        return bool(sys.flags.utf8_mode) if self.always_utf8 else find_locale(variables) in ("C", "POSIX")

    def set_locale(self, variables):
        """Follows the variables of a clone; gives whether text that cannot be read is to be kept as it is."""
        name = find_locale(variables)
        if name != self.locale:
            try:
                _locale.setlocale(_locale.LC_CTYPE, "")
            except _locale.Error:
                pass
        return self.has_utf8_mode(variables) or name in ("C", "POSIX", "C.UTF-8", "C.utf8")

    def owns(self, program):
        """Whether executing `program` would start this very interpreter, with the same prefix."""
        if program == self.executable:
            return True
        if os.path.realpath(program) != self.real or sys.prefix != sys.base_prefix:
            return False
        # Links of virtual environments lead to it, and mean other modules.
        directory = os.path.dirname(program)
        places = (directory, os.path.dirname(directory))
        return not any(os.path.exists(os.path.join(place, "pyvenv.cfg")) for place in places)

    def fits(self, variables, options):
        """Whether an interpreter that started with `variables` and `options` would be like this one."""
        completed = dict(variables)
        self.complete(completed)
        locale = find_locale(completed)
        if locale != self.locale and not (is_utf8(locale) and is_utf8(self.locale)):
            return False
        if "safe_path" in options and "isolated" not in options and not hasattr(sys.flags, "safe_path"):
            return False
        read = {} if "ignore_environment" in options else variables
        for name in {**self.started, **read}:
            if name.startswith("PYTHON") and name not in FOLLOWED and ("_" not in name or name in UNDERSCORED):
                if read.get(name, "") != self.started.get(name, ""):
                    return False
        return self.user_site == self.find_user_site(variables, read, options)

    def find_user_site(self, variables, read, options):
        """The user's own modules, if they have some."""
        if "no_user_site" in options or read.get("PYTHONNOUSERSITE"):
            return None
        home = variables.get("HOME") or os.path.expanduser("~")
        path = (read.get("PYTHONUSERBASE") or os.path.join(home, ".local")) + self.user_part
        return path if os.path.isdir(path) else None


def parse(arguments):
    """Gives the modules to import, and the directories to look for them first. A wrong command line ends it with 2."""
    modules, paths = [], []
    while arguments:
        option, equals, value = arguments.pop(0).partition("=")
        if option in ("-h", "--help"):
            print(USAGE)
            raise SystemExit(0)
        if option not in ("--import", "--path") or not (equals or arguments):
            complain("%s: it is no option, or its value is missing; %s" % (option, USAGE))
            raise SystemExit(2)
        value = value if equals else arguments.pop(0)
        if option == "--path":
            paths.append(os.path.abspath(value))
        else:
            modules += [name.strip() for name in value.split(",") if name.strip()]
    return modules, paths


def connect():
    """Gives regen's socket, which no program that a module starts should see."""
    version = os.environ.pop("REGEN_OCI_ZYGOTE", None)
    number = os.environ.pop("REGEN_OCI_ZYGOTE_FD", "3")
    if version is None:
        complain("REGEN_OCI_ZYGOTE is not set: regen starts this module, see 'regen template create --help'")
        raise SystemExit(2)
    if version != VERSION:
        complain("regen speaks version %s of the zygote protocol, this module version %s: "
                 "use the module that came with regen" % (version, VERSION))
        raise SystemExit(1)
    try:
        socket = int(number)
        os.set_inheritable(socket, False)
    except (ValueError, OSError) as error:
        complain("REGEN_OCI_ZYGOTE_FD=%s is no open descriptor: %s" % (number, error))
        raise SystemExit(1)
    return socket


def load(modules):
    """Imports. The first one that fails ends the template."""
    for name in modules:
        try:
            __import__(name)
        except BaseException as error:  # Also a module that calls sys.exit().
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                import traceback
                traceback.print_exc()
                flush()
            complain("import '%s': %s: %s" % (name, type(error).__name__, error))
            raise SystemExit(1)


class Threads:
    """Tells once of threads that no child will have."""

    def __init__(self):
        self.told = False

    def look(self):
        if self.told:
            return
        try:
            count = len(os.listdir("/proc/self/task"))
        except OSError:
            return
        if count > 1:
            self.told = True
            complain("warning: threads besides the main one: %d; clones do not have them, "
                     "and what such a thread has locked stays locked there" % (count - 1))


def serve(socket):
    """Answers regen's requests. Returns in each child, and in nobody else."""
    threads = Threads()
    threads.look()
    os.write(socket, b"ready %s python %s" % (VERSION.encode(), sys.version.split()[0].encode()))
    while True:
        message = os.read(socket, LIMIT + 1)
        if not message:
            finish(0)
        word, _, number = message.partition(b" ")
        if word != b"fork" or not number.isdigit() or len(message) > LIMIT:
            complain("regen sent what version %s of the zygote protocol does not have: %.60r" % (VERSION, message))
            finish(1)
        try:
            pid = fork()
        except OSError as error:
            answer = b"failed %s %s" % (number, errno.errorcode.get(error.errno, "EIO").encode())
        else:
            if pid == 0:
                return
            answer = b"forked %s %d" % (number, pid)
        try:
            os.write(socket, answer)
        except BrokenPipeError:
            finish(0)
        # Only now: nobody waits for it.
        threads.look()


def finish(status):
    """Ends the template without waiting for threads that modules began."""
    flush()
    os._exit(status)


def main():
    modules, paths = parse(sys.argv[1:])
    socket = connect()
    interpreter = Interpreter(paths)
    sys.path[:] = interpreter.search
    sys.argv[:] = [""]
    load(modules)
    interpreter.search = sys.path[:]
    flush()
    # What a module has begun to write would else be written by each clone, into whatever it has opened by that number.
    flush_files()
    # Garbage is freed before it is copied, and what is left is never looked at again: looking would copy its pages.
    collecting = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    serve(socket)
    if collecting:
        gc.enable()
    if socket not in (JOB, RESULT):
        # Only without regen, which leaves nothing else open.
        os.close(socket)
    run(interpreter)


main()
