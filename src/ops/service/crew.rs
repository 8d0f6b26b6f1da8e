//! Threads for what the daemon does by itself: as many as there is work for, up to a bound, and none while there is none.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// At boot every service wants to be started at once, and each waits for its program most of the time.
const MOST: usize = 16;
/// Enough for what they do, and only what is used of it takes memory.
const STACK: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// Work that waits, and how many are at it.
#[derive(Default)]
struct Work {
    waiting: VecDeque<Job>,
    busy: usize,
}

/// See the module.
#[derive(Default, Clone)]
pub(super) struct Crew(Arc<Mutex<Work>>);

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crew")
    }
}

impl Crew {
    /// Has something done soon. What is logged then says what it is about, as what is logged now does.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let span = tracing::Span::current();
        let job = move || span.in_scope(job);
        let mut work = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work.waiting.push_back(Box::new(job));
        if work.busy >= MOST {
            return;
        }
        work.busy += 1;
        let crew = self.clone();
        let thread = std::thread::Builder::new().name("crew".to_owned()).stack_size(STACK).spawn(move || crew.work());
        if let Err(error) = thread {
            // Whoever is at work, or the next one, does it.
            work.busy -= 1;
            tracing::error!("start a thread: {error}");
        }
    }

    fn work(&self) {
        loop {
            let job = {
                let mut work = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let job = work.waiting.pop_front();
                if job.is_none() {
                    work.busy -= 1;
                }
                job
            };
            match job {
                Some(job) => job(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn everything_is_done_by_a_bounded_number_which_then_is_none() {
        let crew = Crew::default();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (done, all) = channel();
        for number in 0..100 {
            let (now, most, done) = (Arc::clone(&now), Arc::clone(&most), done.clone());
            crew.submit(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
                done.send(number).unwrap();
            });
        }
        let mut found: Vec<i32> = all.iter().take(100).collect();
        found.sort_unstable();
        assert_eq!(found, (0..100).collect::<Vec<_>>());
        assert!(most.load(Ordering::SeqCst) <= MOST);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while crew.0.lock().unwrap().busy > 0 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(crew.0.lock().unwrap().busy, 0);
    }
}
