//! Keys, revisions, transactions.

use std::sync::atomic::{AtomicBool, Ordering};

use regen::error::Kind;
use regen::registry::{Applied, CHANGES_MAX, Compare, Put, Transaction, VALUE_MAX};

use super::{Subject, commit, delete, keys, put, puts, refused, value};

pub fn keys_know_the_revisions_that_made_and_changed_them(subject: &dyn Subject) {
    let registry = subject.open();
    let before = registry.list("").unwrap().revision;
    let (first, other) = (put(&*registry, "a/b", "one"), put(&*registry, "a/c", "x"));
    let second = put(&*registry, "a/b", "two");
    assert!(before < first && first < other && other < second, "revisions grow");
    let entry = registry.get("a/b").unwrap().unwrap();
    assert_eq!((&*entry.key, &*entry.value, entry.created, entry.modified), ("a/b", &b"two"[..], first, second));
    let listing = registry.list("a/").unwrap();
    assert_eq!((listing.revision >= second, listing.entries[0].clone()), (true, entry));
    assert_eq!(registry.get("a").unwrap(), None);
    assert_eq!(registry.get("a/").unwrap(), None);
}

pub fn a_prefix_finds_what_is_below_it_in_order_and_nothing_beside_it(subject: &dyn Subject) {
    let registry = subject.open();
    assert_eq!(keys(&*registry, ""), Vec::<String>::new());
    for key in ["service/ab/1.0.0", "service/a/2.0.0", "service/a/10.0.0", "service/a", "servicf", "service/a/é", "~"]
    {
        put(&*registry, key, "x");
    }
    assert_eq!(keys(&*registry, "service/a/"), ["service/a/10.0.0", "service/a/2.0.0", "service/a/é"]);
    assert_eq!(keys(&*registry, "service/a").len(), 5);
    assert_eq!(keys(&*registry, "").len(), 7);
    assert_eq!(keys(&*registry, "").last().unwrap(), "~");
    assert_eq!(keys(&*registry, "nothing/"), Vec::<String>::new());
}

pub fn a_listing_is_of_one_revision(subject: &dyn Subject) {
    let (registry, other, done) = (subject.open(), subject.open(), AtomicBool::new(false));
    commit(&*registry, &puts(&[("pair/a", "0"), ("pair/b", "0")]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=100 {
                let text = number.to_string();
                commit(&*other, &puts(&[("pair/a", &text), ("pair/b", &text)]));
            }
            done.store(true, Ordering::Release);
        });
        let mut last = 0;
        loop {
            let end = done.load(Ordering::Acquire);
            let listing = registry.list("pair/").unwrap();
            let [a, b] = &listing.entries[..] else { panic!("{listing:?}") };
            assert_eq!((&a.value, a.modified), (&b.value, b.modified), "they change together");
            assert!(listing.revision >= a.modified && listing.revision >= last);
            last = listing.revision;
            if end {
                assert_eq!(a.value, b"100", "nothing that was committed before is missed");
                break;
            }
        }
    });
}

pub fn a_transaction_on_an_old_view_changes_nothing(subject: &dyn Subject) {
    let registry = subject.open();
    let absent = Transaction::replace("a", 0, b"1".to_vec());
    let revision = commit(&*registry, &absent);
    assert_eq!(registry.apply(&absent).unwrap(), Applied::Refused);
    let mut both = Transaction::replace("a", revision, b"2".to_vec());
    both.compares.push(Compare::unchanged("b", revision));
    both.deletes.push("c".to_owned());
    put(&*registry, "c", "stays");
    assert_eq!(registry.apply(&both).unwrap(), Applied::Refused, "one of two is different");
    assert_eq!((value(&*registry, "a"), value(&*registry, "c")), (Some("1".into()), Some("stays".into())));
    both.compares[1] = Compare::absent("b");
    let next = commit(&*registry, &both);
    assert_eq!((value(&*registry, "a"), value(&*registry, "c")), (Some("2".into()), None));
    assert!(next > revision);
    assert_eq!(registry.apply(&both).unwrap(), Applied::Refused, "what is compared was changed by it");
}

pub fn all_changes_of_a_transaction_are_one_revision(subject: &dyn Subject) {
    let registry = subject.open();
    put(&*registry, "old", "x");
    let mut transaction = puts(&[("a", "1"), ("b", "2")]);
    transaction.deletes = vec!["old".to_owned(), "never".to_owned()];
    let revision = commit(&*registry, &transaction);
    let listing = registry.list("").unwrap();
    let found: Vec<_> = listing.entries.iter().map(|entry| (&*entry.key, entry.created, entry.modified)).collect();
    assert_eq!(found, [("a", revision, revision), ("b", revision, revision)]);
}

