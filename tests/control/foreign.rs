//! A client that others have made: zlink.

use std::io::Read;

use regen::control::Limits;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zlink::varlink_service::Proxy;
use zlink::{Call, varlink_service};

use crate::daemon::Daemon;
use crate::harness::World;
use crate::local::Local;

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

#[derive(Debug, Serialize)]
#[serde(tag = "method", content = "parameters")]
enum Method {
    #[serde(rename = "run.regen.Control.GetStatus")]
    GetStatus,
    #[serde(rename = "test.regen.Machine.Count")]
    Count { to: u32 },
    #[serde(rename = "test.regen.Machine.Files")]
    Files,
    #[serde(rename = "test.regen.Machine.Wait")]
    Wait,
    #[serde(rename = "org.varlink.service.GetInterfaceDescription")]
    Describe { interface: u32 },
    #[serde(rename = "no.such.Method")]
    None,
}

#[derive(Debug, Deserialize)]
struct Number {
    number: u32,
}

#[derive(Debug, Deserialize)]
struct Files {
    first: usize,
    second: usize,
}

#[derive(Debug, PartialEq, zlink::ReplyError)]
#[zlink(interface = "test.regen.Machine")]
enum MachineError {
    TooFar { limit: u32 },
}

/// The error of the standard interface that a call ended with: zlink knows them, and tells them apart from those of
/// the interface that was called.
fn standard<T: std::fmt::Debug>(outcome: zlink::Result<T>) -> varlink_service::Error<'static> {
    match outcome {
        Err(zlink::Error::VarlinkService(error)) => error.into_inner(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_standard_interface_is_as_others_know_it() {
    let world = World::new("zlink-standard");
    let daemon = Daemon::start(&world);
    run(async {
        let socket = world.root().join("run.regen.Control");
        let mut connection = zlink::tokio::unix::connect(&socket).await.unwrap();
        let info = connection.get_info().await.unwrap().unwrap();
        assert_eq!((info.product.as_ref(), info.version.as_ref()), ("regen", env!("CARGO_PKG_VERSION")));
        let names: Vec<String> = info.interfaces.iter().map(ToString::to_string).collect();
        assert!(names.len() >= 2);
        for name in names {
            let name = name.as_str().try_into().unwrap();
            let description = connection.get_interface_description(name).await.unwrap().unwrap();
            description.parse().unwrap();
        }
        let refused = connection.get_interface_description("no.such.Interface".try_into().unwrap()).await;
        assert_eq!(
            standard(refused),
            varlink_service::Error::InterfaceNotFound { interface: "no.such.Interface".into() }
        );
        let (answer, _) =
            connection.call_method::<_, Value, MachineError>(&Call::new(Method::GetStatus), vec![]).await.unwrap();
        assert_eq!(answer.unwrap().into_parameters().unwrap()["pid"], daemon.pid());
        let refused = connection.call_method::<_, Value, MachineError>(&Call::new(Method::None), vec![]).await;
        assert_eq!(standard(refused), varlink_service::Error::InterfaceNotFound { interface: "no.such".into() });
        let call = Call::new(Method::Describe { interface: 7 });
        let refused = connection.call_method::<_, Value, MachineError>(&call, vec![]).await;
        assert_eq!(standard(refused), varlink_service::Error::InvalidParameter { parameter: "interface".into() });
    });
}

#[test]
fn streams_errors_and_files_are_as_others_know_them() {
    let server = Local::start(Limits::default());
    run(async {
        let socket = server.root().join("run.regen.Control");
        let mut connection = zlink::tokio::unix::connect(&socket).await.unwrap();
        let call = Call::new(Method::Count { to: 4 }).set_more(true);
        connection.send_call(&call, vec![]).await.unwrap();
        let mut numbers = Vec::new();
        loop {
            let (reply, _) = connection.receive_reply::<Number, MachineError>().await.unwrap();
            let reply = reply.unwrap();
            numbers.push(reply.parameters().unwrap().number);
            if reply.continues() != Some(true) {
                break;
            }
        }
        assert_eq!(numbers, [1, 2, 3, 4]);
        let (reply, _) = connection
            .call_method::<_, Number, MachineError>(&Call::new(Method::Count { to: 1001 }), vec![])
            .await
            .unwrap();
        assert_eq!(reply.unwrap_err(), MachineError::TooFar { limit: 1000 });
        let refused = connection.call_method::<_, Value, MachineError>(&Call::new(Method::Wait), vec![]).await;
        assert_eq!(standard(refused), varlink_service::Error::ExpectedMore);
        let (reply, files) =
            connection.call_method::<_, Files, MachineError>(&Call::new(Method::Files), vec![]).await.unwrap();
        let index = reply.unwrap().into_parameters().unwrap();
        let read = |index: usize| {
            let mut text = String::new();
            std::fs::File::from(files[index].try_clone().unwrap()).read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!((read(index.first), read(index.second)), ("one".to_owned(), "two".to_owned()));
    });
}

#[test]
fn a_stranger_is_refused_as_others_know_it() {
    let server = Local::start(Limits::default());
    let error = regen::sys::credential::with_those_of(54_321, &[54_321], || {
        run(async {
            let socket = server.root().join("run.regen.Control");
            let mut connection = zlink::tokio::unix::connect(&socket).await.unwrap();
            standard(connection.get_info().await)
        })
    });
    assert_eq!(error.unwrap(), varlink_service::Error::PermissionDenied);
}
