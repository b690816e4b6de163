//! `tzero demo`: a volume under live writes, a backup, a restore, and the proof.
//!
//! The daemon, the backup and the restore are this program's own commands, run as processes as anyone would run them. Only the
//! writers and the proof are the demo's.

mod proof;
mod stamp;
pub(crate) use self::stamp::mixed;
mod writer;

use std::env;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Barrier, atomic::AtomicBool};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tzero_api::{Exit, Size};

use crate::cli::Demo;
use crate::demo::proof::{Flaw, History};
use crate::demo::stamp::BLOCK;
use crate::demo::writer::{Log, Schedule, WRITERS};
use crate::ending::Ending;
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::paths::recorded;
use crate::stage::Stage;

const VOLUME: &str = "demo";
/// Sizes that make sense: every writer has some blocks, and it ends in a minute or so.
const SMALLEST: u64 = 1 << 20;
const LARGEST: u64 = 16 << 30;
/// Room that is needed, in sizes of the volume: the volume, originals of all of it, the copy, the restored image.
const ROOM: u64 = 4;
/// How long the writers write before and after the backup.
const LEAD: Duration = Duration::from_millis(500);
/// Time between two looks at the writers.
const STEP: Duration = Duration::from_millis(5);

pub(crate) fn run(demo: &Demo, output: Output) -> Result<Exit, Ending> {
    let size = demo.size.0;
    if !size.is_multiple_of(BLOCK as u64) || !(SMALLEST..=LARGEST).contains(&size) {
        let sentence = format!("the size {} does not suit a demo: give a multiple of 4K from 1M to 16G", demo.size);
        return Err(Ending::usage(sentence));
    }
    let parent = recorded(&demo.dir.clone().unwrap_or_else(env::temp_dir), "the demo's own volume is below it")?;
    check_room(&parent, size)?;
    let begun = Instant::now();
    let mut stage = Stage::new("demo", &parent, interrupt::patient_flag()?)?;
    let told = tell(&mut stage, size, output)?;
    drop(stage);
    let seconds = begun.elapsed().as_secs_f64();
    output.line(format!("proved, in {seconds:.1} s; nothing is left behind"));
    let mut result = told;
    result["seconds"] = json!(seconds);
    output.result("demo", &result);
    Ok(Exit::AsAsked)
}

fn check_room(parent: &Path, size: u64) -> Result<(), Ending> {
    if parent.exists() && !parent.is_dir() {
        return Err(Ending::failed(format!("{} is no directory: name one with --dir", parent.display())));
    }
    let free = tzero_io::system::free_space(parent)
        .map_err(|error| Ending::failed(format!("{} cannot be used: {error}", parent.display())))?;
    if free < size * ROOM {
        return Err(Ending::failed(format!(
            "{} has {} free and the demo needs {}: name another place with --dir, or a smaller --size",
            parent.display(),
            bytes(free),
            bytes(size * ROOM)
        )));
    }
    Ok(())
}

