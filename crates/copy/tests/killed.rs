//! A mover that is killed, at every moment at which it says something.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use common::daemon::Daemon;
use common::{COMPLETE, MIB, Place, backup, content, verify};
use tzero_copy::{BackupRequest, BackupSource, Cancel, Error, ModeAsked, ResumeFault};

/// Names the socket, the place and the event of the child's death.
const CHILD: &str = "TZERO_COPY_TEST_CHILD";

/// Not a test of its own: what the other one starts and kills.
#[test]
fn child() {
    let Ok(orders) = std::env::var(CHILD) else { return };
    let [socket, root, event] = orders.split('|').collect::<Vec<_>>().try_into().unwrap();
    let fatal: usize = event.parse().unwrap();
    let request = BackupRequest {
        restraint: tzero_copy::Restraint::default(),
        source: BackupSource::Volume { mover_socket: socket.into(), volume: "vm".into(), snapshot: None },
        destination: Path::new(root).join("copies/vol.img"),
        state: Path::new(root).join("state"),
        mode: ModeAsked::Auto,
        outboard: None,
        scope: Vec::new(),
        on_full: None,
        hurries: true,
        replace: false,
        resume: false,
        verify: true,
    };
    let mut events = 0;
    let observer = &mut |_: &_| {
        events += 1;
        if events == fatal {
            tzero_io::system::kill_self();
        }
    };
    tzero_copy::backup(&request, observer, &Cancel::new()).unwrap();
}

#[test]
fn killed_at_any_moment_it_resumes_with_the_same_t0() {
    let mut deaths = 0;
    for event in 1.. {
        let (daemon, place) = (Daemon::start(content(event, 26 * MIB + 512)), Place::new());
        let stop = Cancel::new();
        let host = daemon.host(event, stop.clone());
        let orders = format!("{}|{}|{event}", daemon.socket.display(), place.root.path().display());
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(CHILD, orders)
            .output()
            .unwrap()
            .status;
        if status.success() {
            stop.cancel();
            host.join().unwrap();
            break;
        }
        assert_eq!(status.signal(), Some(9));
        deaths += 1;
        // Nothing is declared good, unless it is.
        if place.image().exists() {
            assert!(verify(&place.copy()).is_good());
        }
        let mut request = place.request(daemon.source());
        request.resume = true;
        let resumed = backup(&request);
        stop.cancel();
        host.join().unwrap();
        match resumed {
            Ok(outcome) => assert_eq!(outcome.copy.t0.to_string(), "2023-11-14T22:13:20.000000001Z"),
            // It died after its last word.
            Err(Error::Resume { fault: ResumeFault::Nothing, .. }) => assert_eq!(place.names(), COMPLETE),
            Err(error) => panic!("killed at event {event}: {error}"),
        }
        assert!(fs::read(place.image()).unwrap() == *daemon.t0(), "killed at event {event}: not T0");
        assert!(verify(&place.copy()).is_good());
        assert_eq!(place.names(), COMPLETE);
        assert!(!daemon.stands(), "killed at event {event}: the snapshot is left behind");
    }
    // Begun, seven chunks, two of the flush, eight of the verification, declared.
    assert!(deaths >= 18, "{deaths}");
}
