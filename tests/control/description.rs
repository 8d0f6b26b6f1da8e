//! What the interfaces say of themselves, read by zlink's parser, and what the daemon does.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use zlink::idl::Interface;

use crate::daemon::Daemon;
use crate::harness::World;

fn names<'a>(fields: impl Iterator<Item = &'a zlink::idl::Field<'a>>) -> BTreeSet<String> {
    fields.map(|field| field.name().to_string()).collect()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn what_is_answered_has_the_fields_that_are_described() {
    let world = World::new("described");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    let calls = [
        ("org.varlink.service.GetInfo", json!({})),
        ("org.varlink.service.GetInterfaceDescription", json!({"interface": "run.regen.Control"})),
        ("run.regen.Control.GetStatus", json!({})),
    ];
    for (method, parameters) in calls {
        let (interface, short) = method.rsplit_once('.').unwrap();
        let text = caller.call(&json!({"method": "org.varlink.service.GetInterfaceDescription",
            "parameters": {"interface": interface}}));
        let text = text["description"].as_str().unwrap().to_owned();
        let described = Interface::try_from(text.as_str()).unwrap();
        assert_eq!(described.name().to_string(), interface);
        let known = described.methods().find(|known| *known.name() == short).unwrap();
        assert_eq!(names(known.inputs()), keys(&parameters), "{method}");
        let answer = caller.call(&json!({"method": method, "parameters": parameters}));
        assert_eq!(names(known.outputs()), keys(&answer), "{method}");
    }
}

#[test]
fn every_method_that_is_described_is_there_and_no_other() {
    let world = World::new("methods");
    let daemon = Daemon::start(&world);
    let mut caller = daemon.connect();
    let info = caller.call(&json!({"method": "org.varlink.service.GetInfo"}));
    for interface in info["interfaces"].as_array().unwrap() {
        let text = caller.call(&json!({"method": "org.varlink.service.GetInterfaceDescription",
            "parameters": {"interface": interface}}));
        let text = text["description"].as_str().unwrap().to_owned();
        let described = Interface::try_from(text.as_str()).unwrap();
        let interface = interface.as_str().unwrap();
        for method in described.methods() {
            // No parameter of ours is a text that is a list: whatever else is wrong, it is known.
            caller.send(&json!({"method": format!("{interface}.{}", method.name()), "parameters": []}));
            let answer = caller.receive().unwrap();
            assert_ne!(answer["error"], "org.varlink.service.MethodNotFound", "{}", method.name());
        }
        caller.send(&json!({"method": format!("{interface}.NoSuchMethod")}));
        assert_eq!(caller.error().0, "org.varlink.service.MethodNotFound");
        if interface == "run.regen.Control" {
            let errors: BTreeSet<_> = described.errors().map(|error| error.name().to_string()).collect();
            let expected =
                ["InvalidMessage", "MessageIncomplete", "MessageTooLarge", "OutOfResources", "TooManyConnections"];
            assert_eq!(errors, expected.map(str::to_owned).into());
        }
    }
}
