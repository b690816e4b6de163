//! `cargo xtask setup`: what the tests need beyond Rust, from Debian's own archive.
//!
//! It changes nothing where everything is present. It installs packages and, where they are missing, `rustfmt`,
//! `clippy` and `cargo-nextest`; it writes no configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{self, cargo, find, is_root, output};

/// Version of the test runner that is installed where there is none.
const NEXTEST: &str = "0.9.143";

/// How to tell that a package is there: newer releases move programs between packages, so packages are not asked for.
enum Sign {
    Program(&'static str),
    PythonModule(&'static str),
    PostgresProgram(&'static str),
}

/// Something that the tests use, and the Debian package that brings it.
struct Need {
    package: &'static str,
    sign: Sign,
    version: &'static [&'static str],
}

const NEEDS: &[Need] = &[
    need("nbdkit", Sign::Program("nbdkit"), &["--version"]),
    need("libnbd-bin", Sign::Program("nbdinfo"), &["--version"]),
    need("libnbd-bin", Sign::Program("nbdcopy"), &["--version"]),
    need("libnbd-bin", Sign::Program("nbdfuse"), &["--version"]),
    need("python3-libnbd", Sign::PythonModule("nbd"), &[]),
    need("fio", Sign::Program("fio"), &["--version"]),
    need("qemu-utils", Sign::Program("qemu-img"), &["--version"]),
    need("qemu-utils", Sign::Program("qemu-io"), &["--version"]),
    need("qemu-system-common", Sign::Program("qemu-storage-daemon"), &["--version"]),
    need("fuse3", Sign::Program("fusermount3"), &["--version"]),
    need("postgresql", Sign::PostgresProgram("postgres"), &["--version"]),
    need("postgresql", Sign::PostgresProgram("pgbench"), &["--version"]),
    need("postgresql", Sign::PostgresProgram("pg_amcheck"), &["--version"]),
    need("e2fsprogs", Sign::Program("mkfs.ext4"), &[]),
    need("xfsprogs", Sign::Program("mkfs.xfs"), &["-V"]),
    need("btrfs-progs", Sign::Program("mkfs.btrfs"), &["--version"]),
    need("mount", Sign::Program("mount"), &["--version"]),
    need("mount", Sign::Program("losetup"), &["--version"]),
    need("util-linux", Sign::Program("setpriv"), &["--version"]),
    need("util-linux", Sign::Program("fincore"), &["--version"]),
    need("util-linux", Sign::Program("fstrim"), &["--version"]),
];

const fn need(package: &'static str, sign: Sign, version: &'static [&'static str]) -> Need {
    Need { package, sign, version }
}

/// The task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("`cargo xtask setup` takes no argument");
    }
    packages()?;
    toolchain()?;
    runner()?;
    report();
    kernel();
    println!("setup: everything that the tests need is here");
    Ok(())
}

fn packages() -> Result<()> {
    let mut missing: Vec<&str> = NEEDS.iter().filter(|need| !present(need)).map(|need| need.package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: missing from Debian: {}", missing.join(", "));
    if find("apt-get").is_none() {
        bail!("this is no Debian system: install what brings {} yourself, then run this again", missing.join(", "));
    }
    if !is_root() {
        bail!("installing packages needs root: run `cargo xtask setup` as root, or install {}", missing.join(" "));
    }
    if missing.iter().any(|package| !installable(package)) {
        shell::run(Command::new("apt-get").args(["--quiet", "update"]))?;
    }
    if !install(&missing)? {
        println!("setup: the list of packages may be old; fetching it, then once more");
        shell::run(Command::new("apt-get").args(["--quiet", "update"]))?;
        if !install(&missing)? {
            bail!("apt-get could not install {}; its message stands above", missing.join(" "));
        }
    }
    let absent: Vec<String> = NEEDS.iter().filter(|need| !present(need)).map(name).collect();
    if !absent.is_empty() {
        bail!("still missing after the installation: {}", absent.join(", "));
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["--quiet", "install", "--yes", "--no-install-recommends"]).args(packages);
    shell::succeeds(&mut command)
}

fn installable(package: &str) -> bool {
    output(Command::new("apt-cache").args(["show", "--no-all-versions", package])).is_some()
}

fn present(need: &Need) -> bool {
    match need.sign {
        Sign::Program(program) => find(program).is_some(),
        Sign::PythonModule(module) => {
            output(Command::new("/usr/bin/python3").args(["-c", &format!("import {module}")])).is_some()
        }
        Sign::PostgresProgram(program) => postgres(program).is_some(),
    }
}

fn name(need: &Need) -> String {
    match need.sign {
        Sign::Program(name) | Sign::PostgresProgram(name) => name.to_owned(),
        Sign::PythonModule(name) => format!("python module {name}"),
    }
}

/// Debian keeps PostgreSQL's server programs off `PATH`, a directory for each release.
fn postgres(program: &str) -> Option<PathBuf> {
    let releases = Path::new("/usr/lib/postgresql").read_dir().ok()?;
    releases.filter_map(|entry| Some(entry.ok()?.path().join("bin").join(program))).find(|file| file.is_file())
}

fn toolchain() -> Result<()> {
    for component in ["fmt", "clippy"] {
        if output(&mut cargo(&[component, "--version"])).is_none() {
            println!("setup: `cargo {component}` is missing");
            let name = if component == "fmt" { "rustfmt" } else { component };
            shell::run(Command::new("rustup").args(["component", "add", name]))?;
        }
    }
    Ok(())
}

fn runner() -> Result<()> {
    if output(&mut cargo(&["nextest", "--version"])).is_some() {
        return Ok(());
    }
    println!("setup: the test runner is missing; building cargo-nextest {NEXTEST} takes some minutes");
    shell::run(&mut cargo(&["install", "--locked", "--version", NEXTEST, "cargo-nextest"]))
}

fn report() {
    for need in NEEDS.iter().filter(|need| !need.version.is_empty()) {
        let program = match need.sign {
            Sign::Program(program) => find(program),
            Sign::PostgresProgram(program) => postgres(program),
            Sign::PythonModule(_) => None,
        };
        let Some(program) = program else { continue };
        if let Some(text) = output(Command::new(&program).args(need.version)) {
            println!("  {:45} {}", program.display(), text.lines().next().unwrap_or_default());
        }
    }
    if let Some(text) = output(&mut cargo(&["nextest", "--version"])) {
        println!("  {:45} {}", "cargo-nextest", text.lines().next().unwrap_or_default());
    }
}

/// What no package brings; the tests that need it fail by name.
fn kernel() {
    for (device, what) in [("/dev/fuse", "FUSE"), ("/dev/loop-control", "loop devices")] {
        if !Path::new(device).exists() {
            println!("setup: WARNING: {device} is missing: tests that use {what} will fail on this machine");
        }
    }
}
