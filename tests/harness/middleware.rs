//! Templates of the host's own Python, and functions for their clones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::{Directory, Output, World, eventually};

/// What a template runs that has loaded a few modules.
pub const ZYGOTE: [&str; 5] = ["/usr/bin/python3", "-m", "regen_zygote", "--import", "json,decimal,random"];

impl World {
    /// A bundle with the host's Python as its template program, changed.
    pub fn middleware(&self, change: impl FnOnce(&mut Value)) -> Directory {
        self.python("", |spec| {
            spec["process"]["args"] = json!(ZYGOTE);
            change(spec);
        })
    }

    /// A static program that is a template and knows some primes.
    pub fn primes(&self) -> PathBuf {
        let directory = self.base().join("primes");
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("zygote/examples/c/make"));
        command.arg(&directory);
        self.finish(command).success();
        directory.join("primes")
    }

    /// A directory with one file of Python.
    pub fn function(&self, name: &str, source: &str) -> PathBuf {
        let directory = self.base().join("functions").join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("app.py"), source).unwrap();
        directory
    }

    /// `invoke`
    pub fn invoke(&self, template: &str, function: &str, handler: &str, more: &[&str]) -> Output {
        let arguments = ["invoke", template, "--function", function, "--handler", handler];
        self.regen(&[&arguments, more].concat())
    }
}

impl Daemon<'_> {
    /// `template …`
    pub fn template(&self, arguments: &[&str]) -> Output {
        self.world().regen(&[&["template"], arguments].concat())
    }

    /// Creates a template of the host's Python.
    #[track_caller]
    pub fn create(&self, name: &str, more: &[&str]) -> Value {
        let bundle = self.world().middleware(|_| {});
        let output = self.template(&[&["create", name, "--bundle", bundle.text(), "--json"], more].concat());
        serde_json::from_str(output.success().stdout()).unwrap()
    }

    /// `template ls`, parsed; none without a daemon.
    pub fn templates(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(self.template(&["ls", "--json"]).stdout()).unwrap_or_default();
        list.as_array().cloned().unwrap_or_default()
    }

    /// `template show`, parsed.
    #[track_caller]
    pub fn template_show(&self, name: &str) -> Value {
        serde_json::from_str(self.template(&["show", name, "--json"]).success().stdout()).unwrap()
    }

    /// Waits until this is so of a template; what is shown of it then.
    #[track_caller]
    pub fn await_template(&self, name: &str, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let mut show = Value::Null;
        eventually(what, || {
            show = self.template_show(name);
            so(&show)
        });
        show
    }

    /// Whether some template has files.
    pub fn has_templates(&self) -> bool {
        let owner = self.world().store().join("templates/root");
        fs::read_dir(owner).is_ok_and(|mut entries| entries.next().is_some())
    }
}

/// A pid of what is shown.
pub fn pid(show: &Value, field: &str) -> i32 {
    i32::try_from(show[field].as_i64().unwrap_or_else(|| panic!("no {field}: {show:#}"))).unwrap()
}
