//! What is asked for in vain: one sentence each, the right exit code, and the host lives.

use std::fs::File;
use std::path::Path;

use e2e::daemon::Setting;
use e2e::mounts::{Loop, Mounted};
use e2e::scratch::{bytes, copy, names, read};
use e2e::tzero::{binary, sentence};
use e2e::{Daemon, MIB, Program, Scratch, Tzero};

const SIZE: u64 = 16 * MIB;

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Writes 64 KiB everywhere and reads it back: the host of a volume lives.
fn host_lives(daemon: &Daemon, seed: u64) {
    let mut host = daemon.connect("vol");
    let new = bytes(host.size() as usize, seed);
    for (index, chunk) in new.chunks(64 << 10).enumerate() {
        host.write(index as u64 * (64 << 10), chunk).unwrap_or_else(|failure| panic!("write {index}: {failure}"));
    }
    assert!(host.read_all().expect("reading works") == new);
}

#[test]
fn bases_that_cannot_be() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch);
    let odd = scratch.sparse("odd", SIZE + 100);
    let empty = scratch.sparse("empty", 0);
    for base in [scratch.join("missing"), scratch.path().to_path_buf(), odd, empty, "/dev/null".into()] {
        let said = daemon.refuses(1, &format!("volume add vol {}", shown(&base)));
        assert!(said.contains(&shown(&base)), "it does not say on what: {said}");
    }
    assert_eq!(daemon.json("volume list")["volumes"].as_array().map(Vec::len), Some(0));
    // What cannot be written cannot be a volume, and root may read everything: a device says no for good.
    let fixed = Loop::with(&["--read-only"], &scratch.random("fixed", SIZE, 1));
    daemon.refuses(1, &format!("volume add vol {}", shown(fixed.device())));
    assert_eq!(names(&scratch.join("state/volumes")), [""; 0], "nothing half made is left");
    daemon.stop();
}

#[test]
fn an_unreadable_base() {
    // Nobody may read the file; the daemon is not root here.
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    Program::new("chmod").arg("0600").arg(&base).ok();
    let state = scratch.join("state");
    std::fs::create_dir(&state).expect("a directory can be made");
    Program::new("chown").arg("nobody").arg(&state).ok();
    // The build directory may be out of that user's reach.
    let program = scratch.join("tzero");
    copy(&binary(), &program);
    let tzero = Tzero::with_binary(&state, &program);
    let serve = tzero.command(["serve"]).user("nobody").start();
    serve.line(|line| line == "ready");
    let finished = tzero.command(["volume", "add", "vol"]).arg(&base).user("nobody").run();
    finished.exited(1);
    let said = sentence(&finished);
    assert!(said.contains(&shown(&base)), "{said}");
}

#[test]
fn names_and_sizes_that_cannot_be() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let other = scratch.random("other", SIZE, 2);
    let daemon = Daemon::serving(&scratch, &base);
    daemon.refuses(1, &format!("volume add vol {}", shown(&other)));
    daemon.refuses(1, &format!("volume add vol2 {}", shown(&base)));
    let long = "x".repeat(65);
    for name in ["a/b", "a@b", "ä", "..", &long] {
        daemon.refuses(2, &format!("volume add {name} {}", shown(&other)));
        daemon.refuses(2, &format!("snapshot create {name} vol"));
    }
    for grain in ["100", "3000", "256", "2M", "0", "4Q", "-1"] {
        daemon.refuses(2, &format!("volume add vol3 {} --grain={grain}", shown(&other)));
    }
    // More than the machine has memory for the bits of.
    let memory = Mounted::memory(&scratch.join("memory"), MIB);
    let huge = memory.path().join("huge");
    let said = daemon.refuses(1, &format!("volume add huge {} --size 4000P", shown(&huge)));
    assert!(said.contains("bytes of memory") && said.contains("a larger grain needs less"), "{said}");
    assert!(!huge.exists());
    daemon.ok("snapshot create s vol");
    daemon.refuses(1, "snapshot create s vol");
    daemon.refuses(1, "snapshot create s nothing");
    daemon.refuses(1, "snapshot show vol@nothing");
    daemon.refuses(1, "snapshot map vol@nothing");
    daemon.refuses(1, "snapshot delete vol@nothing");
    daemon.refuses(1, "snapshot delete nothing");
    daemon.refuses(1, "volume show nothing");
    daemon.refuses(1, "volume remove nothing");
    daemon.refuses(1, &format!("backup vol@nothing --to image:{}", shown(&scratch.join("copy"))));
    daemon.refuses(1, &format!("backup nothing --to image:{}", shown(&scratch.join("copy"))));
    daemon.refuses(1, "copy show nothing");
    daemon.refuses(1, "copy verify nothing");
    daemon.refuses(1, &format!("restore nothing --to {}", shown(&scratch.join("back"))));
    assert!(!scratch.join("copy").exists() && !scratch.join("back").exists());
    host_lives(&daemon, 3);
    daemon.stop();
}

