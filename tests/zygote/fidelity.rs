//! A copy is a fork in every respect but where it is and what it may.

use std::fs;

use serde_json::json;

use crate::stage::{Stage, alone, copy};

#[test]
fn a_copy_runs_in_its_container_and_its_end_is_told_there() {
    alone("fidelity::a_copy_runs_in_its_container_and_its_end_is_told_there", || {
        let stage = Stage::new("zygote");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        for name in ["a", "b"] {
            let room = stage.room(name, |spec| spec["hostname"] = name.into());
            let kinds = ["pid", "mnt", "net", "ipc", "uts", "cgroup"];
            let link = |kind| fs::read_link(format!("/proc/{}/ns/{kind}", room.sandbox.init.pid())).unwrap();
            let expected = kinds.map(link);
            let seen = copy(&mut held, &room);
            for (kind, expected) in kinds.iter().zip(&expected) {
                assert_eq!(seen[&format!("ns-{kind}")], expected.to_str().unwrap(), "{kind}");
            }
            assert_eq!((&seen["host"][..], &seen["parent"][..], &seen["value"][..]), (name, "1", "42"));
            assert_eq!(seen["session"], seen["pid"]);
            assert_eq!(room.status(), 7);
            stage.world.delete(&room.id);
        }
        stage.close(held, template);
    });
}

#[test]
fn registers_signals_and_restartable_sequences_are_those_of_the_fork() {
    alone("fidelity::registers_signals_and_restartable_sequences_are_those_of_the_fork", || {
        let stage = Stage::new("zygote-state");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let room = stage.room("a", |_| {});
        let seen = copy(&mut held, &room);
        assert_eq!(u32::from_str_radix(&seen["mxcsr"], 16).unwrap() & 0x6000, 0x6000, "rounding");
        let bit = |field: &str, signal: u32| u64::from_str_radix(&seen[field], 16).unwrap() >> (signal - 1) & 1;
        assert_eq!((bit("SigBlk", 12), bit("SigBlk", 10), bit("SigBlk", 15)), (1, 0, 0), "{}", seen["SigBlk"]);
        assert_eq!((bit("SigCgt", 10), bit("SigIgn", 1)), (1, 1));
        assert_eq!((&seen["caught"][..], &seen["cpu"][..], &seen["child"][..]), ("1", "1", "3"));
        assert_eq!(seen["sequences"], "registered");
        assert_eq!(seen["descriptors"], "0 1 2 3", "nothing else of the template's is open");
        stage.world.delete(&room.id);
        stage.close(held, template);
    });
}

#[test]
fn a_copy_is_who_its_own_container_says() {
    alone("fidelity::a_copy_is_who_its_own_container_says", || {
        let stage = Stage::new("zygote-persona");
        let (mut held, template) = stage.template(&["/zygote"], |_| {});
        let room = stage.room("a", |spec| {
            spec["process"]["user"] = json!({"uid": 1234, "gid": 4321, "additionalGids": [77, 5], "umask": 0o27});
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 1000, "hard": 2000}]);
            spec["process"]["cwd"] = "/tmp".into();
            for set in ["inheritable", "ambient"] {
                spec["process"]["capabilities"][set] = json!(["CAP_CHOWN"]);
            }
        });
        let seen = copy(&mut held, &room);
        assert_eq!(seen["Uid"], "1234\t1234\t1234\t1234");
        assert_eq!(seen["Gid"], "4321\t4321\t4321\t4321");
        assert_eq!((&seen["Groups"][..], &seen["Umask"][..], &seen["core"][..]), ("5 77", "0027", "1000 2000"));
        assert_eq!((&seen["cwd"][..], &seen["NoNewPrivs"][..]), ("/tmp", "1"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(seen[set], "0000000000000001", "{set}");
        }
        stage.world.delete(&room.id);
        stage.close(held, template);
    });
}
