//! libnbd from Python: structured replies, block status, errors by number, many requests in flight.

use e2e::daemon::Setting;
use e2e::scratch::copy;
use e2e::{MIB, Program, Scratch};

use crate::load::Shape;

#[test]
fn libnbd_sees_structured_replies_statuses_and_errors() {
    // Requests of any byte.
    for &shape in Shape::ALL.iter().filter(|shape| shape.block() == 1) {
        let scratch = Scratch::new();
        let base = scratch.random("base", 32 * MIB, 5);
        let reference = scratch.join("reference");
        copy(&base, &reference);
        let daemon = shape.serve(&Setting::new(&scratch.join("state")), base);
        daemon.ok("snapshot create s vol");
        let script = scratch.join("script.py");
        std::fs::write(&script, include_str!("libnbd.py")).expect("a script can be written");
        // Debian's own interpreter: its modules are not where another one looks.
        let said = Program::new("/usr/bin/python3").arg(&script).arg(daemon.socket()).arg(&reference).ok();
        assert_eq!(said.trim(), "good");
        daemon.stop();
    }
}
