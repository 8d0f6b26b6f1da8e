//! What a person sees of the command line: manual pages and completions, made from the types that parse it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

use clap::CommandFactory;
use regen::cli::Cli;

const REGEN: &str = env!("CARGO_BIN_EXE_regen");

/// Runs the program without any variable but PATH: what is tested here depends on no user and no place.
fn regen(arguments: &[&str]) -> Output {
    let output = Command::new(REGEN).args(arguments).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The names and purposes of all verbs that people use, with their verbs: `ring-log`.
fn verbs(command: &clap::Command, prefix: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = format!("{prefix}-{}", verb.get_name());
        found.extend(verbs(verb, &name));
        found.push((name, verb.get_about().unwrap().to_string()));
    }
    found
}

#[test]
fn every_verb_has_a_manual_page_that_says_what_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("share/man8");
    regen(&["man", pages.to_str().unwrap()]);
    let mut program = Cli::command();
    // A verb has verbs of its own only once it is defined.
    program.build();
    let verbs = verbs(&program, "regen");
    assert!(verbs.iter().any(|(name, _)| name == "regen-ring-rollback"));
    for (name, about) in &verbs {
        let page =
            fs::read_to_string(pages.join(format!("{name}.8"))).unwrap().replace(r"\-", "-").replace(r"\*(Aq", "'");
        assert!(page.contains(about.as_str()), "{name}: {page}");
    }
    let written: BTreeSet<_> =
        fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    let expected = verbs.iter().map(|(name, _)| format!("{name}.8")).chain(["regen.8".into()]).collect();
    assert_eq!(written, expected, "pages of hidden verbs, or of none");
}

#[test]
fn every_shell_gets_a_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = regen(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("rollback") && script.contains("wait-pack"), "{shell}");
    }
}

/// What bash makes of `words` when the last one is to be completed.
fn complete_in_bash(words: &[&str]) -> String {
    let [.., previous, current] = words else { panic!("the program and one more") };
    let all = words.join(" ");
    let script = format!(
        r#"source <({REGEN} completions bash) && COMP_WORDS=({all}) COMP_CWORD={}
           _regen regen {current} {previous}; echo "${{COMPREPLY[*]}}""#,
        words.len() - 1,
    );
    let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn bash_reads_the_script_and_completes_verbs_and_flags() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("regen.bash");
    fs::write(&script, regen(&["completions", "bash"]).stdout).unwrap();
    let output = Command::new("bash").arg("-n").arg(&script).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(complete_in_bash(&["regen", "ring", "roll"]), "rollback");
    assert_eq!(complete_in_bash(&["regen", "run", "--wait"]), "--wait-pack");
    assert_eq!(complete_in_bash(&["regen", "wor"]), "");
}

#[test]
fn a_user_whom_nobody_knows_is_served_like_any_other() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    // A copy that others may reach: the directories above the one under test may be private.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("regen");
    // By a process of its own: what another test forks while we had it open for writing would keep it from being executed.
    assert!(Command::new("cp").args([REGEN.as_ref(), copy.as_os_str()]).status().unwrap().success());
    let nowhere = directory.path().join("nowhere");
    let mut command = Command::new(&copy);
    command.args(["--root".as_ref(), nowhere.as_os_str(), "--store".as_ref(), nowhere.as_os_str()]);
    command.args(["ring", "ls", "--json"]).uid(4_000_123).gid(4_000_123).current_dir("/");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}
