use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Value, json};

use super::*;
use crate::control::client::{Client, Reply};
use crate::control::{Access, Answer, Call, Catalog, Fault, Gauge, Interface, Limits, Mode, SERVICE, SOCKET, Server};
use crate::error::Kind;
use crate::service::roster::Roster;
use crate::sys::fs::open_path;
use crate::sys::stream::StreamListener;

/// The methods alone.
#[derive(Debug)]
struct Versions(Arc<Roster>);

impl Interface for Versions {
    fn name(&self) -> &'static str {
        SERVICE
    }

    fn description(&self) -> &'static str {
        ""
    }

    fn access(&self, method: &str) -> Option<Access> {
        access(method)
    }

    fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        super::call((&self.0, None), call)
    }
}

/// A daemon that knows nothing but who serves, for as long as `work` takes.
fn with_daemon<T>(roster: &Arc<Roster>, work: impl FnOnce(&dyn Fn() -> Client) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    let listener = StreamListener::replace(open_path(directory.path()).unwrap(), SOCKET, 0o600).unwrap();
    let interface = Versions(roster.clone());
    let catalog = Catalog::new(vec![Box::new(interface)]);
    let mut server = Server::new(listener, catalog, &Gauge::new(Limits::default())).unwrap();
    let end = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    std::thread::scope(|scope| {
        // Also if the work panics, or the scope would wait for the server for ever.
        struct Ring<'a>(&'a OwnedFd);
        impl Drop for Ring<'_> {
            fn drop(&mut self) {
                rustix::io::write(self.0, &1_u64.to_ne_bytes()).unwrap();
            }
        }
        scope.spawn(|| {
            server.serve(&end).unwrap();
            server.stop(Duration::from_secs(60)).unwrap();
        });
        let _ring = Ring(&end);
        work(&|| Client::connect(directory.path()).unwrap())
    })
}

fn member(version: &str, generation: u32, address: &str) -> roster::Member {
    let name: Name = "orders".parse().unwrap();
    roster::Member {
        instance: format!("orders-{version}-{generation}").parse().unwrap(),
        version: version.parse().unwrap(),
        listen: vec![Listen::parse(address, &name).unwrap()],
        name,
    }
}

fn ask<T: serde::de::DeserializeOwned>(
    client: &mut Client,
    method: &str,
    question: &Value,
) -> crate::error::Result<(T, Vec<OwnedFd>)> {
    client.call(method, question)
}

fn next_news(client: &mut Client) -> News {
    match client.receive().unwrap() {
        Reply::Answer { parameters, .. } => serde_json::from_str(parameters.get()).unwrap(),
        refusal @ Reply::Refusal { .. } => panic!("{refusal:?}"),
    }
}

fn versions(news: &News) -> Vec<String> {
    news.state.iter().flatten().map(|member| member.version.to_string()).collect()
}

fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| format!("{:?} {}", change.change, change.member.version)).collect()
}

#[test]
fn a_version_is_resolved_to_where_clients_can_connect() {
    let roster = Roster::new();
    roster.add(member("1.2.0", 1, "tcp://0.0.0.0:80"));
    with_daemon(&roster, |connect| {
        let mut client = connect();
        let (answer, _) =
            ask::<Value>(&mut client, method::RESOLVE, &json!({"name": "orders", "requirement": "1"})).unwrap();
        assert_eq!(
            answer,
            json!({
                "name": "orders", "version": "1.2.0", "instance": "orders-1.2.0-1", "address": "tcp://127.0.0.1:80",
                "addresses": [{"name": "orders", "address": "tcp://127.0.0.1:80"}],
            })
        );
        let refusal =
            |client: &mut Client, question: Value| ask::<Value>(client, method::RESOLVE, &question).unwrap_err();
        let error = refusal(&mut client, json!({"name": "orders", "requirement": "^3"}));
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().ends_with("satisfies ^3: there is 1.2.0"), "{error}");
        for (question, parameter) in [
            (json!({}), "name"),
            (json!({"name": "a b"}), "name"),
            (json!({"name": "orders", "requirement": "latest"}), "requirement"),
            (json!({"name": "orders", "requirement": 1}), "requirement"),
        ] {
            client.send(method::RESOLVE, &question, Mode::Once).unwrap();
            let Reply::Refusal { name, parameters } = client.receive().unwrap() else { panic!("{question}") };
            assert_eq!(
                (name.as_str(), &parameters["parameter"]),
                ("org.varlink.service.InvalidParameter", &json!(parameter))
            );
        }
    });
}