/// The story; gives its figures.
fn tell(stage: &mut Stage, size: u64, output: Output) -> Result<Value, Ending> {
    let blocks = size / BLOCK as u64;
    let base = stage.path("base.img");
    let failed = |what: &str, error| Ending::failed(format!("{what} failed: {error}"));
    File::create_new(&base)
        .and_then(|file| file.set_len(size))
        .map_err(|error| failed("making the volume's file", error))?;
    stage.serve()?;
    stage.run(&["volume", "add", VOLUME, text(&base)?])?;
    output.line(format!(
        "a volume of {} is served; {WRITERS} writers stamp its {blocks} blocks and go on overwriting them",
        Size(size)
    ));

    let (logs, act) = under_load(stage, blocks, back_up)?;
    let writes: usize = logs.iter().map(Vec::len).sum();
    let during = logs.iter().flatten().filter(|write| (act.begun..act.ended).contains(&write.acknowledged)).count();
    output.line(format!(
        "`tzero backup` copied it meanwhile in {:.2} s ({}/s) and held the writers for {} µs; {during} of {writes} writes landed during it",
        act.seconds(),
        bytes((size as f64 / act.seconds()) as u64),
        act.copy["pause_us"],
    ));
    output.line(format!("originals took {} on disk", bytes(act.originals)));

    stage.run(&["restore", text(&act.image)?, "--to", text(&stage.path("restored.img"))?])?;
    output.line("`tzero restore` wrote the copy to a new file");
    let history = History::of(&logs);
    let open = |path: &Path| File::open(path).map(|file| BufReader::with_capacity(1 << 20, file)).map_err(Flaw::from);
    let not_proved = |what: &str, flaw: Flaw| Ending::failed(format!("NOT PROVED: of {what}: {flaw}"));
    let instant = open(&stage.path("restored.img"))
        .and_then(|image| history.prove_instant(image, blocks))
        .map_err(|flaw| not_proved("the restored image", flaw))?;
    if instant.latest < act.begun || instant.earliest > act.ended {
        return Err(Ending::failed("NOT PROVED: the restored image is of an instant outside the backup"));
    }
    open(&base)
        .and_then(|image| history.prove_current(image, blocks))
        .map_err(|flaw| not_proved("the volume", flaw))?;
    if instant.moved_on == 0 {
        return Err(Ending::failed("NOT PROVED: nothing was written after the backup's instant"));
    }
    output.line(format!(
        "all {blocks} blocks of the restored image are of one instant, known to {} µs; {} of them have changed since, and the volume holds every last write",
        (instant.latest - instant.earliest).div_ceil(1000),
        instant.moved_on,
    ));
    Ok(json!({
        "size": size, "blocks": blocks, "writers": WRITERS, "writes": writes, "writes_during_backup": during,
        "originals_bytes": act.originals, "pause_us": act.copy["pause_us"], "backup_seconds": act.seconds(),
        "backup_bytes_per_second": (size as f64 / act.seconds()) as u64, "copy_id": act.copy["id"],
        "blocks_proved": instant.blocks, "blocks_moved_on": instant.moved_on,
        "instant_known_to_us": (instant.latest - instant.earliest).div_ceil(1000),
    }))
}

/// What the backup gave.
struct Act {
    /// Nanoseconds since the story began.
    begun: u64,
    ended: u64,
    copy: Value,
    image: PathBuf,
    originals: u64,
}

impl Act {
    fn seconds(&self) -> f64 {
        (self.ended - self.begun) as f64 / 1e9
    }
}

fn back_up(stage: &Stage, schedule: &Schedule) -> Result<Act, Ending> {
    let image = stage.path("copy.img");
    let begun = schedule.now();
    let result = stage.run(&["backup", VOLUME, "--to", text(&image)?, "--verify"])?;
    let ended = schedule.now();
    let volume = stage.run(&["volume", "show", VOLUME])?;
    let originals = volume["volume"]["cache_file"].as_u64().unwrap_or(0);
    Ok(Act { begun, ended, copy: result["copy"].clone(), image, originals })
}

/// Plays an act while the writers write, from when every block is stamped.
fn under_load<T>(
    stage: &Stage,
    blocks: u64,
    act: impl FnOnce(&Stage, &Schedule) -> Result<T, Ending>,
) -> Result<(Vec<Log>, T), Ending> {
    let socket = stage.socket();
    let schedule =
        Schedule { begun: Instant::now(), filled: Barrier::new(WRITERS as usize + 1), stop: AtomicBool::new(false) };
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !schedule.stop.load(Ordering::Acquire) {
                if stage.interrupted().load(Ordering::Acquire) {
                    schedule.stop.store(true, Ordering::Release);
                }
                thread::sleep(STEP);
            }
        });
        let start = |number| {
            let (socket, schedule) = (&socket, &schedule);
            scope.spawn(move || writer::run(socket, VOLUME, number, blocks, schedule))
        };
        let writers: Vec<_> = (0..WRITERS).map(start).collect();
        schedule.filled.wait();
        wait(&schedule, LEAD);
        let acted = stage.go_on().and_then(|()| act(stage, &schedule));
        wait(&schedule, LEAD);
        schedule.stop.store(true, Ordering::Release);
        let logs: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("a writer does not panic")).collect();
        watch.join().expect("the watch does not panic");
        stage.go_on()?;
        let acted = acted?;
        let logs = logs.into_iter().collect::<Result<_, _>>();
        Ok((logs.map_err(|error: std::io::Error| Ending::failed(format!("a writer met an error: {error}")))?, acted))
    })
}

fn wait(schedule: &Schedule, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end && !schedule.stop.load(Ordering::Acquire) {
        thread::sleep(STEP);
    }
}

fn text(path: &Path) -> Result<&str, Ending> {
    path.to_str().ok_or_else(|| {
        Ending::usage(format!("the path {} is not UTF-8: name another place with --dir", path.display()))
    })
}
