//! The thread in which everything that waits for etcd is.

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::error::{Context, Result};

/// A thread that does what it is given, and sleeps else. It ends with the last who has it.
#[derive(Debug)]
pub(super) struct Runtime {
    handle: Handle,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub(super) fn begin() -> Result<Self> {
        let operation = || "begin the thread that speaks to etcd";
        let runtime = Builder::new_current_thread().enable_io().enable_time().build().context(operation)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("etcd".to_owned());
        let thread = thread.spawn(move || {
            // What it is told does not matter: it ends when the other side goes.
            let _ = runtime.block_on(stopped);
        });
        Ok(Self { handle, stop: Some(stop), thread: Some(thread.context(operation)?) })
    }

    /// Waits in the caller's thread for what is done in this one; none if that failed.
    pub(super) fn wait<T: Send + 'static>(&self, question: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.begin_task(async move {
            // Nobody waits if the caller's thread is gone.
            let _ = sender.send(question.await);
        });
        receiver.recv().ok()
    }

    /// Does something, for as long as it takes.
    pub(super) fn begin_task(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.handle.spawn(task).abort_handle()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}
