//! The signals that end the daemon, and the end that comes whatever hangs.
//!
//! Signals are taken in on a thread of their own, which does nothing else. When one has come, that thread gives the rest of the daemon
//! [`END`] to end in good order; then it ends the process, even where all others wait for a disk that does not answer.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tzero_io::system;

/// How long all of the end may take.
const END: Duration = Duration::from_millis(9500);
/// How long saying so may hold it up: a log that nobody reads may never take the line.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// The exit status then.
const UNCLEAN: u8 = 1;

/// News of the signals.
#[derive(Clone)]
pub(crate) struct Signals(watch::Receiver<Option<&'static str>>);

impl Signals {
    /// From here on signals do not end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = watch::channel(None);
        let (started, has_started) = mpsc::channel();
        thread::Builder::new().name("signals".into()).spawn(move || wait(&runtime, &started, &tell))?;
        has_started.recv().map_err(|_| io::Error::other("the thread for signals ended at its start"))??;
        Ok(Self(told))
    }

    /// The first signal that came, or comes.
    pub(crate) async fn received(&self) -> &'static str {
        let mut told = self.0.clone();
        match told.wait_for(Option::is_some).await.ok().and_then(|name| *name) {
            Some(name) => name,
            None => pending().await,
        }
    }
}

fn wait(runtime: &Runtime, started: &mpsc::Sender<io::Result<()>>, tell: &watch::Sender<Option<&'static str>>) {
    runtime.block_on(async {
        let coming = match first_signal() {
            Ok(coming) => coming,
            Err(error) => return drop(started.send(Err(error))),
        };
        // Whoever started this waits for it.
        let _ = started.send(Ok(()));
        let name = coming.await;
        tell.send_replace(Some(name));
        tokio::time::sleep(END).await;
        let _ =
            thread::Builder::new().spawn(|| tracing::error!("something hangs: the daemon ends without a clean stop"));
        tokio::time::sleep(LAST_WORDS).await;
        system::exit_now(UNCLEAN);
    });
}

fn first_signal() -> io::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        poll_fn(|cx| {
            let signals = [("SIGTERM", &mut terminate), ("SIGINT", &mut interrupt), ("SIGHUP", &mut hangup)];
            for (name, signal) in signals {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(name);
                }
            }
            Poll::Pending
        })
        .await
    })
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    /// Set in the process that hangs.
    const HANGING: &str = "TZERO_TEST_HANGING";

    #[test]
    fn a_process_that_hangs_ends_in_time() {
        if env::var_os(HANGING).is_some() {
            let _signals = Signals::listen().unwrap();
            std::fs::write("/proc/self/fd/1", "hanging\n").unwrap();
            // Until it is killed.
            loop {
                thread::park();
            }
        }
        let test = "signals::tests::a_process_that_hangs_ends_in_time";
        let mut hanging = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(HANGING, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(hanging.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("hanging")));
        let asked = Instant::now();
        assert!(Command::new("kill").arg(hanging.id().to_string()).status().unwrap().success());
        let status = hanging.wait().unwrap();
        assert_eq!(status.code(), Some(1));
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(asked.elapsed() >= END, "it is given its time");
    }
}
