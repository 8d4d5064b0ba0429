//! The engine's thread: takes requests in, steps while there is work, sleeps while there is none.
//!
//! In: the channel of submitted requests. It ends when the channel is closed and all is answered.
//!
//! The thread is itself one of the pool that runs the kernels: it works where it would otherwise sleep, and
//! no kernel begins by waking it. As many threads as the machine has, or `RAYON_NUM_THREADS` says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use super::config::EngineError;
use super::handle::Board;
use super::runner::Runner;
use super::sequence::Submitted;

/// Starts the thread.
pub(super) fn start(
    runner: Runner,
    requests: Receiver<Submitted>,
    board: Arc<Board>,
) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            // Without a pool of its own the kernels use rayon's global one.
            let pool = rayon::ThreadPoolBuilder::new()
                .use_current_thread()
                .thread_name(|index| format!("kernels-{index}"))
                .build();
            if let Err(error) = &pool {
                tracing::warn!(%error, "the engine shares the global pool of threads");
            }
            run(runner, &requests);
            drop(pool);
            // Requests that were never taken in go with the channel.
            drop(requests);
            board.waiting.store(0, Ordering::Relaxed);
        })
        .map_err(EngineError::Thread)
}

fn run(mut runner: Runner, requests: &Receiver<Submitted>) {
    loop {
        if runner.is_idle() {
            match requests.recv() {
                Ok(submitted) => runner.accept(submitted),
                Err(_) => return,
            }
        }
        while let Ok(submitted) = requests.try_recv() {
            runner.accept(submitted);
        }
        let stepped = catch_unwind(AssertUnwindSafe(|| runner.step()));
        if let Err(error) = stepped.unwrap_or_else(|_| runner.recover()) {
            tracing::error!(%error, "the engine cannot go on");
            return runner.stop();
        }
    }
}
