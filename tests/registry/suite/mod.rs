//! What every registry has to do, sentence by sentence of the trait's documentation.

pub mod caller;
pub mod crowd;
pub mod key;
pub mod lease;
pub mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use regen::error::{Error, Kind};
use regen::registry::{Answer, Applied, Failure, Put, Registry, Transaction};

/// A registry that is tested: empty, and nobody else's.
pub trait Subject {
    /// Another handle of the same registry, as another process would have it.
    fn open(&self) -> Arc<dyn Registry>;

    /// How another process opens it: what [`crate::child::open`] takes.
    fn address(&self) -> String;

    /// The shortest lease that it gives.
    fn shortest_lease(&self) -> Duration;

    /// Makes it forget at least the changes up to a revision.
    fn forget(&self, revision: u64);
}

/// Makes a test of each function of the suite for the subject that an expression's call gives.
macro_rules! conforms {
    ($make:expr) => {
        conforms! { $make;
            key::keys_know_the_revisions_that_made_and_changed_them,
            key::a_prefix_finds_what_is_below_it_in_order_and_nothing_beside_it,
            key::a_listing_is_of_one_revision,
            key::a_transaction_on_an_old_view_changes_nothing,
            key::all_changes_of_a_transaction_are_one_revision,
            key::a_transaction_that_only_compares_says_whether_it_is_so,
            key::values_of_a_mebibyte_fit_and_longer_ones_are_refused,
            key::a_transaction_has_at_most_so_many_changes,
            key::a_key_that_is_changed_twice_at_once_is_refused,
            key::a_key_that_comes_back_is_a_new_one,
            key::keys_and_values_are_kept_as_they_are,
            key::what_was_committed_is_seen_by_everybody_at_once,
            key::every_handle_has_the_same_identity,
            lease::keys_go_when_the_time_of_their_lease_is_over_and_not_before,
            lease::a_lease_that_is_renewed_stays,
            lease::a_lease_that_is_gone_is_not_renewed_and_its_end_is_no_error,
            lease::a_put_with_a_lease_that_is_gone_is_refused_as_a_whole,
            lease::an_end_takes_all_keys_of_a_lease_and_no_others,
            lease::a_key_hangs_on_what_it_was_put_with_last,
            lease::anybody_may_renew_a_lease,
            lease::who_comes_after_a_lease_is_over_gets_the_key_with_a_higher_number,
            watch::changes_come_in_order_once_and_with_the_value_of_then,
            watch::only_changes_of_the_prefix_come,
            watch::changes_of_one_revision_come_together,
            watch::what_goes_is_told_also_when_it_goes_with_a_lease,
            watch::a_watch_after_a_listing_misses_nothing,
            watch::a_watch_goes_on_after_what_was_heard,
            watch::a_watch_that_is_too_late_is_told_so,
            watch::nothing_comes_when_nothing_happens,
            watch::the_bell_rings_for_what_others_do,
            watch::who_waits_hears_of_each_change_although_no_other_follows,
            watch::the_bell_rings_for_what_was_before,
            watch::several_watches_hear_the_same,
            crowd::threads_count_to_the_exact_sum,
            crowd::processes_count_to_the_exact_sum,
            crowd::a_key_has_one_holder_at_a_time,
            crowd::a_copy_that_is_fed_by_a_watch_becomes_the_same,
        }
    };
    ($make:expr; $($module:ident :: $test:ident),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                $crate::suite::$module::$test(&$make());
            }
        )*
    };
}

/// No state is waited for longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A transaction of puts.
pub fn puts(puts: &[(&str, &str)]) -> Transaction {
    let puts = puts.iter().map(|(key, value)| Put::new(*key, value.as_bytes().to_vec())).collect();
    Transaction { puts, ..Transaction::default() }
}

/// Gives a key a value; the revision that did.
#[track_caller]
pub fn put(registry: &dyn Registry, key: &str, value: &str) -> u64 {
    commit(registry, &puts(&[(key, value)]))
}

/// Applies what nothing can be against; the revision that did it.
#[track_caller]
pub fn commit(registry: &dyn Registry, transaction: &Transaction) -> u64 {
    match registry.apply(transaction).unwrap() {
        Applied::Committed(revision) => revision,
        Applied::Refused => panic!("something is different: {transaction:?}"),
    }
}

/// Takes a key away.
#[track_caller]
pub fn delete(registry: &dyn Registry, key: &str) -> u64 {
    commit(registry, &Transaction { deletes: vec![key.to_owned()], ..Transaction::default() })
}

/// The value of a key, as text.
#[track_caller]
pub fn value(registry: &dyn Registry, key: &str) -> Option<String> {
    registry.get(key).unwrap().map(|entry| String::from_utf8(entry.value).unwrap())
}

/// What has a prefix.
#[track_caller]
pub fn keys(registry: &dyn Registry, prefix: &str) -> Vec<String> {
    registry.list(prefix).unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

/// The error of what cannot be done, now or later.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, kind: Kind) -> Error {
    match answer {
        Err(Failure::Refused(error)) => {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            error
        }
        other => panic!("it was not refused: {other:?}"),
    }
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !so() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
