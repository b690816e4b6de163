//! Copies on real block devices and full file systems. Needs root and loop devices: where they cannot be had the tests
//! say so by name, and fail under `CI`.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::daemon::Daemon;
use common::{MIB, Place, assert_sentence, backup, backup_interrupted, content, restore, restoring, verify};
use tzero_api::Exit;
use tzero_copy::{Copy, Error, Protection, Refusal, Shortfall};

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

    /// One with two partitions of 4 MiB.
    fn parted(file: &Path) -> Option<Self> {
        let disk = run("losetup", &["--partscan", "--find", "--show", file.to_str()?])?;
        let disk = Self { path: disk.into() };
        for (number, start) in [("1", "2048"), ("2", "10240")] {
            run("addpart", &[disk.path.to_str()?, number, start, "8192"])?;
        }
        Some(disk)
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
    restore(&place, copy.clone(), &target, false).unwrap();
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
    assert!(matches!(
        refusal(&restore(&place, copy.clone(), &small.path, false).unwrap_err()),
        Refusal::TooSmall { .. }
    ));
    assert_eq!(refusal(&restore(&place, copy.clone(), &used.path, true).unwrap_err()), Refusal::HoldsCopy);

    let mounted_device = Loop::new(&place, "mounted-disk", 16 * MIB).unwrap();
    let mounted = Mounted::device(&place, &mounted_device).unwrap();
    request.destination = mounted_device.path.clone();
    assert_eq!(refusal(&backup(&request).unwrap_err()), Refusal::DeviceInUse);
    assert_eq!(refusal(&restore(&place, copy.clone(), &mounted_device.path, true).unwrap_err()), Refusal::DeviceInUse);
    drop(mounted);
    let cancel = tzero_copy::Cancel::new();
    cancel.cancel();
    let (copy_of, target) = (copy.clone(), mounted_device.path.clone());
    // A file system is on it, although nobody has it mounted any more.
    let error = restore(&place, copy.clone(), &mounted_device.path, false).unwrap_err();
    assert_eq!(refusal(&error), Refusal::NotBlankTarget);
    run("fsck.ext4", &["-fn", mounted_device.path.to_str().unwrap()]).unwrap();
    let request = restoring(&place, copy_of, &target, true);
    let error = tzero_copy::restore(&request, &mut |_| {}, &cancel).unwrap_err();
    let text = error.to_string();
    assert!(error.exit() == Exit::Incomplete && text.contains("neither") && text.contains("--force"), "{text}");
    restore(&place, copy.clone(), &mounted_device.path, true).unwrap();
    let blank = Loop::new(&place, "blank", 16 * MIB).unwrap();
    restore(&place, copy, &blank.path, false).unwrap();
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
fn a_device_that_holds_a_copy_is_restored_to_only_on_request() {
    let size = 6 * MIB;
    let (daemon, place) = (Daemon::start(content(7, size)), Place::new());
    let device = need!("a_device_that_holds_a_copy_is_restored_to_only_on_request", Loop::new(&place, "disk", 8 * MIB));
    let source = place.write("source", &content(8, size));
    let mut plain = place.plain(&source);
    plain.destination = place.path("copies/plain.img");
    backup(&plain).unwrap();
    let copy = Copy::open(&plain.destination, &place.state()).unwrap();

    // A whole copy stands there.
    let mut request = place.request(daemon.source());
    request.destination = device.path.clone();
    backup(&request).unwrap();
    let error = restore(&place, copy.clone(), &device.path, false).unwrap_err();
    assert_eq!(refusal(&error), Refusal::Declared);
    assert!(verify(&Copy::open(&device.path, &place.state()).unwrap()).is_good());
    restore(&place, copy.clone(), &device.path, true).unwrap();
    assert!(device_bytes(&device, size) == fs::read(&source).unwrap());
    assert!(matches!(Copy::open(&device.path, &place.state()), Err(Error::NoCopy { .. })));
    assert_eq!(place.catalogue().list().unwrap().copies.len(), 1);

    // An unfinished one would go on over the restored bytes and call the mixture good.
    request.replace = true;
    backup_interrupted(&request, 1).unwrap_err();
    let journal = fs::read_dir(place.state().join("journals")).unwrap().next().unwrap().unwrap().path();
    for force in [false, true] {
        let error = restore(&place, copy.clone(), &device.path, force).unwrap_err();
        assert_sentence(&error);
        let way = format!("`tzero copy remove {}`", journal.display());
        assert!(matches!(error, Error::Unfinished { .. }) && error.to_string().contains(&way), "{error}");
    }
    request.resume = true;
    backup(&request).unwrap();
    assert!(device_bytes(&device, size) == *daemon.t0());
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
    assert_eq!(refusal(&restore(&place, copy, &device.path, true).unwrap_err()), Refusal::HoldsCopy);
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

/// A volume on record, as a daemon leaves it.
fn register(place: &Place, base: &Path) {
    let directory = place.state().join("volumes/vm");
    fs::create_dir_all(&directory).unwrap();
    let record = format!(r#"{{"version":1,"id":"1a","name":"vm","base":"{}"}}"#, base.display());
    fs::write(directory.join("volume.json"), record).unwrap();
}

#[test]
fn a_registered_base_is_spared_through_every_layer() {
    let place = Place::new();
    let bytes = content(20, 16 * MIB);
    let file = place.write("base", &bytes);
    let device = need!("a_registered_base_is_spared_through_every_layer", Loop::over(&file, false));
    let again = Loop::over(&file, false).unwrap();
    let mut request = place.plain(&place.write("source", &content(21, MIB)));
    backup(&request).unwrap();
    let copy = place.copy();
    request.replace = true;
    let refused = |base: &Path, to: &Path| {
        register(&place, base);
        let mut request = request.clone();
        request.destination = to.to_owned();
        for error in [backup(&request).unwrap_err(), restore(&place, copy.clone(), to, true).unwrap_err()] {
            assert_sentence(&error);
            assert!(matches!(error, Error::Registered { .. }), "{} on {}: {error}", to.display(), base.display());
        }
    };
    // The file below, the device above, another device over the same file.
    refused(&file, &device.path);
    refused(&device.path, &file);
    refused(&device.path, &again.path);
    assert!(fs::read(&file).unwrap() == bytes);

    // Parts of one file that have nothing to do with each other.
    let half = (8 * MIB).to_string();
    let part = |options: &[&str]| {
        let file = file.to_str().unwrap();
        let path = run("losetup", &[&["--find", "--show"], options, &[file]].concat()).unwrap();
        Loop { path: path.into() }
    };
    let (head, tail) = (part(&["--sizelimit", &half]), part(&["--offset", &half]));
    refused(&head.path, &device.path);
    refused(&tail.path, &file);
    register(&place, &head.path);
    restore(&place, copy.clone(), &tail.path, true).unwrap();
    assert!(fs::read(&file).unwrap()[..8 * MIB] == bytes[..8 * MIB]);
}

#[test]
fn a_registered_partition_is_spared_and_the_one_beside_it_is_not() {
    let place = Place::new();
    let file = place.path("disk");
    File::create(&file).unwrap().set_len(16 * MIB as u64).unwrap();
    let part = |disk: &Loop, number: u32| PathBuf::from(format!("{}p{number}", disk.path.display()));
    let have = Loop::parted(&file).zip(Loop::parted(&file));
    let (disk, again) = need!("a_registered_partition_is_spared_and_the_one_beside_it_is_not", have);
    backup(&place.plain(&place.write("source", &content(26, MIB)))).unwrap();
    register(&place, &part(&disk, 1));
    for target in [part(&disk, 1), part(&again, 1), disk.path.clone(), again.path.clone(), file.clone()] {
        let error = restore(&place, place.copy(), &target, true).unwrap_err();
        assert!(matches!(error, Error::Registered { .. }), "{}: {error}", target.display());
    }
    restore(&place, place.copy(), &part(&again, 2), false).unwrap();
}

#[test]
fn a_device_over_a_locked_file_is_spared() {
    let place = Place::new();
    let bytes = content(22, 8 * MIB);
    let file = place.write("base", &bytes);
    let device = need!("a_device_over_a_locked_file_is_spared", Loop::over(&file, false));
    backup(&place.plain(&place.write("source", &content(23, MIB)))).unwrap();
    // A daemon with another state directory.
    let locked = File::open(&file).unwrap();
    locked.lock().unwrap();
    let error = restore(&place, place.copy(), &device.path, true).unwrap_err();
    assert_eq!(refusal(&error), Refusal::LiesOnLocked);
    assert!(fs::read(&file).unwrap() == bytes);
    drop(locked);
    restore(&place, place.copy(), &device.path, true).unwrap();
}

#[test]
fn nothing_goes_into_the_state_directory_through_a_device() {
    let place = Place::new();
    backup(&place.plain(&place.write("source", &content(24, MIB)))).unwrap();
    let inside = place.state().join("file");
    fs::write(&inside, vec![0; 2 * MIB]).unwrap();
    let device = need!("nothing_goes_into_the_state_directory_through_a_device", Loop::over(&inside, false));
    let error = restore(&place, place.copy(), &device.path, true).unwrap_err();
    assert!(matches!(error, Error::InState { .. }), "{error}");
}

#[test]
fn a_locked_device_is_protected_by_whoever_started_the_copy_alone() {
    let place = Place::new();
    let file = place.write("disk", &content(25, 6 * MIB));
    let device = need!("a_locked_device_is_protected_by_whoever_started_the_copy_alone", Loop::over(&file, false));
    let mut request = place.plain(&device.path);
    request.replace = true;
    // This process stands for the one that has started it.
    let own = File::open(&device.path).unwrap();
    own.lock().unwrap();
    assert_eq!(backup(&request).unwrap().copy.protection, Some(Protection::Locked));
    drop(own);
    assert_eq!(backup(&request).unwrap().copy.protection, None);
    let path = device.path.to_str().unwrap();
    for (how, protects) in [("-x", None), ("-s", Some(Protection::Locked))] {
        let stranger = stranger_of(Command::new("flock").args([how, path, "sh", "-c", "echo held; read line"]));
        assert_eq!(backup(&request).unwrap().copy.protection, protects, "{how}");
        drop(stranger);
    }
}

/// Starts what says that it holds something, and ends it when dropped.
fn stranger_of(command: &mut Command) -> impl Drop + use<> {
    struct Stranger(std::process::Child);
    impl Drop for Stranger {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }
    let piped = std::process::Stdio::piped;
    let mut child = command.stdin(piped()).stdout(piped()).spawn().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
    Stranger(child)
}
