//! What a template does while it loads works as without its keeper, and so does what its container refuses it.

use serde_json::{Value, json};

use crate::stage::{Stage, alone, copy, fork, furnish, hear};

/// As engines write it: everything but a few calls.
fn filter(refused: &str) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [refused], "action": "SCMP_ACT_ERRNO"}]})
}

#[test]
fn shells_pipes_and_children_during_the_load_work() {
    alone("load::shells_pipes_and_children_during_the_load_work", || {
        let stage = Stage::new("zygote-shell");
        for (mode, value) in [("shell", "42"), ("fork", "5")] {
            let (mut held, template) = stage.template(&["/zygote", mode], |_| {});
            let room = stage.room(mode, |_| {});
            assert_eq!(copy(&mut held, &room)["value"], value, "{mode}");
            stage.world.delete(&room.id);
            stage.close(held, template);
        }
    });
}

#[test]
fn a_template_with_threads_is_copied_with_the_one_that_forks() {
    alone("load::a_template_with_threads_is_copied_with_the_one_that_forks", || {
        let stage = Stage::new("zygote-threads");
        let (mut held, template) = stage.template(&["/zygote", "threads"], |_| {});
        for name in ["a", "b"] {
            let room = stage.room(name, |_| {});
            let seen = copy(&mut held, &room);
            assert_eq!((&seen["Threads"][..], &seen["value"][..], room.status()), ("1", "42", 7));
            stage.world.delete(&room.id);
        }
        stage.close(held, template);
    });
}

#[test]
fn a_template_has_the_rights_of_its_container_and_no_others() {
    alone("load::a_template_has_the_rights_of_its_container_and_no_others", || {
        let stage = Stage::new("zygote-rights");
        let (held, template) = stage.template(&["/zygote"], |spec| {
            spec["process"]["user"] = json!({"uid": 1234, "gid": 4321, "additionalGids": [5]});
            spec["linux"]["seccomp"] = filter("mkdir");
        });
        let status = |field| crate::harness::process_status(held.process().pid(), field);
        assert_eq!((&status("Uid")[..], &status("Gid")[..]), ("1234\t1234\t1234\t1234", "4321\t4321\t4321\t4321"));
        assert_eq!((&status("Groups")[..], &status("CapEff")[..]), ("5", "0000000000000000"));
        assert_eq!((&status("CapPrm")[..], &status("NoNewPrivs")[..]), ("0000000000000000", "1"));
        assert_eq!(status("Seccomp_filters"), "2", "its own and that for its forks");
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        assert_eq!(namespace(held.process().pid()), namespace(template.sandbox.init.pid()));
        stage.close(held, template);
    });
}

#[test]
fn a_copy_is_confined_by_the_filter_of_its_own_container_alone() {
    alone("load::a_copy_is_confined_by_the_filter_of_its_own_container_alone", || {
        let stage = Stage::new("zygote-filter");
        let (mut held, template) = stage.template(&["/zygote"], |spec| spec["linux"]["seccomp"] = filter("mkdir"));
        for (name, gain) in [("safe", false), ("free", true)] {
            let room = stage.room(name, |spec| {
                spec["process"]["noNewPrivileges"] = (!gain).into();
                spec["linux"]["seccomp"] = filter("getcwd");
            });
            let seen = copy(&mut held, &room);
            assert_eq!(seen["Seccomp_filters"], "1", "{name}");
            assert_eq!(seen["cwd"], "Operation not permitted", "{name}");
            assert_eq!(seen["NoNewPrivs"], if gain { "0" } else { "1" });
            // Those of the harness: CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, MKNOD, AUDIT_WRITE.
            assert_eq!((&seen["CapPrm"][..], &seen["CapBnd"][..]), ("00000000280000eb", "00000000280000eb"), "{name}");
            stage.world.delete(&room.id);
        }
        stage.close(held, template);
    });
}

#[test]
fn a_copy_has_what_a_container_that_starts_cold_has() {
    alone("load::a_copy_has_what_a_container_that_starts_cold_has", || {
        let stage = Stage::new("zygote-cold");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let users: [fn(&mut Value); 3] = [
            |_| {},
            |spec| spec["process"]["noNewPrivileges"] = false.into(),
            |spec| {
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7]});
                spec["process"]["noNewPrivileges"] = false.into();
                spec["linux"]["seccomp"] = filter("mkdir");
            },
        ];
        for (number, user) in users.into_iter().enumerate() {
            let room = stage.room(&format!("warm{number}"), user);
            let warm = copy(&mut held, &room);
            stage.world.delete(&room.id);
            let bundle = stage.world.bundle(|spec| {
                user(spec);
                spec["process"]["args"] = json!(["/bin/cat", "/proc/self/status"]);
            });
            let id = stage.world.id("cold");
            let output = stage.world.regen(&["run", "--bundle", bundle.text(), &id]);
            let cold = crate::stage::fields(output.success().stdout());
            let fields = ["Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
            for field in
                fields.into_iter().chain(["NoNewPrivs", "Seccomp", "Seccomp_filters", "CoreDumping", "THP_enabled"])
            {
                assert_eq!(warm.get(field), cold.get(field), "{field} of {number}");
            }
        }
        stage.close(held, template);
    });
}

#[test]
fn places_are_made_ahead_and_used_in_any_order() {
    alone("load::places_are_made_ahead_and_used_in_any_order", || {
        let stage = Stage::new("zygote-pool");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let rooms = ["a", "b", "c"].map(|name| stage.room(name, |spec| spec["hostname"] = name.into()));
        let guests = rooms.each_ref().map(|room| room.prepare(&mut held).unwrap());
        for (room, mut guest) in rooms.iter().zip(guests).rev() {
            let mut reader = furnish(&mut held, &mut guest).unwrap();
            fork(&mut held, guest).unwrap();
            assert!(hear(&mut held).starts_with("forked 1 "));
            let text = std::io::read_to_string(&mut reader).unwrap();
            assert!(text.contains(&format!("host: {}\n", room.id.rsplit('-').next().unwrap())), "{text}");
            stage.world.delete(&room.id);
        }
        stage.close(held, template);
    });
}
