//! Clones that become programs: as a new interpreter would run them, or by executing them.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use crate::peer::{End, Job, PYTHON, Zygote, python, read};

/// Prints what a program can see of how it was started.
const LOOK: &str = r"
import os, sys
names = [name for name in dir(sys.flags) if name[0] != '_' and name[:2] != 'n_' and name not in ('count', 'index')]
print(sys.argv, getattr(sys, 'orig_argv', [])[1:], sys.path, sys.executable, sys.prefix, sys.dont_write_bytecode)
print([(name, getattr(sys.flags, name)) for name in names])
print(sorted(os.environ.items()), os.getcwd())
print(__name__, globals().get('__file__'), __spec__ and __spec__.name, __package__, __doc__, __builtins__, __loader__ and 1)
for stream in sys.stdin, sys.stdout, sys.stderr:
    binary = stream.buffer
    print(stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines, stream.line_buffering,
          stream.write_through, type(binary).__name__, binary.name, binary.mode, stream.isatty(), stream.fileno())
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.modules['__main__'].LOOK)
LOOK = 1
".trim_ascii();

/// A working directory with the program in many forms.
fn prepare(work: &Path) {
    let look = format!("LOOK = 0\n{LOOK}\n");
    for directory in ["sub", "package", "directory"] {
        fs::create_dir(work.join(directory)).unwrap();
    }
    for file in [
        "look.py",
        "sub/look.py",
        "package/__init__.py",
        "package/__main__.py",
        "package/module.py",
        "directory/__main__.py",
    ] {
        fs::write(work.join(file), &look).unwrap();
    }
    symlink("sub/look.py", work.join("link.py")).unwrap();
    for (name, line) in [
        ("script", "#!/usr/bin/python3"),
        ("script.env", "#!/usr/bin/env python3"),
        ("script.options", "#!/usr/bin/python3 -uB"),
        ("script.wrong", "#!/usr/bin/python3 -u -B"),
        ("script.split", "#!/usr/bin/env -S python3 -I -u"),
    ] {
        fs::write(work.join(name), format!("{line}\n{look}")).unwrap();
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(work.join("twice.py"), "import sys\nprint(1)\nprint(2, file=sys.stderr)\nsys.exit(7)").unwrap();
}

/// What a new interpreter does.
fn cold(zygote: &Zygote, job: &Job) -> End {
    let mut command = job.command();
    // Files, as the clone has: not only their content depends on what they are.
    let (out, err) = (zygote.work().join("../cold.out"), zygote.work().join("../cold.err"));
    command.current_dir(zygote.work()).stdin(Stdio::null());
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let status = command.status().unwrap();
    let code = status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap());
    End { code, out: read(&out), err: read(&err) }
}

/// A template that marks its clones: whoever has the module `mark` was not started anew.
fn marked() -> Zygote {
    let mut zygote = Zygote::start_in(python(&["--import", "runpy,json"]), prepare);
    assert_eq!(zygote.receive(), zygote.python_ready(), "{}", zygote.err());
    zygote
}

