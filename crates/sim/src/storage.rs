//! Virtual state files: named arrays of words that survive the death of the process, store by store.
//!
//! # Behaviour
//! - A store that returned stays. Before and after each one the process may be killed ([`Crash::Store`]).
//! - Another process that has the file open may see plain stores in any order until the next publish: of a word that
//!   was stored but not yet covered by a publish it sees the old or the new value, by chance.
//! - Opening a new file, growing one, and (where armed) storing can fail with `ENOSPC`.
//!
//! # Loss of power
//! [`Mapping::sync`] makes durable what was stored when it began, [`Storage::sync`] what names there were. Of the rest each page of 4096 bytes
//! is there as its stores had left it at some moment since; what a file has grown by, and each name that came or went, is there or not. See
//! [`crate::power`].
//!
//! # Why a kill between two polls is a kill at a store
//! The executor ends a process only when the current poll returns. Until then the dying process still runs, but its
//! stores go to a copy that only it sees (so that it reads what it wrote and does not trip over its own state), its
//! disk requests are never submitted, and nobody outside hears its answers. What survives is therefore exactly what
//! would have survived if no instruction after the store had run.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tzero_io::{Mapping, Storage};

use crate::executor::{Crash, Process, is_dead, moment, note, record, serial, sleep};
use crate::power::Cut;
use crate::random::{Random, mix};

mod unsynced;

use unsynced::Unsynced;

const ENOSPC: i32 = 28;
/// Longest time that a sync takes which blocks nobody.
const SYNC_NS: u64 = 200_000;

#[derive(Default)]
struct File {
    words: Vec<u64>,
    /// What the words stored since the last publish held before: byte offset → word.
    unpublished: BTreeMap<u64, u64>,
    /// The process that stored last.
    writer: Option<Process>,
    /// What a process wrote while it was dying; nobody else sees it.
    doomed: BTreeMap<(Process, u64), u64>,
    unsynced: Unsynced,
}

impl File {
    fn new(words: usize) -> Self {
        Self { words: vec![0; words], unsynced: Unsynced::new(words), ..Self::default() }
    }

    fn lose_power(&mut self, cut: &Cut) {
        self.unsynced.lose_power(&mut self.words, cut);
        self.unpublished.clear();
    }
}

/// What an [`StorageFault`] makes fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageCall {
    /// Opening a file that is not there.
    Create,
    /// [`Mapping::grow`].
    Grow,
    /// [`Mapping::store`] and [`Mapping::publish`].
    Store,
    /// [`Mapping::durable`] and [`Storage::names_durable`].
    Sync,
}

/// A fault in waiting: after `skip` calls of this kind, `times` of them fail with `ENOSPC`.
#[derive(Clone, Debug)]
pub struct StorageFault {
    /// Calls of this kind,
    pub call: StorageCall,
    /// after so many of them,
    pub skip: u64,
    /// so many in a row fail.
    pub times: u64,
}

struct State {
    files: BTreeMap<String, Arc<Mutex<File>>>,
    /// Names that are certain to be there after a loss of power, or others that are not any more.
    durable: BTreeMap<String, Arc<Mutex<File>>>,
    /// When names came or went that are not durable yet.
    renamed: BTreeMap<String, u64>,
    faults: Vec<StorageFault>,
    failures: u64,
    random: Random,
}

/// The directory, which no kill harms.
#[derive(Clone)]
pub struct Directory(Arc<Mutex<State>>);

/// A process's use of a [`Directory`].
#[derive(Clone)]
pub struct StorageHandle {
    directory: Directory,
    process: Process,
}

/// A process's mapping of one file: of as much as the file had when it was mapped, or grown through it, last.
pub struct WordsHandle {
    file: Arc<Mutex<File>>,
    mapped: AtomicUsize,
    directory: Directory,
    process: Process,
}

