//! Calls and answers.

use serde_json::json;

use crate::caller::status;
use crate::daemon::Daemon;
use crate::harness::World;

#[test]
fn calls_that_come_together_are_answered_in_their_order() {
    let world = World::new("pipeline");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    let names = ["run.regen.Control", "no.such.Interface", "org.varlink.service"];
    for name in names {
        let parameters = json!({"interface": name});
        caller.send(&json!({"method": "org.varlink.service.GetInterfaceDescription", "parameters": parameters}));
    }
    let answers: Vec<_> = names.iter().map(|_| caller.receive().unwrap()).collect();
    assert!(answers[0]["parameters"]["description"].as_str().unwrap().contains("interface run.regen.Control\n"));
    assert_eq!(answers[1]["error"], "org.varlink.service.InterfaceNotFound");
    assert_eq!(answers[1]["parameters"]["interface"], "no.such.Interface");
    assert!(answers[2]["parameters"]["description"].as_str().unwrap().contains("interface org.varlink.service\n"));
}

#[test]
fn a_call_may_come_in_any_pieces_and_with_the_beginning_of_the_next() {
    use std::io::Write;
    let world = World::new("pieces");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    let text = format!("{}\0{}\0", status(), status());
    for piece in text.as_bytes().chunks(7) {
        caller.stream.write_all(piece).unwrap();
    }
    for _ in 0..2 {
        assert_eq!(caller.receive().unwrap()["parameters"]["pid"], daemon.pid());
    }
    // Who says that nothing more will come still gets what was asked for.
    caller.send(&status());
    caller.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(caller.receive().unwrap()["parameters"]["pid"], daemon.pid());
    assert_eq!(caller.receive(), None);
}

#[test]
fn a_oneway_call_is_answered_by_nothing_not_even_an_error() {
    let world = World::new("oneway");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    caller.send(&json!({"method": "run.regen.Control.GetStatus", "oneway": true}));
    caller.send(&json!({"method": "no.such.Method", "oneway": true, "more": true}));
    let info = caller.call(&json!({"method": "org.varlink.service.GetInfo"}));
    assert_eq!(info["product"], "regen");
}

#[test]
fn errors_say_what_was_wrong() {
    let world = World::new("errors");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    let method = "org.varlink.service.GetInterfaceDescription";
    for (call, name, field, value) in [
        (json!({"method": "Nothing"}), "InterfaceNotFound", "interface", "Nothing"),
        (json!({"method": "run.regen.Control.Nope"}), "MethodNotFound", "method", "run.regen.Control.Nope"),
        (json!({"method": method}), "InvalidParameter", "parameter", "interface"),
        (json!({"method": method, "parameters": {"interface": 7}}), "InvalidParameter", "parameter", "interface"),
        (json!({"method": method, "parameters": [1]}), "InvalidParameter", "parameter", ""),
        (json!({"method": method, "upgrade": true}), "MethodNotImplemented", "method", method),
    ] {
        caller.send(&call);
        let (found, parameters) = caller.error();
        assert_eq!(found, format!("org.varlink.service.{name}"), "{call}");
        assert_eq!(parameters[field], value, "{call}");
    }
    for nonsense in ["", "{", "[]", "\"x\"", "{\"method\": null}", "{\"method\": \"a.B\"} x", "\u{1}\u{2}"] {
        let mut caller = daemon.connect();
        std::io::Write::write_all(&mut caller.stream, format!("{nonsense}\0").as_bytes()).unwrap();
        caller.is_closed_with("run.regen.Control.InvalidMessage");
    }
}

#[test]
fn a_person_calls_by_hand() {
    let world = World::new("by-hand");
    let daemon = Daemon::start(&world);
    let output = world.regen(&["call", "run.regen.Control.GetStatus"]);
    assert!(output.success().stdout().contains(&format!("\n  \"pid\": {},\n", daemon.pid())), "{}", output.stdout());
    let output = world.regen(&["call", "--json", "org.varlink.service.GetInfo"]);
    assert_eq!(output.success().stdout().lines().count(), 1);
    let info: serde_json::Value = serde_json::from_str(output.stdout()).unwrap();
    for interface in info["interfaces"].as_array().unwrap() {
        let name = interface.as_str().unwrap();
        let output = world.regen(&["call", name]);
        assert!(output.success().stdout().contains(&format!("\ninterface {name}\n")), "{}", output.stdout());
        let text = world.regen(&["call", "org.varlink.service.GetInterfaceDescription", &format!("interface={name}")]);
        let parsed: serde_json::Value = serde_json::from_str(text.success().stdout()).unwrap();
        assert_eq!(parsed["description"].as_str().unwrap().trim_end(), output.stdout().trim_end());
    }
    world.regen(&["call", "run.regen.Control.Nope", "a=1"]).fails_with(
        1,
        r#"call run.regen.Control.Nope: org.varlink.service.MethodNotFound {"method":"run.regen.Control.Nope"}"#,
    );
    world.regen(&["call", "run.regen.Control.GetStatus", "nonsense"]).fails_with(2, "not KEY=VALUE");
}
