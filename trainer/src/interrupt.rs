//! Ctrl-C and a request to terminate. In: signals. Out: a flag that a run looks at between two steps. The
//! second signal, or one while no run looks, ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::runtime::Builder;

/// What a process says that a signal has ended.
pub const EXIT_CODE: u8 = 130;

/// The flag.
#[derive(Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    heeded: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from here on.
    pub fn watch() -> Result<Self> {
        let flag = Self::default();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen to signals")?;
        let mut signals = {
            let _inside = runtime.enter();
            Signals::new().context("cannot listen to signals")?
        };
        let listener = flag.clone();
        let listen = move || {
            runtime.block_on(async {
                loop {
                    signals.next().await;
                    let heeded = listener.heeded.load(Ordering::SeqCst);
                    if listener.asked.swap(true, Ordering::SeqCst) || !heeded {
                        std::process::exit(EXIT_CODE.into());
                    }
                }
            });
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(listen)
            .context("cannot listen to signals")?;
        Ok(flag)
    }

    /// Says whether the flag is looked at.
    pub fn heed(&self, heeded: bool) {
        self.heeded.store(heeded, Ordering::SeqCst);
    }

    /// Whether there was a signal.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // Without a handler there is nothing to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