impl Directory {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        let random = Random::labelled(seed, "storage");
        let (files, durable, renamed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { files, durable, renamed, faults: Vec::new(), failures: 0, random })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the directory")
    }

    /// Opens it for `process`.
    pub fn open(&self, process: Process) -> StorageHandle {
        StorageHandle { directory: self.clone(), process }
    }

    /// Arms a fault.
    pub fn inject(&self, fault: StorageFault) {
        self.state().faults.push(fault);
    }

    /// Disarms every fault.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// How many calls have failed so far.
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// Every file with its words.
    pub fn contents(&self) -> BTreeMap<String, Vec<u64>> {
        let state = self.state();
        state.files.iter().map(|(name, file)| (name.clone(), locked(file).words.clone())).collect()
    }

    /// The power is lost.
    pub fn lose_power(&self, cut: &Cut) {
        let mut state = self.state();
        for (name, number) in std::mem::take(&mut state.renamed) {
            if cut.has(number) {
                continue;
            }
            match state.durable.get(&name).map(Arc::clone) {
                Some(file) => state.files.insert(name, file),
                None => state.files.remove(&name),
            };
        }
        state.durable = state.files.clone();
        state.files.values().for_each(|file| locked(file).lose_power(cut));
    }

    /// Numbers of what is not durable, in no order.
    pub fn logged(&self) -> Vec<u64> {
        let state = self.state();
        let mut numbers: Vec<u64> = state.renamed.values().copied().collect();
        state.files.values().for_each(|file| numbers.extend(locked(file).unsynced.numbers()));
        numbers
    }

    /// What came and went before the moment is durable.
    fn names_synced(&self, before: u64) {
        let mut state = self.state();
        let durable: Vec<String> =
            state.renamed.iter().filter(|(_, number)| **number < before).map(|(name, _)| name.clone()).collect();
        for name in durable {
            state.renamed.remove(&name);
            match state.files.get(&name).map(Arc::clone) {
                Some(file) => state.durable.insert(name, file),
                None => state.durable.remove(&name),
            };
        }
    }

    fn suffer(&self, call: StorageCall) -> io::Result<()> {
        let mut state = self.state();
        let mut fails = false;
        for fault in state.faults.iter_mut().filter(|fault| fault.call == call) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if !fails && fault.times > 0 {
                fault.times -= 1;
                fails = true;
            }
        }
        state.faults.retain(|fault| fault.times > 0);
        if fails {
            state.failures += 1;
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Ok(())
    }
}

fn locked(file: &Mutex<File>) -> MutexGuard<'_, File> {
    file.lock().expect("nothing panics while it holds the file")
}

/// What a call of a dead process says; nobody hears it.
fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl StorageHandle {
    /// Maps a file that must be there, as a process does that was passed its descriptor.
    pub fn attach(&self, name: &str) -> Option<WordsHandle> {
        let file = self.directory.state().files.get(name).map(Arc::clone)?;
        let mapped = locked(&file).words.len().into();
        Some(WordsHandle { file, mapped, directory: self.directory.clone(), process: self.process })
    }
}

impl Storage for StorageHandle {
    type Mapping = WordsHandle;

    fn open(&self, name: &str, len: u64) -> io::Result<WordsHandle> {
        if let Some(found) = self.attach(name) {
            return Ok(found);
        }
        self.directory.suffer(StorageCall::Create)?;
        if moment(self.process, Crash::Store) {
            return Err(dead());
        }
        let file = File::new(words(len));
        let mut state = self.directory.state();
        state.renamed.insert(name.to_owned(), serial());
        state.files.insert(name.to_owned(), Arc::new(Mutex::new(file)));
        drop(state);
        moment(self.process, Crash::Store);
        self.attach(name).ok_or_else(dead)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.directory.state().files.contains_key(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if moment(self.process, Crash::Store) {
            return Err(dead());
        }
        let mut state = self.directory.state();
        if state.files.remove(name).is_some() {
            state.renamed.insert(name.to_owned(), serial());
        }
        drop(state);
        moment(self.process, Crash::Store);
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut state = self.directory.state();
        let mut names: Vec<String> = state.files.keys().cloned().collect();
        state.random.shuffle(&mut names);
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        if moment(self.process, Crash::Store) {
            return Err(dead());
        }
        self.directory.names_synced(serial());
        moment(self.process, Crash::Store);
        Ok(())
    }

    async fn names_durable(&self) -> io::Result<()> {
        self.directory.suffer(StorageCall::Sync)?;
        let began = serial();
        sync_takes(self.process).await?;
        self.directory.names_synced(began);
        Ok(())
    }
}

/// The time that a sync takes which blocks nobody.
async fn sync_takes(process: Process) -> io::Result<()> {
    if moment(process, Crash::Store) {
        return std::future::pending().await;
    }
    note("a sync", 0, 0);
    let ns = crate::executor::draw(|random| random.magnitude(SYNC_NS));
    sleep(ns).await;
    if moment(process, Crash::Store) { std::future::pending().await } else { Ok(()) }
}

fn words(len: u64) -> usize {
    usize::try_from(len.div_ceil(8)).expect("a state file fits memory")
}

impl WordsHandle {
    fn mapped(&self) -> usize {
        self.mapped.load(Ordering::Relaxed)
    }

