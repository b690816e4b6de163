//! Ctrl-C: once to stop in good order, twice to stop at once.
//!
//! What has things to clear away stops in good order only.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;
use tzero_api::Exit;
use tzero_io::system;

use crate::ending::Ending;
use crate::output::notice;

/// How long the last word may take.
const LONGEST_WORD: Duration = Duration::from_millis(200);

/// A flag that the first signal sets; the second one ends the process as incomplete.
pub(crate) fn flag() -> Result<Arc<AtomicBool>, Ending> {
    watch(true)
}

/// A flag that every signal sets.
pub(crate) fn patient_flag() -> Result<Arc<AtomicBool>, Ending> {
    watch(false)
}

/// Sets the flag when standard input ends: whoever started this process is gone, or has no use for it any more.
pub(crate) fn when_input_ends(flag: &Arc<AtomicBool>) -> Result<(), Ending> {
    let flag = Arc::clone(flag);
    let wait = move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        flag.store(true, Ordering::Relaxed);
    };
    let waits = thread::Builder::new().name("input".into()).spawn(wait);
    waits.map(drop).map_err(|error| Ending::failed(format!("standard input cannot be watched: {error}")))
}

fn watch(twice_ends: bool) -> Result<Arc<AtomicBool>, Ending> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let register = || -> io::Result<()> {
        let (told, tells) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&interrupted))?;
            if twice_ends {
                pipe::register(signal, tells.try_clone()?)?;
            }
        }
        if twice_ends {
            thread::Builder::new().name("signals".into()).spawn(|| end_at_second(told))?;
        }
        Ok(())
    };
    register().map_err(|error| Ending::failed(format!("signals cannot be watched for: {error}")))?;
    Ok(interrupted)
}

/// Ends the process when a second byte comes.
fn end_at_second(mut told: UnixStream) {
    if told.read_exact(&mut [0; 2]).is_ok() {
        // Nobody may read what is said.
        let _ = thread::Builder::new().name("end".into()).spawn(|| {
            thread::sleep(LONGEST_WORD);
            system::exit_now(Exit::Incomplete.code());
        });
        notice("it was stopped at once, as if killed; `tzero status` shows what is unfinished");
        system::exit_now(Exit::Incomplete.code());
    }
}
