//! A process that is killed while it writes leaves a file that opens, with every transaction whole.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use regen::registry::Registry;

use crate::child::Child;
use crate::sqlite::own;
use crate::suite::{Subject, eventually, put};

/// How often.
const ROUNDS: u64 = 40;

#[test]
fn processes_that_are_killed_while_they_write_leave_every_transaction_whole() {
    let subject = own();
    let (mut last, log) = (BTreeMap::new(), subject.directory().join("registry.db-wal"));
    for round in 0..ROUNDS {
        let begin = SystemTime::now();
        let children: Vec<_> = (0..2)
            .map(|writer| Child::start("write", &subject.address(), &[&format!("w{}", writer + round % 2)]))
            .collect();
        // Now and then somebody else has it open meanwhile, and now and then who is killed is the last.
        let kept = (round % 3 == 0).then(|| subject.open());
        // Now and then they are killed while they open it, mostly after they have begun to write.
        if round % 8 != 0 {
            eventually("somebody writes", || std::fs::metadata(&log).is_ok_and(|log| log.modified().unwrap() > begin));
        }
        std::thread::sleep(Duration::from_millis(round * 37 % 150));
        children.into_iter().for_each(Child::kill);
        let registry = subject.open();
        check(&*registry, &mut last);
        put(&*registry, "after", &round.to_string());
        drop(kept);
    }
    let revision = subject.open().list("after").unwrap().revision;
    assert!(revision > 3 * ROUNDS, "they have hardly written: {revision}");
}

/// Every batch is whole, the witness says the same, and nothing goes back.
fn check(registry: &dyn Registry, last: &mut BTreeMap<String, u64>) {
    let listing = registry.list("batch/").unwrap();
    for batch in listing.entries.chunks(5) {
        let writer = batch[0].key.split('/').nth(1).unwrap().to_owned();
        assert_eq!(batch.len(), 5);
        assert!(batch.iter().all(|entry| entry.value == batch[0].value && entry.modified == batch[0].modified));
        let number = String::from_utf8(batch[0].value.clone()).unwrap().parse().unwrap();
        let witness = registry.get(&format!("done/{writer}")).unwrap().unwrap();
        assert_eq!(String::from_utf8(witness.value).unwrap().parse::<u64>().unwrap(), number);
        last.insert(writer, number);
    }
    let mut revisions = crate::watch_all(registry, listing.revision.saturating_sub(100));
    revisions.dedup();
    assert!(revisions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{revisions:?}");
}
