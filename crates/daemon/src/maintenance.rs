//! What is done for a volume in the background as long as it is served: originals of broken snapshots are freed, the cache's space is given
//! back when no originals are being saved, it is seen how fast they are, snapshots are confirmed that are to outlive a loss of power, and, where
//! it is to be so, originals are saved ahead of the host's changes.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tzero_api::Rate;
use tzero_io::{Sender, system};

use crate::ahead::Ahead;
use crate::filling::{Filling, STEP};
use crate::platform::Engine;
use crate::threads::DataThreads;

/// How often to look whether saves have ceased. A cache that is in use keeps what it has: new originals go where freed ones were.
const QUIET: Duration = Duration::from_secs(1);
/// Rest between two pieces of space, so that the cache's disk is others' too.
const REST: Duration = Duration::from_millis(5);

/// A volume's background task.
pub(crate) struct Maintenance(Mutex<Option<(Sender<()>, oneshot::Receiver<()>)>>);

impl Maintenance {
    /// Starts it on a data thread. It ends with this value.
    pub(crate) fn start(
        threads: &DataThreads,
        engine: &Arc<Engine>,
        filling: &Arc<Filling>,
        ahead: Option<(Rate, Arc<Ahead>)>,
    ) -> Self {
        let (stop, mut stopped) = tzero_io::channel();
        let (engine, filling) = (Arc::clone(engine), Arc::clone(filling));
        let ended = threads.run(move || async move {
            let mut freeing = pin!(engine.maintain());
            let mut giving = pin!(give_back(&engine));
            let mut looking = pin!(look(&engine, &filling));
            let mut confirming = pin!(confirm(&engine));
            let mut saving = pin!(save_ahead(&engine, ahead));
            let mut end = pin!(stopped.recv());
            poll_fn(|cx| {
                // None ends by itself.
                let _: [Poll<()>; 5] = [
                    freeing.as_mut().poll(cx),
                    giving.as_mut().poll(cx),
                    looking.as_mut().poll(cx),
                    confirming.as_mut().poll(cx),
                    saving.as_mut().poll(cx),
                ];
                end.as_mut().poll(cx).map(drop)
            })
            .await;
        });
        Self(Mutex::new(Some((stop, ended))))
    }

    /// Ends it, and waits for that: nothing of the state changes any more.
    pub(crate) async fn end(&self) {
        let running = self.0.lock().expect("nothing panics under this lock").take();
        if let Some((stop, ended)) = running {
            drop(stop);
            // An error says that its thread has ended.
            let _ = ended.await;
        }
    }
}

async fn confirm(engine: &Engine) {
    engine.confirm().await;
    pending().await
}

async fn save_ahead(engine: &Engine, wanted: Option<(Rate, Arc<Ahead>)>) {
    match wanted {
        Some((rate, ahead)) => ahead.save(engine, rate).await,
        None => pending().await,
    }
}

async fn give_back(engine: &Engine) {
    let mut seen = None;
    loop {
        tzero_io::sleep(QUIET).await;
        let saved = engine.statistics().originals.sequence;
        let is_quiet = seen.replace(saved) == Some(saved);
        while is_quiet && engine.statistics().originals.sequence == saved && engine.give_back_space().await > 0 {
            tzero_io::sleep(REST).await;
        }
    }
}

async fn look(engine: &Engine, filling: &Filling) {
    loop {
        filling.look(system::monotonic_ns(), engine.pressure().used, engine.saved_ahead().stored());
        tzero_io::sleep(STEP).await;
    }
}
