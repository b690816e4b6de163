//! Copies on real block devices and full file systems. Needs root and loop devices: where they cannot be had the tests
//! say so by name, and fail under `CI`.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::daemon::Daemon;
use common::{MIB, Place, assert_sentence, backup, backup_interrupted, content, restore, verify};
use tzero_api::Exit;
use tzero_copy::{Copy, Error, Refusal, Shortfall};

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device over a file.
struct Loop {
    path: PathBuf,
}

impl Loop {
    fn over(file: &Path, read_only: bool) -> Option<Self> {
        let file = file.to_str()?;
        let mut arguments = vec!["--find", "--show"];
        if read_only {
            arguments.push("--read-only");
        }
        arguments.push(file);
        run("losetup", &arguments).map(|path| Self { path: path.into() })
    }

    fn new(place: &Place, name: &str, size: usize) -> Option<Self> {
        let path = place.path(name);
        File::create(&path).ok()?.set_len(size as u64).ok()?;
        Self::over(&path, false)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(place: &Place, size: &str) -> Option<Self> {
        let at = place.path("mounted");
        fs::create_dir(&at).ok()?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", at.to_str()?])?;
        Some(Self(at))
    }

    fn device(place: &Place, device: &Loop) -> Option<Self> {
        let at = place.path("mounted");
        fs::create_dir(&at).ok()?;
        run("mkfs.ext4", &["-q", device.path.to_str()?])?;
        run("mount", &[device.path.to_str()?, at.to_str()?])?;
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

fn skip(test: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} needs root and loop devices");
    eprintln!("SKIPPED: {test} needs root and loop devices");
}

macro_rules! need {
    ($test:literal, $have:expr) => {
        match $have {
            Some(have) => have,
            None => return skip($test),
        }
    };
}

fn refusal(error: &Error) -> Refusal {
    assert_sentence(error);
    match error {
        Error::Refused { refusal, .. } => *refusal,
        other => panic!("{other}"),
    }
}

fn device_bytes(device: &Loop, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(&device.path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn to_a_device_and_back() {
    let size = 21 * MIB + 512;
    let (daemon, place) = (Daemon::start(content(1, size)), Place::new());
    let device = need!("to_a_device_and_back", Loop::new(&place, "disk", 32 * MIB));
    let mut request = place.request(daemon.source());
    request.destination = device.path.clone();
    request.verify = true;
    let outcome = backup(&request).unwrap();
    assert_eq!((outcome.exit(), outcome.copy.device), (Exit::AsAsked, true));
    assert!(device_bytes(&device, size) == *daemon.t0());
    let copy = Copy::open(&device.path, &place.state()).unwrap();
    assert!(verify(&copy).is_good());
    assert_eq!(Copy::open(copy.manifest_path(), &place.state()).unwrap().id(), copy.id());
    assert_eq!(place.catalogue().find(&copy.id().to_string()).unwrap().id(), copy.id());
    let target = place.path("restored");
    restore(copy.clone(), &target, false).unwrap();
    assert!(fs::read(&target).unwrap() == *daemon.t0());

    // The copy that it holds is not overwritten unasked; then it is un-declared before the first byte lands.
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::CompleteCopy);
    request.replace = true;
    let error = backup_interrupted(&request, 1).unwrap_err();
    assert_eq!(error.exit(), Exit::Incomplete);
    assert!(matches!(Copy::open(&device.path, &place.state()), Err(Error::NoCopy { .. })));
    assert!(place.catalogue().list().unwrap().copies.is_empty());
    request.resume = true;
    backup(&request).unwrap();
    let again = Copy::open(&device.path, &place.state()).unwrap();
    assert!(verify(&again).is_good() && again.id() != copy.id());
    fs::remove_dir_all(place.state().join("catalogue")).unwrap();
    assert_eq!(place.catalogue().rebuild(&[]).unwrap().found, [again.id()]);
    place.catalogue().remove(&again).unwrap();
    assert!(device_bytes(&device, size) == *daemon.t0(), "a device keeps its bytes");
}

#[test]
fn devices_that_are_refused() {
    let size = 8 * MIB;
    let (daemon, place) = (Daemon::start(content(2, size)), Place::new());
    let small = need!("devices_that_are_refused", Loop::new(&place, "small", size - 4096));
    let mut request = place.request(daemon.source());
    request.destination = small.path.clone();
    assert!(matches!(refusal(&backup(&request).unwrap_err()), Refusal::TooSmall { .. }));
    assert!(!daemon.stands());

    let used = Loop::new(&place, "used", 2 * size).unwrap();
    File::options().write(true).open(&used.path).unwrap().write_all_at(b"data", size as u64).unwrap();
    request.destination = used.path.clone();
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::NotBlank);
    request.replace = true;
    backup(&request).unwrap();
    assert!(device_bytes(&used, size) == *daemon.t0());
    let copy = Copy::open(&used.path, &place.state()).unwrap();
    assert!(matches!(refusal(&restore(copy.clone(), &small.path, false).unwrap_err()), Refusal::TooSmall { .. }));
    assert_eq!(refusal(&restore(copy.clone(), &used.path, true).unwrap_err()), Refusal::HoldsCopy);

    let mounted_device = Loop::new(&place, "mounted-disk", 16 * MIB).unwrap();
    let mounted = Mounted::device(&place, &mounted_device).unwrap();
    request.destination = mounted_device.path.clone();
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::DeviceInUse);
    assert_eq!(refusal(&restore(copy.clone(), &mounted_device.path, true).unwrap_err()), Refusal::DeviceInUse);
    drop(mounted);
    let cancel = tzero_copy::Cancel::new();
    cancel.cancel();
    let request = tzero_copy::RestoreRequest { copy: copy.clone(), target: mounted_device.path.clone(), force: false };
    let error = tzero_copy::restore(&request, &mut |_| {}, &cancel).unwrap_err();
    assert!(error.exit() == Exit::Incomplete && error.to_string().contains("neither"), "{error}");
    restore(copy, &mounted_device.path, false).unwrap();
    assert!(device_bytes(&mounted_device, size) == *daemon.t0());
    assert!(!daemon.stands());

    let read_only = Loop::over(&place.path("used"), true).unwrap();
    let source = place.write("source", b"x");
    let mut to_read_only = place.plain(&source);
    to_read_only.destination = read_only.path.clone();
    to_read_only.replace = true;
    let error = backup(&to_read_only).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::ReadOnly, .. } | Error::File { .. }), "{error}");
}