#[test]
fn a_connected_socket_comes_with_the_answer() {
    let roster = Roster::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    roster.add(member("1.2.0", 1, &format!("tcp://{place}")));
    with_daemon(&roster, |connect| {
        let (connected, mut files) =
            ask::<Connected>(&mut connect(), method::CONNECT, &json!({"name": "orders"})).unwrap();
        assert_eq!((connected.fd_index, files.len(), connected.member.version.minor), (0, 1, 2));
        assert_eq!(TcpStream::from(files.remove(0)).peer_addr().unwrap(), place);
        let question = json!({"name": "orders", "listen": "admin"});
        let error = ask::<Connected>(&mut connect(), method::CONNECT, &question).unwrap_err();
        assert!(error.to_string().contains("no address named 'admin', only 'orders'"), "{error}");
    });
}

#[test]
fn a_watcher_is_told_the_state_and_then_what_concerns_it() {
    let roster = Roster::new();
    roster.add(member("1.0.0", 1, "auto"));
    roster.add(member("2.0.0", 1, "auto"));
    with_daemon(&roster, |connect| {
        let mut client = connect();
        let question = json!({"name": "orders", "requirement": "^1"});
        let error = ask::<News>(&mut client, method::WATCH, &question).unwrap_err();
        assert!(error.to_string().contains("ExpectedMore"), "{error}");
        client.send(method::WATCH, &question, Mode::More).unwrap();
        let first = next_news(&mut client);
        assert_eq!((first.number, versions(&first), first.changes), (2, vec!["1.0.0".to_owned()], None));
        roster.add(member("2.1.0", 1, "auto"));
        roster.replace(&"orders-1.0.0-1".parse().unwrap(), member("1.1.0", 2, "auto"));
        let second = next_news(&mut client);
        assert_eq!((second.number, second.state), (5, None));
        assert_eq!(lines(&second.changes.unwrap()), ["Added 1.1.0", "Withdrawn 1.0.0"]);
    });
}

#[test]
fn a_watcher_that_does_not_read_is_given_the_state_again_and_costs_no_memory() {
    let roster = Roster::new();
    roster.add(member("1.0.0", 0, "auto"));
    with_daemon(&roster, |connect| {
        let (mut slow, mut copy) = (connect(), Copy::default());
        slow.send(method::WATCH, &json!({}), Mode::More).unwrap();
        copy.hear(next_news(&mut slow));
        // What of it fits into the socket waits there.
        for generation in 1..10_000 {
            roster.add(member("1.0.0", generation, "auto"));
        }
        roster.add(member("1.1.0", 0, "auto"));
        roster.withdraw(&"orders-1.0.0-9999".parse().unwrap());
        let mut states = 0;
        loop {
            let news = next_news(&mut slow);
            states += usize::from(news.state.is_some());
            let number = news.number;
            copy.hear(news);
            if number == roster.snapshot().number() {
                break;
            }
        }
        assert_ne!(states, 0);
        let found = copy.find(&"orders".parse().unwrap());
        assert_eq!(found.iter().map(|member| member.instance.as_str()).collect::<Vec<_>>(), ["orders-1.1.0-0"]);
    });
}

#[test]
fn who_hangs_up_is_forgotten_although_nothing_changes() {
    let roster = Roster::new();
    with_daemon(&roster, |connect| {
        let mut client = connect();
        client.send(method::WATCH, &json!({}), Mode::More).unwrap();
        next_news(&mut client);
        let listeners = Arc::strong_count(&roster);
        drop(client);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Arc::strong_count(&roster) == listeners {
            assert!(Instant::now() < deadline, "the subscription stays");
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_copy_tells_of_a_state_only_what_is_new() {
    let of = |version: &str, generation| {
        let member = member(version, generation, "auto");
        Member::of(&member, &member.listen[0])
    };
    let state = |members: &[Member]| News { number: 0, state: Some(members.to_vec()), changes: None };
    let mut copy = Copy::default();
    assert_eq!(lines(&copy.hear(state(&[of("1.0.0", 1), of("2.0.0", 1)]))), ["Added 1.0.0", "Added 2.0.0"]);
    assert!(copy.hear(state(&[of("1.0.0", 1), of("2.0.0", 1)])).is_empty());
    let changes = copy.hear(state(&[of("1.1.0", 1), of("2.0.0", 2)]));
    assert_eq!(lines(&changes), ["Added 1.1.0", "Added 2.0.0", "Withdrawn 1.0.0"]);
    let change = |change, member| News { number: 0, state: None, changes: Some(vec![Change { change, member }]) };
    copy.hear(change(What::Added, of("2.0.0+b", 1)));
    let found = |copy: &Copy, wanted: &str| -> Vec<String> {
        copy.find(&wanted.parse().unwrap()).iter().map(|member| member.version.to_string()).collect()
    };
    assert_eq!(found(&copy, "orders"), ["2.0.0", "2.0.0+b"]);
    copy.hear(change(What::Withdrawn, of("2.0.0", 1)));
    assert_eq!((found(&copy, "orders"), found(&copy, "orders@^1")), (vec!["2.0.0+b".into()], vec!["1.1.0".into()]));
    assert!(found(&copy, "orders@3").is_empty() && found(&copy, "users").is_empty());
}