    fn put(&self, offset: u64, word: u64, publish: bool) -> io::Result<()> {
        self.directory.suffer(StorageCall::Store)?;
        let doomed = moment(self.process, Crash::Store);
        let mut file = locked(&self.file);
        let old = file.words[index(offset, self.mapped())];
        if doomed {
            file.doomed.insert((self.process, offset), word);
            return Ok(());
        }
        let File { words, unsynced, .. } = &mut *file;
        unsynced.log(words, (offset / 8) as usize, word);
        file.words[(offset / 8) as usize] = word;
        file.writer = Some(self.process);
        if publish {
            file.unpublished.clear();
        } else {
            file.unpublished.entry(offset).or_insert(old);
        }
        drop(file);
        record(mix(offset) ^ word);
        moment(self.process, Crash::Store);
        Ok(())
    }
}

fn index(offset: u64, len: usize) -> usize {
    assert!(offset.is_multiple_of(8), "offset {offset} is unaligned");
    let index = (offset / 8) as usize;
    assert!(index < len, "offset {offset} is past the end of {} bytes", len * 8);
    index
}

impl Mapping for WordsHandle {
    fn len(&self) -> u64 {
        self.mapped() as u64 * 8
    }

    fn load(&self, offset: u64) -> u64 {
        let file = locked(&self.file);
        let word = file.words[index(offset, self.mapped())];
        if let Some(own) = file.doomed.get(&(self.process, offset)) {
            return *own;
        }
        match file.unpublished.get(&offset) {
            Some(old) if file.writer.is_some_and(|writer| writer != self.process && !is_dead(writer)) => {
                if self.directory.state().random.chance(50) { *old } else { word }
            }
            _ => word,
        }
    }

    fn store(&self, offset: u64, word: u64) -> io::Result<()> {
        self.put(offset, word, false)
    }

    fn publish(&self, offset: u64, word: u64) -> io::Result<()> {
        self.put(offset, word, true)
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        if words(len) <= locked(&self.file).words.len() {
            self.mapped.fetch_max(words(len), Ordering::Relaxed);
            return Ok(());
        }
        self.directory.suffer(StorageCall::Grow)?;
        if moment(self.process, Crash::Store) {
            return Err(dead());
        }
        let mut file = locked(&self.file);
        file.words.resize(words(len), 0);
        file.unsynced.grew(words(len));
        drop(file);
        self.mapped.store(words(len), Ordering::Relaxed);
        moment(self.process, Crash::Store);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if moment(self.process, Crash::Store) {
            return Err(dead());
        }
        locked(&self.file).unsynced.synced(serial());
        moment(self.process, Crash::Store);
        Ok(())
    }