#[test]
fn a_clone_looks_to_its_program_like_a_new_interpreter() {
    let mut zygote = marked();
    let inline = format!("LOOK = 0\n{LOOK}");
    let rows: &[&[&str]] = &[
        &["python3", "-c", &inline, "a", "-b"],
        &["python3", "-uBsc", &inline],
        &["python3", "-E", "-c", &inline],
        &["python3", "-I", "-c", &inline],
        &["python3", "-P", "-q", "-c", &inline],
        &[PYTHON, "look.py", "a", "--", "-m"],
        &["python3.11", "./sub/look.py"],
        &["python3", "--", "sub/../look.py"],
        &["python3", "link.py"],
        &["python3", "-P", "look.py"],
        &["python3", "-m", "look", "x"],
        &["python3", "-mpackage", "x"],
        &["python3", "-um", "package.module"],
        &["python3", "directory", "x"],
        &["./script", "a b"],
        &["./script.env"],
        &["./script.options", "x"],
        &["./script.split", "x"],
        &["./script.wrong", "x"],
    ];
    for row in rows {
        for variables in [
            &["FOO=a b=c", "EMPTY="][..],
            &["LANG=C.UTF-8", "PYTHONPATH=/nowhere:sub", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"],
            &["PYTHONIOENCODING=latin-1:replace", "PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1"],
        ] {
            let job = variables.iter().fold(Job::program(row), |job, variable| job.variable(variable));
            let (warm, cold) = (zygote.clone(&job), cold(&zygote, &job));
            let lines = |end: &End| end.out.lines().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(lines(&warm), lines(&cold), "{row:?} {variables:?}");
            assert_eq!(warm, cold, "{row:?} {variables:?}");
        }
    }
}

#[test]
fn a_clone_ends_as_a_new_interpreter_would() {
    let mut zygote = marked();
    let scripts = [
        "raise SystemExit",
        "raise SystemExit(0)",
        "raise SystemExit(3)",
        "raise SystemExit(-1)",
        "raise SystemExit(256 + 5)",
        "raise SystemExit('a sentence')",
        "raise SystemExit([1])",
        "import sys; sys.stdout.write('no newline'); sys.exit(True)",
        "1 / 0",
        "def inner():\n  try: {}['x']\n  except KeyError: raise ValueError('a\\nb')\ninner()",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os.abort()",
        "import os; print('lost'); os._exit(9)",
        "(",
        "import absent",
        "import atexit; atexit.register(print, 'at exit'); print('first')",
        "file = open('held', 'w'); file.write('kept'); import atexit; atexit.register(lambda: print(open('held').read()))",
        "class A:\n  def __del__(self): print('gone')\na = A()",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.01), print('late'))).start()",
        "import threading; print(threading.current_thread() is threading.main_thread(), threading.active_count())",
        "import sys; sys.excepthook = lambda *parts: print('mine', parts[0], not parts[2].tb_next); 1 / 0",
        "import os; os.close(1); print(1)",
        "import sys; sys.stdout.close()",
        "import gc; print(gc.isenabled(), gc.get_threshold())",
        "import signal; print([signal.getsignal(n) for n in (2, 13, 15, 17)], signal.pthread_sigmask(0, ()))",
        "import subprocess; print(subprocess.run(['sh', '-c', 'kill -PIPE $$; echo $0'], capture_output=True))",
        "import multiprocessing as m\nif __name__ == '__main__':\n  p = m.get_context('fork').Process(target=print, args=(5,)); p.start(); p.join()",
        "import os; print(sorted(os.listdir('/proc/self/fd')))",
        "import sys; print(input())",
        "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))))",
        "import sys; print('\\udc80')",
    ];
    for script in scripts {
        fs::write(zygote.work().join("case.py"), script).unwrap();
        for arguments in [["python3", "-c", script].as_slice(), &["python3", "case.py"], &["python3", "-m", "case"]] {
            let job = Job::program(arguments);
            let (mut warm, cold) = (zygote.clone(&job), cold(&zygote, &job));
            // Only here the answer's file and the template's standard input are there too.
            warm.out = warm.out.replace("'3', '4'", "'3'");
            assert_eq!(warm, cold, "{arguments:?}: {script}");
        }
    }
}

