//! Whatever a registry answers, nothing of it is used that is not what it should be, and the store stays as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::liar::{Answer, Asked, Liar};
use super::{PLAIN, found, grow};
use crate::harness::World;

/// A world with a ring of two packed entries, whose layout is what the registry has.
fn source(name: &str) -> World {
    let world = World::new(name);
    grow(&world, "a", 1..=2);
    world.pack();
    world
}

/// The digest of the newest entry's own layer.
fn top(world: &World) -> String {
    let digest = world.ring_json(&["show", "a"])["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    let manifest = world.ring_file("a", &format!("blobs/sha256/{digest}"));
    manifest["layers"][1]["digest"].as_str().unwrap().to_owned()
}

/// A pull fails with these words, and leaves nothing.
#[track_caller]
fn refuses(words: &str, world: &World, twist: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static) -> Liar {
    let liar = Liar::start(&world.ring_directory("a"), twist);
    let target = World::new("to");
    target.ring(&["pull", &liar.reference(), "b", PLAIN]).fails_with(1, words);
    assert_eq!(target.ring_json(&["ls"]), json!([]));
    assert_eq!(target.layers(), [""; 0]);
    liar
}

/// The same answer but for a blob.
fn for_blob<C: Fn(Answer) -> Answer + Send + Sync>(
    digest: &str,
    change: C,
) -> impl Fn(&Asked, Answer) -> Answer + use<C> {
    let end = format!("/blobs/{digest}");
    move |asked, answer| if asked.path.ends_with(&end) { change(answer) } else { answer }
}

/// Manifests with something else in them, under digests that are right.
fn for_manifests(change: impl Fn(&mut Value) + Send + Sync) -> impl Fn(&Asked, Answer) -> Answer {
    move |asked, answer| {
        if !asked.path.contains("/manifests/2") && !asked.path.contains("/manifests/sha256") {
            return answer;
        }
        let mut manifest: Value = serde_json::from_slice(&answer.body).unwrap();
        change(&mut manifest);
        let body = manifest.to_string();
        let digest = crate::harness::image::digest(body.as_bytes());
        Answer::new(200, body).with(&format!("Docker-Content-Digest: {digest}"))
    }
}

#[test]
fn an_honest_registry_is_believed() {
    let (world, target) = (source("honest"), World::new("to"));
    let liar = Liar::start(&world.ring_directory("a"), |_, answer| answer);
    target.ring(&["pull", &liar.reference(), "b", PLAIN]).success();
    assert_eq!(found(&target, "b"), "1 2");
}

#[test]
fn a_blob_that_is_another_one_is_refused() {
    let world = source("digest");
    refuses(
        "has digest sha256:",
        &world,
        for_blob(&top(&world), |mut answer| {
            answer.body[0] ^= 1;
            answer
        }),
    );
}

#[test]
fn a_blob_without_an_end_is_refused() {
    let world = source("endless");
    let endless = |answer| Answer { endless: true, ..answer };
    refuses("the registry sends more than its", &world, for_blob(&top(&world), endless));
    refuses("it has more than", &world, |asked, answer| {
        let endless = asked.method == "GET" && asked.path.contains("/manifests/sha256");
        Answer { endless, ..answer }
    });
}

#[test]
fn a_blob_that_always_breaks_off_is_refused() {
    let world = source("short");
    refuses("blob sha256:", &world, for_blob(&top(&world), |answer| Answer { cut: Some(1), ..answer }));
}

#[test]
fn a_manifest_that_is_not_what_its_tag_was_is_refused() {
    let world = source("swap");
    // HEAD and GET tell of different ones.
    refuses("has digest sha256:", &world, |asked, answer| {
        let swap = asked.method == "GET" && asked.path.contains("/manifests/sha256");
        if swap { Answer { body: [&answer.body[..], b" "].concat(), ..answer } } else { answer }
    });
}

#[test]
fn an_entry_that_contradicts_itself_is_refused() {
    let world = source("lies");
    // Each is fetched by the digest of its tag, so the lie has to be in both.
    let lie = |change: fn(&mut Value)| for_manifests(change);
    for (words, change) in [
        ("it is that of another entry", (|m| m["annotations"]["run.regen.entry.seq"] = json!("9")) as fn(&mut Value)),
        ("its reason is unknown", |m| m["annotations"]["run.regen.entry.reason"] = json!("magic")),
        ("it has no base", |m| drop(m["annotations"].as_object_mut().unwrap().remove("run.regen.entry.base"))),
        ("no text of one line", |m| m["annotations"]["run.regen.entry.base"] = json!("a\nb")),
        ("not of a ring's entry", |m| m["annotations"] = json!({})),
        ("layers", |m| m["layers"] = json!([])),
        ("is no layer", |m| m["layers"][0]["mediaType"] = json!("text/plain")),
        ("sha256", |m| m["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd")),
        ("read a time", |m| m["annotations"]["org.opencontainers.image.created"] = json!("yesterday")),
    ] {
        refuses(words, &world, consistent(&world, lie(change)));
    }
}

/// Manifests are asked for by the digest that their tag gave: what was changed is found under it, too.
fn consistent<C: Fn(&Asked, Answer) -> Answer + Send + Sync>(
    world: &World,
    change: C,
) -> impl Fn(&Asked, Answer) -> Answer + use<C> {
    let layout = world.ring_directory("a");
    move |asked, answer| {
        if !asked.path.contains("/manifests/sha256") {
            return change(asked, answer);
        }
        for (_, digest) in super::liar::entries(&layout) {
            let bytes = std::fs::read(super::liar::blob(&layout, &digest["sha256:".len()..])).unwrap();
            let changed = change(asked, Answer::new(200, bytes));
            if asked.path.ends_with(&crate::harness::image::digest(&changed.body)) {
                return changed;
            }
        }
        answer
    }
}

#[test]
fn odd_tags_are_passed_over() {
    let (world, target) = (source("tags"), World::new("to"));
    let liar = Liar::start(&world.ring_directory("a"), |asked, answer| {
        if !asked.path.contains("/tags/list") {
            return answer;
        }
        let mut list: Value = serde_json::from_slice(&answer.body).unwrap();
        let odd = [
            "latest",
            "",
            "../../etc/passwd",
            "20261122T152448Z-1",
            "a b\n",
            "-",
            "20261122T152448Z-99999999999999999999",
        ];
        list["tags"].as_array_mut().unwrap().extend(odd.map(|tag| json!(tag)));
        Answer::new(200, list.to_string())
    });
    target.ring(&["pull", &liar.reference(), "b", PLAIN]).success();
    assert_eq!(target.seqs("b"), [2, 1]);
}

#[test]
fn a_list_of_tags_without_an_end_is_refused() {
    let world = source("pages");
    refuses("the registry's list has no end", &world, |asked, answer| {
        let list = asked.path.contains("/tags/list");
        if list { answer.with("Link: </v2/a/tags/list?last=x>; rel=\"next\"") } else { answer }
    });
}

#[test]
fn what_fails_in_passing_is_tried_again_from_where_it_was() {
    let (world, target) = (source("retry"), World::new("to"));
    let (top, tries) = (top(&world), Arc::new(AtomicU32::new(0)));
    let (end, counted) = (format!("/blobs/{top}"), tries.clone());
    let liar = Liar::start(&world.ring_directory("a"), move |asked, answer| {
        if !asked.path.ends_with(&end) {
            return answer;
        }
        let range = asked
            .headers
            .iter()
            .find_map(|header| header.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
        match (counted.fetch_add(1, Ordering::Relaxed), range) {
            (0, _) => Answer::new(503, "not now"),
            (1, _) => Answer { cut: Some(10), ..answer },
            (_, Some(start)) => Answer { status: 206, body: answer.body[start..].to_vec(), ..answer },
            (_, None) => Answer::new(500, "a range was expected"),
        }
    });
    target.ring(&["pull", &liar.reference(), "b", PLAIN]).success();
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    assert!(liar.asked().iter().any(|asked| asked.headers.contains(&"range: bytes=10-".to_owned())));
    assert_eq!(found(&target, "b"), "1 2");
}

#[test]
fn credentials_go_to_nobody_else() {
    let (world, target) = (source("redirect"), World::new("to"));
    let elsewhere = Arc::new(Liar::start(&world.ring_directory("a"), |_, answer| answer));
    let (top, other) = (top(&world), elsewhere.host());
    let liar = Liar::start(&world.ring_directory("a"), move |asked, answer| {
        if asked.path != "/v2/" && !asked.headers.iter().any(|header| header == "authorization: basic dtpw") {
            return Answer::new(401, "").with("WWW-Authenticate: Basic realm=\"x\"");
        }
        let moved = asked.path.ends_with(&format!("/blobs/{top}"));
        if moved { Answer::new(307, "").with(&format!("Location: http://{other}{}", asked.path)) } else { answer }
    });
    let auth = target.base().join("auth.json");
    std::fs::write(&auth, json!({"auths": {liar.host(): {"auth": "dTpw"}}}).to_string()).unwrap();
    let mut command = target.command(&["ring", "pull", &liar.reference(), "b", PLAIN]);
    command.env("REGISTRY_AUTH_FILE", &auth);
    target.finish(command).success();
    assert!(!elsewhere.asked().is_empty(), "the blob came from there");
    let leaked = |asked: &Asked| asked.headers.iter().any(|header| header.starts_with("authorization"));
    assert!(!elsewhere.asked().iter().any(leaked), "{:?}", elsewhere.asked());
}

#[test]
fn a_token_is_asked_for_and_shown() {
    let (world, target) = (source("token"), World::new("to"));
    let liar = Liar::start(&world.ring_directory("a"), |asked, answer| {
        let host = asked.headers.iter().find_map(|header| header.strip_prefix("host: ")).unwrap().to_owned();
        if asked.path.starts_with("/token") {
            let fits = asked.path == "/token?service=the%20service&scope=repository:a:pull,push";
            return if fits { Answer::new(200, r#"{"token":"t1"}"#) } else { Answer::new(403, "") };
        }
        if asked.headers.iter().any(|header| header == "authorization: bearer t1") {
            return answer;
        }
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"the service\"");
        Answer::new(401, "").with(&challenge)
    });
    target.ring(&["pull", &liar.reference(), "b", PLAIN]).success();
    assert_eq!(liar.asked().iter().filter(|asked| asked.path.starts_with("/token")).count(), 1);
    assert_eq!(found(&target, "b"), "1 2");
}

#[test]
fn an_upload_goes_nowhere_else() {
    let world = source("upload");
    let elsewhere = Liar::start(&world.ring_directory("a"), |_, answer| answer);
    let other = elsewhere.host();
    let liar = Liar::start(&world.ring_directory("a"), move |asked, answer| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        "POST" => Answer::new(202, "").with(&format!("Location: http://{other}/v2/a/blobs/uploads/1")),
        _ => answer,
    });
    world.ring(&["push", "a", &liar.reference(), PLAIN]).fails_with(1, "which is not its own");
    assert_eq!(elsewhere.asked().len(), 0);
}

#[test]
fn a_refusal_is_told_in_the_registrys_words() {
    let world = source("refusal");
    let liar = Liar::start(&world.ring_directory("a"), |asked, answer| match asked.method.as_str() {
        "HEAD" => Answer::new(404, ""),
        "POST" => Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"no\nroom"}]}"#),
        _ => answer,
    });
    let refused = world.ring(&["push", "a", &liar.reference(), PLAIN]);
    refused.fails_with(1, r"403 Forbidden (DENIED: no\nroom)");
    refused.fails_with(1, &format!("or log in as who has it: 'podman login {}'", liar.host()));
}

#[test]
fn a_layer_beyond_the_limit_is_refused() {
    let (world, target) = (World::new("bomb"), World::new("to"));
    world.run_in("a", "head -c 2000000 /dev/zero > /zeros").success();
    world.pack();
    let liar = Liar::start(&world.ring_directory("a"), |_, answer| answer);
    let config = target.base().join("config.toml");
    std::fs::write(&config, "[image]\nmax-layer-bytes = \"1MiB\"\n").unwrap();
    let arguments = ["--config", config.to_str().unwrap(), "ring", "pull", &liar.reference(), "b", PLAIN];
    target.regen(&arguments).fails_with(1, "unpack");
    assert_eq!((target.ring_json(&["ls"]), target.layers()), (json!([]), vec![]));
}