#[test]
fn a_cache_on_the_volume_itself() {
    let scratch = Scratch::new();
    let image = scratch.sparse("image", 64 * MIB);
    Program::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).ok();
    let disk = Loop::over(&image);
    let mounted = Mounted::device(disk.device(), &scratch.join("mnt"));
    let inside = mounted.join("cache");
    std::fs::create_dir(&inside).expect("a directory can be made");
    let daemon = Daemon::start(&scratch);
    // The device below the file system, and the file below that device.
    for base in [disk.device(), &image] {
        let said = daemon.refuses(1, &format!("volume add vol {} --cache-dir {}", shown(base), shown(&inside)));
        // A device that carries a mounted file system cannot be had at all.
        assert!(said.contains(&shown(&inside)) || (base == disk.device() && said.contains("in use")), "{said}");
    }
    assert_eq!(names(&inside), [""; 0]);
    daemon.stop();
    // The state directory is a cache directory too.
    let daemon = Setting::new(&mounted.join("state")).start();
    daemon.refuses(1, &format!("volume add vol {}", shown(disk.device())));
    daemon.stop();
}

#[test]
fn a_destination_that_is_the_source_or_lies_on_it() {
    let scratch = Scratch::new();
    let image = scratch.sparse("image", 64 * MIB);
    Program::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).ok();
    let disk = Loop::over(&image);
    let daemon = Daemon::serving(&scratch, &image);
    let link = scratch.join("link");
    std::os::unix::fs::symlink(&image, &link).expect("a link can be made");
    for to in [image.as_path(), &link, disk.device()] {
        let line = format!("backup vol --replace --to image:{}", shown(to));
        let refused = daemon.run(&line);
        assert!(matches!(refused.code(), Some(1 | 2)), "{refused}");
        sentence(&refused);
    }
    let before = read(&image);
    {
        let mounted = Mounted::device(disk.device(), &scratch.join("mnt"));
        let refused = daemon.run(&format!("backup vol --to image:{}", shown(&mounted.join("copy"))));
        assert!(matches!(refused.code(), Some(1 | 2)), "{refused}");
        sentence(&refused);
        assert!(!mounted.join("copy").exists());
    }
    assert_eq!(before.len(), read(&image).len());
    assert!(daemon.snapshots("vol").is_empty(), "refused backups leave no snapshot");
    // A plain source too.
    let plain = scratch.random("plain", SIZE, 1);
    let bytes = read(&plain);
    daemon.refuses(1, &format!("backup {0} --replace --to image:{0}", shown(&plain)));
    assert!(read(&plain) == bytes);
    daemon.stop();
}

#[test]
fn manifests_that_were_tampered_with_or_cut_short() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let to = scratch.join("copy.img");
    let manifest = scratch.join("copy.img.tzero");
    daemon.ok(&format!("backup vol --to image:{}", shown(&to)));
    daemon.stop();
    let tzero = Tzero::at(&scratch.join("state"));
    let good = read(&manifest);
    let text = String::from_utf8(good.clone()).expect("a manifest is text");
    let size = SIZE.to_string();
    assert!(text.contains(&size), "{text}");
    let digest = text.find("digest").expect("digests").max(text.len() / 2);
    let mut flipped = good.clone();
    let at = (digest..flipped.len()).find(|at| flipped[*at].is_ascii_digit()).expect("a digit of a digest");
    flipped[at] = if flipped[at] == b'1' { b'2' } else { b'1' };
    let spoilt = [
        good[..good.len() / 2].to_vec(),
        Vec::new(),
        b"{}".to_vec(),
        b"[[[[[[".repeat(10_000),
        text.replacen(&size, &(SIZE * 2).to_string(), 1).into_bytes(),
        text.replacen(&size, "18446744073709551615", 1).into_bytes(),
        flipped,
    ];
    for (index, bytes) in spoilt.iter().enumerate() {
        std::fs::write(&manifest, bytes).expect("a file can be written");
        for line in [
            format!("copy verify {}", shown(&to)),
            format!("restore {} --to {}", shown(&to), shown(&scratch.join("back"))),
        ] {
            let refused = tzero.run(&line);
            assert_eq!(refused.code(), Some(1), "manifest {index}: {refused}");
            sentence(&refused);
        }
        assert!(!scratch.join("back").exists(), "manifest {index}: nothing may look restored");
    }
    std::fs::write(&manifest, &good).expect("a file can be written");
    tzero.ok(&format!("copy verify {}", shown(&to)));
}

