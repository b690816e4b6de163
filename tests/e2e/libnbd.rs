//! libnbd from Python: structured replies, block status, errors by number, many requests in flight.

use e2e::scratch::copy;
use e2e::{Daemon, MIB, Program, Scratch};

#[test]
fn libnbd_sees_structured_replies_statuses_and_errors() {
    let scratch = Scratch::new();
    let base = scratch.random("base", 32 * MIB, 5);
    let reference = scratch.join("reference");
    copy(&base, &reference);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.ok("snapshot create s vol");
    let script = scratch.join("script.py");
    std::fs::write(&script, include_str!("libnbd.py")).expect("a script can be written");
    // Debian's own interpreter: its modules are not where another one looks.
    let said = Program::new("/usr/bin/python3").arg(&script).arg(daemon.socket()).arg(&reference).ok();
    assert_eq!(said.trim(), "good");
    daemon.stop();
}
