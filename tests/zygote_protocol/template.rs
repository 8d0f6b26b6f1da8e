//! A template's own life: from its start to its end.

use std::fs;

use crate::peer::{Job, Zygote, python, until, wait};

#[test]
fn a_template_is_ready_after_its_imports_and_forks_as_often_as_it_is_asked() {
    let mut zygote = Zygote::python(&["--import", "json,textwrap", "--import=string"]);
    for word in ["one", "two", "three"] {
        let job = Job::program(&["python3", "-c", "import sys; print(sys.argv[1], 'textwrap' in sys.modules)", word]);
        let end = zygote.clone(&job);
        assert_eq!((end.code, end.out, end.err), (0, format!("{word} True\n"), String::new()));
    }
    assert_eq!(zygote.out(), "one True\ntwo True\nthree True\n");
    // What the template has is no garbage, and is not looked at.
    let job = Job::program(&["python3", "-c", "import gc; print(gc.get_freeze_count() > 1000, gc.isenabled())"]);
    assert_eq!(zygote.clone(&job).out, "True True\n");
}

#[test]
fn clones_run_side_by_side_and_outlive_nothing_of_each_other() {
    let mut zygote = Zygote::python(&[]);
    let script = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.001)\nprint('gone')";
    let waiting = zygote.fork(&Job::program(&["python3", "-c", script]).bytes());
    // Both have read their jobs from one file: the second is written when the first has been read.
    until("the job is read", || fs::read_link(format!("/proc/{waiting}/fd/3")).is_err());
    assert_eq!(zygote.clone(&Job::program(&["python3", "-c", "print('quick')"])).out, "quick\n");
    fs::write(zygote.work().join("go"), "").unwrap();
    assert_eq!(wait(waiting), 0);
    assert_eq!(zygote.out(), "quick\ngone\n");
}

#[test]
fn a_template_ends_when_regen_closes_the_socket() {
    let mut zygote = Zygote::python(&["--import", "json"]);
    zygote.hang_up();
    assert_eq!(zygote.end().code(), Some(0));
    assert_eq!(zygote.err(), "");
}

#[test]
fn an_import_that_fails_is_told_by_name() {
    for (name, cause) in [
        ("absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
        ("broken", "ZeroDivisionError: division by zero"),
        ("leaving", "SystemExit: 0"),
        ("lacking", "ModuleNotFoundError: No module named 'other_absent'"),
    ] {
        let mut zygote = Zygote::start_in(python(&["--path", ".", "--import", &format!("json,{name}")]), |work| {
            fs::write(work.join("broken.py"), "1 / 0").unwrap();
            fs::write(work.join("leaving.py"), "import sys; sys.exit(0)").unwrap();
            fs::write(work.join("lacking.py"), "import other_absent").unwrap();
        });
        assert_eq!(zygote.receive(), "");
        assert_eq!(zygote.end().code(), Some(1));
        let err = zygote.err();
        assert_eq!(err.lines().last(), Some(&*format!("regen_zygote: import '{name}': {cause}")), "{err}");
    }
}

#[test]
fn a_version_that_it_does_not_know_is_refused_with_both_named() {
    for version in ["2", "", "1 ", "one"] {
        let mut command = python(&[]);
        command.env("REGEN_OCI_ZYGOTE", version);
        let mut zygote = Zygote::start(command);
        assert_eq!(zygote.receive(), "");
        assert_eq!(zygote.end().code(), Some(1));
        let line =
            format!("regen_zygote: regen speaks version {version} of the zygote protocol, this module version 1: ");
        let err = zygote.err();
        assert!(err.starts_with(&line) && err.lines().count() == 1, "{err}");
    }
}

#[test]
fn a_wrong_start_is_wrong_usage() {
    let mut started = vec![(python(&["--import"]), "--import"), (python(&["--unknown", "x"]), "--unknown")];
    let mut alone = python(&[]);
    alone.env_remove("REGEN_OCI_ZYGOTE");
    started.push((alone, "REGEN_OCI_ZYGOTE is not set"));
    for (command, words) in started {
        let mut zygote = Zygote::start(command);
        assert_eq!(zygote.end().code(), Some(2));
        assert!(zygote.err().starts_with(&format!("regen_zygote: {words}")), "{}", zygote.err());
    }
}

#[test]
fn what_the_protocol_does_not_have_ends_the_template() {
    let long = [b"fork ".to_vec(), vec![b'1'; 5000]].concat();
    let garbage: [&[u8]; 8] = [b"fork", b"fork x", b"fork -1", b"fork 1 2", b"frok 1", b"\xff\0\n", b"fork 1\0", &long];
    for message in garbage {
        let mut zygote = Zygote::python(&[]);
        zygote.send(message);
        assert_eq!(zygote.receive(), "");
        assert_eq!(zygote.end().code(), Some(1));
        let err = zygote.err();
        assert!(err.starts_with("regen_zygote: regen sent ") && err.lines().count() == 1, "{err}");
    }
}

#[test]
fn a_fork_that_fails_is_answered_and_the_template_goes_on() {
    let module = "import os\nfork, calls = os.fork, []\ndef failing():\n    calls.append(1)\n    \
        if len(calls) == 1: raise OSError(11, 'no')\n    return fork()\nos.fork = failing";
    let mut zygote = Zygote::start_in(python(&["--path=.", "--import=scarce"]), |work| {
        fs::write(work.join("scarce.py"), module).unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready());
    zygote.send(b"fork 77");
    assert_eq!(zygote.receive(), "failed 77 EAGAIN");
    assert_eq!(zygote.clone(&Job::program(&["python3", "-c", "print(1)"])).out, "1\n");
}

#[test]
fn threads_that_modules_begin_are_told_of_once() {
    let module = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()";
    let mut zygote = Zygote::start_in(python(&["--path=.", "--import=busy"]), |work| {
        fs::write(work.join("busy.py"), module).unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready());
    let job = Job::program(&["python3", "-c", "import threading; print(threading.active_count())"]);
    for _ in 0..2 {
        assert_eq!(zygote.clone(&job).out, "1\n");
    }
    let err = zygote.err();
    assert!(err.starts_with("regen_zygote: warning: threads besides the main one: 1; "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    // They do not hold its end up either.
    zygote.hang_up();
    assert_eq!(zygote.end().code(), Some(0));
}

#[test]
fn modules_see_nothing_of_the_protocol() {
    let module = "import os, sys\nprint([name for name in os.environ if 'REGEN' in name], sys.argv, sys.path[0])";
    let mut zygote = Zygote::start_in(python(&["--path=.", "--import=curious"]), |work| {
        fs::write(work.join("curious.py"), module).unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready());
    assert_eq!(zygote.out(), format!("[] [''] {}\n", zygote.work().display()));
}

#[test]
fn what_a_module_began_to_write_is_written_once() {
    let module = "file = open('begun', 'w')\nfile.write('once')\nprint('loaded ', end='')";
    let mut zygote = Zygote::start_in(python(&["--path=.", "--import=writer"]), |work| {
        fs::write(work.join("writer.py"), module).unwrap();
    });
    assert_eq!(zygote.receive(), zygote.python_ready());
    for _ in 0..2 {
        assert_eq!(zygote.clone(&Job::program(&["python3", "-c", "print(1)"])).out, "1\n");
        assert_eq!(zygote.clone(&Job::program(&["sh", "-c", "echo 2"])).out, "2\n");
    }
    assert_eq!(fs::read_to_string(zygote.work().join("begun")).unwrap(), "once");
    assert_eq!(zygote.out(), "loaded 1\n2\n1\n2\n");
}