pub fn a_transaction_that_only_compares_says_whether_it_is_so(subject: &dyn Subject) {
    let registry = subject.open();
    let revision = put(&*registry, "a", "1");
    let compare = |compare| Transaction { compares: vec![compare], ..Transaction::default() };
    let answer = registry.apply(&compare(Compare::unchanged("a", revision))).unwrap();
    assert!(matches!(answer, Applied::Committed(at) if at >= revision), "{answer:?}");
    assert_eq!(registry.apply(&compare(Compare::absent("a"))).unwrap(), Applied::Refused);
    assert!(matches!(registry.apply(&Transaction::default()).unwrap(), Applied::Committed(_)));
    assert_eq!(registry.get("a").unwrap().unwrap().modified, revision);
}

pub fn values_of_a_mebibyte_fit_and_longer_ones_are_refused(subject: &dyn Subject) {
    let registry = subject.open();
    let mut long = Transaction::replace("a", 0, vec![7; VALUE_MAX + 1]);
    long.puts.push(Put::new("b", b"short".to_vec()));
    let error = refused(registry.apply(&long), Kind::Invalid);
    assert!(error.to_string().contains("'a' would have 1048577 bytes"), "{error}");
    assert_eq!(keys(&*registry, ""), Vec::<String>::new());
    long.puts[0].value.pop();
    commit(&*registry, &long);
    assert_eq!(registry.get("a").unwrap().unwrap().value, vec![7; VALUE_MAX]);
}

pub fn a_transaction_has_at_most_so_many_changes(subject: &dyn Subject) {
    let registry = subject.open();
    let put = |number: usize| Put::new(format!("key/{number:03}"), b"x".to_vec());
    let mut most = Transaction { puts: (0..CHANGES_MAX).map(put).collect(), ..Transaction::default() };
    most.compares = most.puts.iter().map(|put| Compare::absent(&put.key)).collect();
    let mut more = most.clone();
    more.puts.push(put(CHANGES_MAX));
    refused(registry.apply(&more), Kind::Invalid);
    let mut more = most.clone();
    more.deletes.push("another".to_owned());
    refused(registry.apply(&more), Kind::Invalid);
    let mut more = most.clone();
    more.compares.push(Compare::absent("another"));
    refused(registry.apply(&more), Kind::Invalid);
    assert_eq!(keys(&*registry, ""), Vec::<String>::new());
    commit(&*registry, &most);
    assert_eq!(keys(&*registry, "key/").len(), CHANGES_MAX);
}

pub fn a_key_that_is_changed_twice_at_once_is_refused(subject: &dyn Subject) {
    let registry = subject.open();
    refused(registry.apply(&puts(&[("a", "1"), ("b", "1"), ("a", "2")])), Kind::Invalid);
    let mut both = puts(&[("a", "1")]);
    both.deletes.push("a".to_owned());
    refused(registry.apply(&both), Kind::Invalid);
    assert_eq!(keys(&*registry, ""), Vec::<String>::new());
}

pub fn a_key_that_comes_back_is_a_new_one(subject: &dyn Subject) {
    let registry = subject.open();
    let first = put(&*registry, "a", "1");
    let gone = delete(&*registry, "a");
    assert_eq!(registry.get("a").unwrap(), None);
    let second = put(&*registry, "a", "1");
    assert!(first < gone && gone < second);
    assert_eq!(registry.get("a").unwrap().unwrap().created, second);
    assert_eq!(registry.apply(&Transaction::replace("a", first, Vec::new())).unwrap(), Applied::Refused);
}

pub fn keys_and_values_are_kept_as_they_are(subject: &dyn Subject) {
    let registry = subject.open();
    for (key, value) in [("empty", &b""[..]), ("bytes/ä %_'\"\\", &[0, 255, 10, 0]), ("Case", b"A"), ("case", b"a")] {
        let transaction = Transaction { puts: vec![Put::new(key, value.to_vec())], ..Transaction::default() };
        commit(&*registry, &transaction);
        assert_eq!(registry.get(key).unwrap().unwrap().value, value, "{key}");
    }
    assert_eq!(keys(&*registry, "").len(), 4);
    assert_eq!(keys(&*registry, "bytes/ä %"), ["bytes/ä %_'\"\\"]);
}

pub fn what_was_committed_is_seen_by_everybody_at_once(subject: &dyn Subject) {
    let (one, other) = (subject.open(), subject.open());
    for number in 0..50 {
        let text = number.to_string();
        let revision = put(&*one, "a", &text);
        let entry = other.get("a").unwrap().unwrap();
        assert_eq!((entry.value, entry.modified), (text.clone().into_bytes(), revision));
        assert!(other.list("a").unwrap().revision >= revision);
        commit(&*other, &Transaction::replace("a", revision, text.into_bytes()));
    }
}

pub fn every_handle_has_the_same_identity(subject: &dyn Subject) {
    let (one, other) = (subject.open(), subject.open());
    let identity = one.identity().unwrap();
    assert!(!identity.is_empty());
    put(&*one, "a", "1");
    assert_eq!(other.identity().unwrap(), identity);
    drop((one, other));
    assert_eq!(subject.open().identity().unwrap(), identity);
}
