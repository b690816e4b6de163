//! Copies: of an idle host, and while it writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::content::{BLOCK, Content};
use crate::bench::load::{End, Link, Load, Places, Taken};
use crate::bench::peers::{Io, Program, Server, shown};
use crate::bench::rows::{C_CPU, C_IDLE, M_COPY, M_RATE, O_COPY, O_P99, O_RATE, QSD, RAW, TZERO};
use crate::bench::session::{VOLUME, wrong};
use crate::bench::{Bench, failed};
use crate::demo::mixed;
use crate::ending::Ending;
use crate::nbd::Command;
use crate::stage::cpu_of;

/// What a host that asks for little asks for, a second.
const OFFERED: u32 = 2000;
/// How many of its writes are in flight.
const OFFERED_DEPTH: usize = 4;
/// How long a host writes before the copy begins.
const LEAD: Duration = Duration::from_millis(500);
/// Blocks of a copy that are compared.
const COMPARED: u64 = 512;

/// A host that writes while something is copied.
#[derive(Clone, Copy)]
enum Host {
    Offers,
    FlatOut,
}

impl Bench {
    fn target(&self) -> Result<PathBuf, Ending> {
        let target = self.stage.path("copy.img");
        for path in [target.clone(), self.stage.path("copy.img.tzero")] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("clearing a copy away")(error));
                }
                _ => {}
            }
        }
        Ok(target)
    }

    fn megabytes(&self, seconds: f64) -> f64 {
        self.material.size as f64 / 1e6 / seconds
    }

    /// Copies with tzero; gives seconds, and seconds of processor.
    fn back_up(&self, target: &Path) -> Result<(f64, f64), Ending> {
        let before = self.daemon_cpu();
        let target =
            target.to_str().ok_or_else(|| Ending::usage("the directory is not UTF-8: name another with --dir"))?;
        let run = self.stage.timed(&["backup", VOLUME, "--to", target])?;
        Ok((run.seconds, run.cpu + self.daemon_cpu() - before))
    }

    pub(super) fn idle_copies(&mut self) -> Result<(), Ending> {
        for subject in self.subjects(&[TZERO, RAW, QSD], &[C_IDLE, C_CPU]) {
            self.material.cool().map_err(failed("emptying the page cache"))?;
            let target = self.target()?;
            let (seconds, cpu) = match subject {
                TZERO => {
                    self.begin(&self.material.path.clone(), true)?;
                    let taken = self.back_up(&target)?;
                    self.end()?;
                    self.compare_copy(&target)?;
                    taken
                }
                RAW => {
                    let begun = Instant::now();
                    self.material.copy(&target).map_err(failed("the raw copy"))?;
                    (begun.elapsed().as_secs_f64(), 0.0)
                }
                _ => {
                    let mut server = self.qemu(&target)?;
                    let before = cpu_of(server.id()).unwrap_or(0.0);
                    let begun = Instant::now();
                    server.backup(&target, None)?;
                    synced(&target)?;
                    let seconds = begun.elapsed().as_secs_f64();
                    (seconds, cpu_of(server.id()).unwrap_or(0.0) - before)
                }
            };
            self.take((subject, C_IDLE), self.megabytes(seconds));
            self.take((subject, C_CPU), cpu / (self.material.size as f64 / (1u64 << 30) as f64));
        }
        Ok(())
    }

    /// QEMU's daemon, and a file to copy to.
    fn qemu(&mut self, target: &Path) -> Result<Server, Ending> {
        let sized = File::create(target).and_then(|file| file.set_len(self.material.size));
        sized.map_err(failed("making QEMU's target"))?;
        let server = Server::qsd(&self.stage.path(""), &self.material.path, Io::Direct)?;
        self.commands.insert(server.command.clone());
        Ok(server)
    }

    /// The file has not changed since the copy was made.
    fn compare_copy(&self, target: &Path) -> Result<(), Ending> {
        let copy = crate::bench::material::Material { path: target.to_owned(), size: self.material.size };
        for number in 0..COMPARED {
            let offset = mixed(number) % (self.material.size / BLOCK as u64) * BLOCK as u64;
            let read = || Ok((copy.read(offset)?, self.material.read(offset)?));
            let (copied, expected) = read().map_err(failed("reading the copy"))?;
            if copied != expected {
                return Err(wrong("tzero's copy", offset, "what the volume has"));
            }
        }
        Ok(())
    }

    pub(super) fn offered_copies(&mut self) -> Result<(), Ending> {
        for subject in self.subjects(&[TZERO, QSD], &[O_RATE, O_P99, O_COPY]) {
            self.material.cool().map_err(failed("emptying the page cache"))?;
            let target = self.target()?;
            let (seconds, taken) = match subject {
                TZERO => {
                    self.begin(&self.material.path.clone(), true)?;
                    let link = self.link(VOLUME)?;
                    let done =
                        self.while_written(link, Host::Offers, |bench| bench.back_up(&target).map(|run| run.0))?;
                    self.end()?;
                    done
                }
                _ => {
                    let mut server = self.qemu(&target)?;
                    let link = Link::open(&server.socket, server.export).map_err(failed("connecting to QEMU"))?;
                    let tuned = json!({"max-workers": 8, "max-chunk": 65536});
                    self.while_written(link, Host::Offers, |_| {
                        let begun = Instant::now();
                        server.backup(&target, Some(&tuned))?;
                        synced(&target)?;
                        Ok(begun.elapsed().as_secs_f64())
                    })?
                }
            };
            self.take((subject, O_RATE), taken.rate());
            self.take((subject, O_P99), taken.percentile(99.0));
            self.take((subject, O_COPY), self.megabytes(seconds));
        }
        Ok(())
    }

    pub(super) fn flat_out_copies(&mut self) -> Result<(), Ending> {
        for subject in self.subjects(&[TZERO, QSD], &[M_RATE, M_COPY]) {
            self.material.cool().map_err(failed("emptying the page cache"))?;
            let target = self.target()?;
            let (seconds, taken) = match subject {
                TZERO => {
                    self.begin(&self.material.path.clone(), true)?;
                    let link = self.link(VOLUME)?;
                    let done =
                        self.while_written(link, Host::FlatOut, |bench| bench.back_up(&target).map(|run| run.0))?;
                    self.end()?;
                    done
                }
                _ if Program::Nbdcopy.find().is_none() => continue,
                _ => {
                    let mut server = self.qemu(&target)?;
                    let temporary = self.stage.path("originals.img");
                    let sized = File::create(&temporary).and_then(|file| file.set_len(self.material.size));
                    sized.map_err(failed("making QEMU's file for originals"))?;
                    server.copy_before_write(&temporary)?;
                    let link = Link::open(&server.socket, server.export).map_err(failed("connecting to QEMU"))?;
                    let mut copy = Process::new(Program::Nbdcopy.name());
                    copy.args(["--flush", "--request-size=262144", "--requests=1", "--connections=1", "--threads=1"])
                        .arg(format!("nbd+unix:///fleece?socket={}", server.socket.display()))
                        .arg(&target)
                        .stdin(Stdio::null());
                    self.commands.insert(shown(&copy));
                    self.while_written(link, Host::FlatOut, |_| {
                        let begun = Instant::now();
                        let status = copy.status().map_err(failed("nbdcopy"))?;
                        if !status.success() {
                            return Err(Ending::failed(format!("nbdcopy failed: {status}")));
                        }
                        Ok(begun.elapsed().as_secs_f64())
                    })?
                }
            };
            self.take((subject, M_RATE), taken.rate());
            self.take((subject, M_COPY), self.megabytes(seconds));
        }
        Ok(())
    }

    /// Does `copy` while a host writes; gives what it gives, and what the host had meanwhile.
    fn while_written<T>(
        &mut self,
        mut link: Link,
        host: Host,
        copy: impl FnOnce(&mut Self) -> Result<T, Ending>,
    ) -> Result<(T, Taken), Ending> {
        let stop = AtomicBool::new(false);
        let load = self.host_load(host, &stop);
        thread::scope(|scope| {
            let begun = Instant::now();
            let writing = scope.spawn(|| match host {
                Host::Offers => link.pace(&load, OFFERED, &stop),
                Host::FlatOut => link.run(&load),
            });
            thread::sleep(LEAD);
            let from = begun.elapsed().as_secs_f64();
            let copied = copy(self);
            let to = begun.elapsed().as_secs_f64();
            stop.store(true, Ordering::Release);
            let taken = writing.join().expect("a host does not panic").map_err(failed("the load meanwhile"))?;
            Ok((copied?, taken.between(from, to)))
        })
    }

    fn host_load<'a>(&mut self, host: Host, stop: &'a AtomicBool) -> Load<'a> {
        let content: Content = self.content();
        Load {
            command: Command::Write,
            len: BLOCK as u32,
            depth: match host {
                Host::Offers => OFFERED_DEPTH,
                Host::FlatOut => 1,
            },
            places: Places::Random(self.material.size / BLOCK as u64),
            end: End::When(stop),
            content,
        }
    }
}

fn synced(target: &Path) -> Result<(), Ending> {
    File::open(target).and_then(|file| file.sync_data()).map_err(failed("flushing a copy"))
}