#[test]
fn without_a_daemon() {
    let scratch = Scratch::new();
    let tzero = Tzero::at(&scratch.join("state"));
    let base = scratch.random("base", SIZE, 1);
    for line in [
        format!("volume add vol {}", shown(&base)),
        "volume list".to_owned(),
        "snapshot create s vol".to_owned(),
        "snapshot list".to_owned(),
        "snapshot delete vol@s".to_owned(),
        format!("backup vol --to image:{}", shown(&scratch.join("copy"))),
        format!("backup vol@s --to image:{}", shown(&scratch.join("copy"))),
        "status".to_owned(),
    ] {
        let said = tzero.refuses(1, &line);
        assert!(said.contains("serve") || said.contains("daemon"), "what to do is missing: {said}");
    }
}

#[test]
fn a_second_daemon() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let second = daemon.command(["serve"]).run();
    second.exited(1);
    assert_eq!(second.stdout, "", "it must not say that it is ready");
    assert!(second.stderr.contains(&shown(&scratch.join("state"))), "{second}");
    host_lives(&daemon, 1);
    // With a state directory of its own it still cannot have that base.
    let other = Setting::new(&scratch.join("other")).start();
    let said = other.refuses(1, &format!("volume add vol {}", shown(&base)));
    assert!(said.contains(&shown(&base)), "{said}");
    other.stop();
    daemon.stop();
}

#[test]
fn flags_that_do_not_exist() {
    let scratch = Scratch::new();
    let tzero = Tzero::at(&scratch.join("state"));
    for line in [
        "",
        "frobnicate",
        "volume",
        "volume add",
        "volume add v /b --durability none",
        "volume resize v 0",
        "volume resize v 1000",
        "volume rebase v",
        "backup v --to image:x --boundary all",
        "backup v --to image:x --layout append",
        "backup v --to image:x --incremental",
        "backup v --to image:x --toc",
        "backup v --to image:x --frobnicate",
        "backup v",
        "copy prune --keep-last 1",
        "copy verify x --source",
        "copy integrate x",
        "copy duplicate x image:y",
        "restore x --to y --path /etc",
        "restore x --to y --in-place",
        "restore x",
        "clone create v image:x",
        "dataset list",
        "doctor",
        "serve --nbd tcp:0.0.0.0:10809",
        "serve --nbd nowhere",
        "serve --config /does/not/exist.toml",
    ] {
        let refused = tzero.run(line);
        assert_eq!(refused.code(), Some(2), "{line}: {refused}");
        sentence(&refused);
        assert_eq!(refused.stdout, "", "{line}");
    }
    assert!(!scratch.join("state").exists(), "nothing was made for a command that was not understood");
}

#[test]
fn destinations_of_later_versions() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    for to in ["archive:x", "archive:-", "tape:/dev/nst0", "repo:x", "repo:s3://bucket/prefix", "image:"] {
        daemon.refuses(2, &format!("backup vol --to {to}"));
    }
    daemon.refuses(1, "backup vol --to image:/does/not/exist/copy");
    assert!(daemon.snapshots("vol").is_empty(), "refused backups leave no snapshot");
    daemon.stop();
}

/// Fills a file system to its last byte.
fn fill(mounted: &Mounted) {
    use std::io::Write;
    let mut file = File::create(mounted.join("filler")).expect("a file can be made");
    for size in [64 << 10, 4096, 512, 1] {
        let chunk = vec![1; size];
        while file.write_all(&chunk).is_ok() {}
    }
}

