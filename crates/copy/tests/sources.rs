//! What protects a plain source, and sources that are none.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{MIB, Place, assert_sentence, backup, backup_interrupted, content};
use tzero_api::Exit;
use tzero_copy::{Error, Protection, Shortfall};

const SIZE: usize = 9 * MIB + 777;

/// What a copy of it says.
fn protection(place: &Place, source: &Path) -> Option<Protection> {
    let mut request = place.plain(source);
    request.replace = true;
    let outcome = backup(&request).unwrap();
    assert_eq!(outcome.copy.protection, place.copy().manifest().protection);
    assert_eq!(outcome.copy.protection.is_some(), outcome.copy.reason.is_none());
    let exit = if outcome.copy.protection.is_some() { Exit::AsAsked } else { Exit::NotAsAsked };
    assert_eq!(outcome.exit(), exit);
    outcome.copy.protection
}

/// Another process that holds a lock, by Python's `fcntl`, until its input ends.
struct Holder(Child);

impl Holder {
    fn new(path: &Path, how: &str) -> Self {
        let script = format!(
            "import fcntl,struct,sys\nf=open(sys.argv[1],'r+b')\n{how}\nprint('held',flush=True)\nsys.stdin.read()"
        );
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs `python3`");
        let mut line = String::new();
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "held\n", "{how}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A lock of an open file on bytes, as QEMU takes them.
fn ofd(kind: &str, start: u64, len: u64) -> String {
    format!("fcntl.fcntl(f,37,struct.pack('hhqqi4x',fcntl.{kind},0,{start},{len},0))")
}

#[test]
fn a_lock_on_all_of_it_protects() {
    let place = Place::new();
    let source = place.write("source", &content(1, SIZE));
    assert_eq!(protection(&place, &source), None);
    for how in [
        "fcntl.flock(f,fcntl.LOCK_EX)".to_owned(),
        "fcntl.flock(f,fcntl.LOCK_SH)".to_owned(),
        "fcntl.lockf(f,fcntl.LOCK_EX)".to_owned(),
        "fcntl.lockf(f,fcntl.LOCK_SH)".to_owned(),
        format!("fcntl.lockf(f,fcntl.LOCK_EX,{SIZE})"),
        ofd("F_WRLCK", 0, 0),
        ofd("F_RDLCK", 0, 0),
    ] {
        let _held = Holder::new(&source, &how);
        assert_eq!(protection(&place, &source), Some(Protection::Locked), "{how}");
    }
    assert_eq!(protection(&place, &source), None, "nobody holds it any more");
    fs::set_permissions(&source, Permissions::from_mode(0o444)).unwrap();
    assert_eq!(protection(&place, &source), Some(Protection::ReadOnly));
}

#[test]
fn a_lock_on_parts_is_a_sign_of_somebody_at_work() {
    let place = Place::new();
    let source = place.write("source", &content(2, SIZE));
    let whole = "fcntl.flock(f,fcntl.LOCK_EX)";
    for parts in [ofd("F_RDLCK", 100, 1), ofd("F_RDLCK", 201, 1), "fcntl.lockf(f,fcntl.LOCK_EX,10)".to_owned()] {
        for how in [parts.clone(), format!("{parts}\n{whole}")] {
            let _held = Holder::new(&source, &how);
            assert_eq!(protection(&place, &source), None, "{how}");
        }
    }
    // The lock of all of it by another process changes nothing.
    let _qemu = Holder::new(&source, &ofd("F_RDLCK", 101, 1));
    let _other = Holder::new(&source, &ofd("F_RDLCK", 0, 0));
    assert_eq!(protection(&place, &source), None);
}

#[test]
fn a_lock_that_ends_too_early_or_comes_too_late_does_not_protect() {
    let place = Place::new();
    let source = place.write("source", &content(3, SIZE));
    let mut held = Some(Holder::new(&source, "fcntl.flock(f,fcntl.LOCK_EX)"));
    let ended = tzero_copy::backup(&place.plain(&source), &mut |_| drop(held.take()), &tzero_copy::Cancel::new());
    assert_eq!(ended.unwrap().shortfall, Some(Shortfall::Unprotected));
    let mut request = place.plain(&source);
    request.replace = true;
    let late = &mut |_: &tzero_copy::Event| {
        held.get_or_insert_with(|| Holder::new(&source, "fcntl.flock(f,fcntl.LOCK_EX)"));
    };
    let late = tzero_copy::backup(&request, late, &tzero_copy::Cancel::new());
    assert_eq!(late.unwrap().shortfall, Some(Shortfall::Unprotected));
    // A writer may be the one who holds it.
    let write = &mut |_: &tzero_copy::Event| {
        let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
        File::options().write(true).open(&source).unwrap().set_times(times).unwrap();
    };
    let written = tzero_copy::backup(&request, write, &tzero_copy::Cancel::new());
    assert_eq!(written.unwrap().shortfall, Some(Shortfall::Changed));
}

#[test]
fn a_file_that_does_not_say_how_much_it_holds_is_refused() {
    let place = Place::new();
    for source in ["/proc/self/maps", "/proc/cpuinfo"] {
        let error = backup(&place.plain(Path::new(source))).unwrap_err();
        assert_sentence(&error);
        assert!(matches!(error, Error::Unmeasured { size: 0, .. }), "{error}");
    }
    assert!(place.names().is_empty());
}

#[test]
fn what_somebody_changed_in_an_unfinished_image_is_copied_again() {
    let place = Place::new();
    let bytes = content(4, SIZE);
    let source = place.write("source", &bytes);
    let mut request = place.plain(&source);
    backup_interrupted(&request, 4 * MIB as u64).unwrap_err();
    common::damage(&common::partial(&place), MIB);
    request.resume = true;
    let (mut recopied, mut rechecked) = (0, 0);
    let observer = &mut |event: &tzero_copy::Event| match event {
        tzero_copy::Event::Notice(tzero_copy::Notice::Recopied { chunks }) => recopied = *chunks,
        tzero_copy::Event::Progress { phase: tzero_copy::Phase::Recheck, done, .. } => rechecked = *done,
        _ => {}
    };
    tzero_copy::backup(&request, observer, &tzero_copy::Cancel::new()).unwrap();
    assert_eq!(recopied, 1);
    assert!(rechecked >= 4 * MIB as u64);
    assert!(fs::read(place.image()).unwrap() == bytes);
}