#[test]
fn what_was_imported_is_there_and_is_not_imported_again() {
    let module = "import os\nprint('imported by', os.getpid())";
    let mut zygote = Zygote::start_in(python(&["--path=modules", "--import=loud"]), |work| {
        fs::create_dir(work.join("modules")).unwrap();
        fs::write(work.join("modules/loud.py"), module).unwrap();
        fs::write(work.join("modules/later.py"), "print('later')").unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready());
    let end = zygote.clone(&Job::program(&["python3", "-c", "import sys, loud, later; print(sys.path[1])"]));
    assert_eq!(end.out, format!("later\n{}/modules\n", zygote.work().display()));
}

#[test]
fn options_and_variables_of_the_interpreter_that_a_clone_cannot_follow_start_a_new_one() {
    let mut zygote = marked();
    let warm = "import sys; print('regen_zygote' in sys.modules, sys.flags.optimize, sys.flags.utf8_mode)";
    let row = |arguments: &[&str]| Job::program(&[&["python3"], arguments, &["-c", warm]].concat());
    assert!(zygote.clone(&row(&[])).out.starts_with("True 0 "));
    let version = zygote.python_ready().rsplit_once(' ').unwrap().1.rsplit_once('.').unwrap().0.to_owned();
    let base = zygote.work().join("base");
    fs::create_dir_all(base.join(format!("lib/python{version}/site-packages"))).unwrap();
    let jobs = [
        row(&[]).variable(&format!("PYTHONUSERBASE={}", base.display())),
        row(&["-O"]),
        row(&["-X", "dev"]),
        row(&["-W", "error"]),
        row(&["-S"]),
        row(&["-bb"]),
        row(&[]).variable("PYTHONOPTIMIZE=2"),
        row(&[]).variable("PYTHONHASHSEED=0"),
        row(&[]).variable("PYTHONUTF8=0"),
        row(&[]).variable("PYTHONWARNINGS=error"),
        row(&[]).variable("LC_ALL=C"),
        row(&[]).variable("LC_ALL=en_US.ISO-8859-1"),
    ];
    for job in &jobs {
        let (warm, cold) = (zygote.clone(job), cold(&zygote, job));
        assert!(cold.out.starts_with("False "), "{job:?}: {cold:?}");
        assert_eq!(warm, cold, "{job:?}");
    }
    // Images have variables that only look like the interpreter's.
    assert!(zygote.clone(&row(&[]).variable("PYTHON_VERSION=3.11")).out.starts_with("True "));
    // Of its own option -E it follows what that means for variables.
    assert!(zygote.clone(&row(&["-E"]).variable("PYTHONOPTIMIZE=2")).out.starts_with("True 0 "));
}

#[test]
fn other_programs_are_executed() {
    let mut zygote = marked();
    let work = zygote.work();
    fs::write(work.join("other.py"), "#!/bin/sh\necho shell $0 $1").unwrap();
    fs::set_permissions(work.join("other.py"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(work.join("pythonic"), "#!/bin/sh\necho not python").unwrap();
    fs::set_permissions(work.join("pythonic"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(work.join("bin")).unwrap();
    symlink("/bin/true", work.join("bin/python3")).unwrap();
    for (arguments, variable) in [
        (&["sh", "-c", "echo $0 $FOO; exit 3", "zero"][..], "FOO=bar"),
        (&["sh", "-c", "env | sort"], "FOO=bar"),
        (&["./other.py", "x"], "FOO="),
        (&["./pythonic", "x"], "FOO="),
        (&["sh", "-c", "kill -PIPE $$; echo survived"], "FOO="),
        (&["sh", "-c", "kill -TERM $$"], "FOO="),
        (&["python3", "--version"], "FOO="),
        (&["python3", "-V"], "FOO="),
        (&["python3", "--no-such-option"], "FOO="),
        (&["python3", "-c"], "FOO="),
        (&["python3", "absent.py"], "FOO="),
        (&["python3"], "FOO="),
    ] {
        let job = Job::program(arguments).variable(variable);
        assert_eq!(zygote.clone(&job), cold(&zygote, &job), "{arguments:?}");
    }
    let job = Job::program(&["python3", "-c", "print(1)"]);
    let second = job.variable(&format!("PATH={}", work.join("bin").display()));
    assert_eq!(zygote.clone(&second).out, "1\n", "of two values the first counts");
    let elsewhere = Job::only(&["python3", "-c", "print(1)"]).variable(&format!("PATH={}", work.join("bin").display()));
    assert_eq!(zygote.clone(&elsewhere), End { code: 0, out: String::new(), err: String::new() });
    // The same file, and other modules.
    fs::create_dir_all(work.join("venv/bin")).unwrap();
    fs::write(work.join("venv/pyvenv.cfg"), "home = /usr/bin\n").unwrap();
    symlink(PYTHON, work.join("venv/bin/python3")).unwrap();
    let virtual_one = work.join("venv/bin/python3").display().to_string();
    let end = zygote.clone(&Job::program(&[&virtual_one, "-c", "import sys; print(sys.prefix)"]));
    assert_eq!(end.out, format!("{}\n", work.join("venv").display()));
}

#[test]
fn a_program_that_is_not_there_ends_127_and_one_that_cannot_be_executed_126() {
    let mut zygote = marked();
    fs::create_dir(zygote.work().join("folder")).unwrap();
    fs::write(zygote.work().join("text"), "no program").unwrap();
    fs::write(zygote.work().join("empty"), "").unwrap();
    fs::set_permissions(zygote.work().join("empty"), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, code, cause) in [
        ("no-such-program", 127, "not found"),
        ("./no-such-program", 127, "not found"),
        ("./text/below", 127, "not found"),
        ("python9.9", 127, "not found"),
        ("./folder", 126, "Permission denied"),
        ("./text", 126, "Permission denied"),
        ("./empty", 126, "Exec format error"),
    ] {
        let end = zygote.clone(&Job::program(&[name]));
        let err = format!("regen_zygote: exec '{name}': {cause}\n");
        assert_eq!(end, End { code, out: String::new(), err });
    }
}

#[test]
fn a_file_of_python_needs_neither_a_first_line_nor_a_right_to_be_executed() {
    let mut zygote = marked();
    let end = zygote.clone(&Job::program(&["twice.py"]));
    assert_eq!(end, End { code: 7, out: "1\n".to_owned(), err: "2\n".to_owned() });
}

#[test]
fn a_job_that_is_damaged_ends_the_clone_with_a_line_and_harms_nobody_else() {
    let mut zygote = marked();
    let good = Job::program(&["python3", "-c", "print(1)"]).bytes();
    let text = |fields: &[&str]| fields.iter().flat_map(|field| field.bytes().chain([0])).collect::<Vec<u8>>();
    let mut rows: Vec<_> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    rows.extend([
        [&good[..], b"more\0"].concat(),
        text(&["regen-job", "2", "1", "true", "0", "0"]),
        text(&["other-job", "1", "1", "true", "0", "0"]),
        text(&["regen-job", "1", "-1", "true", "0", "0"]),
        text(&["regen-job", "1", "999999999999", "true", "0", "0"]),
        text(&["regen-job", "1", "999999999", "true", "0", "0"]),
        text(&["regen-job", "1", "0", "0", "0"]),
        text(&["regen-job", "1", "1", "true", "0", "1", "json:loads"]),
        vec![0; 4096],
        vec![b'x'; 1 << 20],
    ]);
    for row in rows {
        let end = zygote.clone_bytes(&row);
        assert_eq!((end.code, &*end.out), (1, ""), "{:?}", String::from_utf8_lossy(&row));
        assert!(end.err.starts_with("regen_zygote: read the job: ") && end.err.lines().count() == 1, "{}", end.err);
    }
    assert_eq!(zygote.clone_bytes(&good).out, "1\n");
}

#[test]
fn clones_draw_different_random_numbers_and_names() {
    let mut zygote = Zygote::start_in(python(&["--path=.", "--import=random,secrets,tempfile,used"]), |work| {
        // numpy is not installed everywhere: this one has its interface.
        fs::create_dir(work.join("numpy")).unwrap();
        fs::write(work.join("numpy/__init__.py"), "").unwrap();
        let numpy = "import random\nown = random.Random(1)\ndef seed(): own.seed()\ndef rand(): return own.random()";
        fs::write(work.join("numpy/random.py"), numpy).unwrap();
        // As two clones that have the same pid, each in its namespace.
        let used = "import os, random, secrets, tempfile, numpy.random\nos.getpid = lambda: 7\n\
            random.random(); secrets.token_hex(4); tempfile.mktemp()";
        fs::write(work.join("used.py"), used).unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready());
    let draw = "import random, secrets, tempfile, numpy.random as n\n\
        for f in random.random, secrets.token_hex, tempfile.mktemp, n.rand: print(f())";
    let job = Job::program(&["python3", "-c", draw]);
    let (first, second) = (zygote.clone(&job).out, zygote.clone(&job).out);
    assert_eq!(first.lines().count(), 4);
    assert!(first.lines().zip(second.lines()).all(|(one, other)| one != other), "{first}{second}");
}