#[test]
fn a_full_cache_directory() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let mounted = Mounted::ext4(&scratch.join("disk"), 12 * MIB, &scratch.join("mnt"));
    let mut daemon = Daemon::start(&scratch);
    daemon.announce("broken");
    let cache = mounted.join("cache");
    std::fs::create_dir(&cache).expect("a directory can be made");
    daemon.ok(&format!("volume add vol {} --cache-dir {}", shown(&base), shown(&cache)));
    daemon.ok("snapshot create s vol");
    fill(&mounted);
    host_lives(&daemon, 2);
    let snapshot = daemon.json("snapshot show vol@s");
    assert_eq!(snapshot["snapshot"]["state"], "broken", "{snapshot}");
    assert!(snapshot["snapshot"]["reason"].is_string(), "{snapshot}");
    daemon.ok("snapshot delete vol@s");
    daemon.stop();
}

#[test]
fn a_full_state_directory() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let other = scratch.random("other", SIZE, 2);
    let mounted = Mounted::ext4(&scratch.join("disk"), 24 * MIB, &scratch.join("mnt"));
    let mut daemon = Setting::new(&mounted.join("state")).start();
    for text in ["broken", "space", "cannot"] {
        daemon.announce(text);
    }
    daemon.add("vol", &base);
    daemon.ok("snapshot create s vol");
    fill(&mounted);
    host_lives(&daemon, 2);
    let snapshot = daemon.json("snapshot show vol@s");
    assert_eq!(snapshot["snapshot"]["state"], "broken", "{snapshot}");
    daemon.refuses(1, &format!("volume add vol2 {}", shown(&other)));
    let list = daemon.json("volume list");
    assert_eq!(list["volumes"].as_array().map(Vec::len), Some(1), "{list}");
    host_lives(&daemon, 3);
    std::fs::remove_file(mounted.join("filler")).expect("the filler can be removed");
    daemon.ok("snapshot delete vol@s");
    daemon.ok("snapshot create s vol");
    host_lives(&daemon, 4);
    daemon.stop();
}

#[test]
fn a_full_destination() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let mounted = Mounted::memory(&scratch.join("mnt"), 8 * MIB);
    let mut daemon = Daemon::serving(&scratch, &base);
    daemon.announce("a backup was interrupted");
    let to = mounted.join("copy.img");
    let finished = daemon.run(&format!("backup vol --to image:{}", shown(&to)));
    assert!(matches!(finished.code(), Some(1 | 4)), "{finished}");
    let said = sentence(&finished);
    assert!(said.contains(&shown(&mounted.join("copy.img"))), "{said}");
    assert!(!to.exists(), "nothing is declared");
    daemon.refuses(1, &format!("copy show {}", shown(&to)));
    host_lives(&daemon, 2);
    if finished.code() == Some(4) {
        let discard = said.split('`').filter_map(|text| text.strip_prefix("tzero ")).next_back();
        daemon.ok(discard.expect("it names a command that discards"));
    }
    assert!(daemon.snapshots("vol").is_empty(), "no snapshot is left behind");
    let back = mounted.join("back");
    let good = scratch.join("good.img");
    daemon.ok(&format!("backup vol --to image:{}", shown(&good)));
    let restore = daemon.run(&format!("restore {} --to {}", shown(&good), shown(&back)));
    restore.exited(1);
    sentence(&restore);
    daemon.stop();
}

#[test]
fn a_base_without_space() {
    // The host's own bytes do not fit: the host hears of that, and of nothing else.
    let scratch = Scratch::new();
    let mounted = Mounted::memory(&scratch.join("mnt"), 4 * MIB);
    let base = mounted.join("base");
    File::create(&base).and_then(|file| file.set_len(SIZE)).expect("a file can be made");
    let mut daemon = Daemon::serving(&scratch, &base);
    daemon.announce("space");
    let mut host = daemon.connect("vol");
    let new = bytes(64 << 10, 1);
    let failed = (0..256).filter(|index| host.write(index * (64 << 10), &new).is_err()).count();
    assert!((128..256).contains(&failed), "{failed} of 256 writes failed");
    assert_eq!(host.read(0, 64 << 10).expect("reading works"), new);
    daemon.stop();
}