    async fn durable(&self) -> io::Result<()> {
        self.directory.suffer(StorageCall::Sync)?;
        let began = serial();
        sync_takes(self.process).await?;
        locked(&self.file).unsynced.synced(began);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{Chaos, CrashPlan, Executor, Ran, spawn};

    #[test]
    fn a_kill_at_a_store_keeps_those_before_it_only() {
        for kill_at in 1..=8 {
            let executor = Executor::new(kill_at, Chaos::default());
            let directory = Directory::new(1);
            let process = Process::start();
            let handle = directory.open(process);
            process.plan_crash(Some(CrashPlan { at: Crash::Store, number: kill_at }));
            spawn(process, "stores".into(), true, async move {
                let Ok(map) = handle.open("map", 24) else { return };
                for word in 0..3 {
                    map.publish(word * 8, word + 1).expect("no fault is armed");
                    assert_eq!(map.load(word * 8), word + 1, "the dying process sees what it wrote");
                }
            });
            assert_eq!(executor.run(1000).expect("not stuck"), Ran::Killed(process));
            executor.reap(process);
            let expected: Vec<u64> = (0..3).map(|word| if word + 1 < kill_at / 2 { word + 1 } else { 0 }).collect();
            match directory.contents().get("map") {
                Some(words) => assert_eq!(*words, expected, "killed at moment {kill_at}"),
                None => assert_eq!(kill_at, 1),
            }
        }
    }

    #[test]
    fn others_see_plain_stores_in_any_order_until_the_publish() {
        let _executor = Executor::new(1, Chaos::default());
        let directory = Directory::new(1);
        let (daemon, mover) = (Process::start(), Process::start());
        let writer = directory.open(daemon).open("map", 64).expect("no fault is armed");
        let reader = directory.open(mover).attach("map").expect("it was just made");
        writer.store(0, 7).expect("no fault is armed");
        assert_eq!(writer.load(0), 7);
        let seen: Vec<u64> = (0..50).map(|_| reader.load(0)).collect();
        assert!(seen.contains(&0) && seen.contains(&7));
        writer.publish(8, 1).expect("no fault is armed");
        assert!((0..50).all(|_| reader.load(0) == 7));
    }

    #[test]
    fn a_loss_of_power_takes_stores_from_the_end_of_each_page() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let _executor = Executor::new(seed, Chaos::default());
            let directory = Directory::new(seed);
            let handle = directory.open(Process::start());
            let map = handle.open("map", 8192).expect("no fault is armed");
            map.store(0, 1).expect("no fault is armed");
            Storage::sync(&handle).expect("never fails");
            map.sync().expect("never fails");
            handle.open("other", 8).expect("no fault is armed");
            map.store(8, 2).expect("no fault is armed");
            map.store(4096, 3).expect("no fault is armed");
            map.store(0, 4).expect("no fault is armed");
            map.grow(16_384).expect("no fault is armed");
            assert_eq!(directory.logged().len(), 5);
            directory.lose_power(&Cut::sampled(seed));
            let contents = directory.contents();
            let words = &contents["map"];
            assert!([1024, 2048].contains(&words.len()));
            left.insert(([words[0], words[1], words[512]], contents.contains_key("other")));
        }
        let pages = [[1, 0], [1, 2], [4, 2]];
        let all = pages.iter().flat_map(|[first, second]| [0, 3].map(|third| [*first, *second, third]));
        assert_eq!(left, all.flat_map(|words| [(words, false), (words, true)]).collect());
    }

    #[test]
    fn space_runs_out_cleanly() {
        let _executor = Executor::new(1, Chaos::default());
        let directory = Directory::new(1);
        let handle = directory.open(Process::start());
        let map = handle.open("map", 16).expect("no fault is armed");
        directory.inject(StorageFault { call: StorageCall::Grow, skip: 0, times: 1 });
        directory.inject(StorageFault { call: StorageCall::Create, skip: 0, times: 1 });
        assert_eq!(map.grow(4096).expect_err("no space").kind(), io::ErrorKind::StorageFull);
        assert_eq!(map.len(), 16);
        assert!(handle.open("other", 8).is_err());
        assert!(!handle.exists("other").expect("never fails"));
        map.grow(4096).expect("there is space again");
        assert_eq!((map.len(), map.load(4088)), (4096, 0));
        handle.remove("map").expect("never fails");
        map.publish(0, 5).expect("an open mapping stays usable");
        assert!(handle.names().expect("never fails").is_empty());
        assert_eq!(directory.failures(), 2);
    }
}