#[test]
fn a_read_only_device_is_protected() {
    let place = Place::new();
    let bytes = content(3, 6 * MIB);
    let file = place.write("disk", &bytes);
    let read_only = need!("a_read_only_device_is_protected", Loop::over(&file, true));
    let outcome = backup(&place.plain(&read_only.path)).unwrap();
    assert_eq!((outcome.exit(), outcome.shortfall), (Exit::AsAsked, None));
    assert!(fs::read(place.image()).unwrap() == bytes);
    drop(read_only);
    let writable = Loop::over(&file, false).unwrap();
    let mut request = place.plain(&writable.path);
    request.replace = true;
    assert_eq!(backup(&request).unwrap().shortfall, Some(Shortfall::Unprotected));
}

#[test]
fn a_destination_inside_the_source_is_refused_through_every_layer() {
    let place = Place::new();
    let device =
        need!("a_destination_inside_the_source_is_refused_through_every_layer", Loop::new(&place, "disk", 24 * MIB));
    let mounted = Mounted::device(&place, &device).unwrap();
    for source in [&device.path, &place.path("disk")] {
        let mut request = place.plain(source);
        request.destination = mounted.0.join("vol.img");
        assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::IsSource);
    }
    assert!(!mounted.0.join("vol.img.tzero-journal").exists(), "nothing was written there");
    // The copy of something else lies on a device; that device is no target for it.
    let source = place.write("source", &content(4, MIB));
    let mut request = place.plain(&source);
    request.destination = mounted.0.join("vol.img");
    backup(&request).unwrap();
    let copy = Copy::open(&request.destination, &place.state()).unwrap();
    assert_eq!(refusal(&restore(copy, &device.path, true).unwrap_err()), Refusal::HoldsCopy);
    drop(mounted);
    // The whole file behind a loop device that is the source.
    let mut request = place.plain(&device.path);
    request.destination = place.path("disk");
    request.replace = true;
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::IsSource);
}

#[test]
fn a_full_destination_can_be_resumed_once_there_is_space() {
    let (daemon, place) = (Daemon::start(vec![7; 20 * MIB]), Place::new());
    let mounted = need!("a_full_destination_can_be_resumed_once_there_is_space", Mounted::tmpfs(&place, "13M"));
    let mut request = place.request(daemon.source());
    request.destination = mounted.0.join("vol.img");
    let error = backup(&request).unwrap_err();
    assert_eq!(error.exit(), Exit::Incomplete, "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    assert!(!request.destination.exists());
    run("mount", &["-o", "remount,size=40M", mounted.0.to_str().unwrap()]).unwrap();
    request.resume = true;
    backup(&request).unwrap();
    assert!(fs::read(&request.destination).unwrap() == *daemon.t0());
}

#[test]
fn a_destination_that_takes_nothing_is_a_failure_that_leaves_nothing() {
    let (daemon, place) = (Daemon::start(vec![7; 20 * MIB]), Place::new());
    let mounted =
        need!("a_destination_that_takes_nothing_is_a_failure_that_leaves_nothing", Mounted::tmpfs(&place, "64K"));
    let mut request = place.request(daemon.source());
    request.destination = mounted.0.join("vol.img");
    let error = backup(&request).unwrap_err();
    assert_eq!(error.exit(), Exit::Failed, "{error}");
    assert_sentence(&error);
    assert_eq!(fs::read_dir(&mounted.0).unwrap().count(), 0);
    assert!(!daemon.stands());
}
