//! Disks in a row: a base of several components (R28), a cache of several tiers (R53).

use tzero_block::{Action, ByteRange, Concat};

use super::{Disk, DiskHandle, DiskOptions, Injection};
use crate::executor::Process;
use crate::power::Cut;

/// What the engine and movers see of them.
pub type RowHandle = Concat<DiskHandle>;

/// Disks, each beginning where the one before it ends.
pub struct Row {
    disks: Vec<Disk>,
    ranges: Vec<ByteRange>,
}

impl Row {
    /// Disks of these lengths in bytes, all holes, with the options of the whole and names of their own.
    pub fn new(seed: u64, names: &[&'static str], lengths: &[u64], options: &DiskOptions) -> Self {
        let disk =
            |(name, size): (&&'static str, &u64)| Disk::new(seed, DiskOptions { name, size: *size, ..options.clone() });
        let mut start = 0;
        let range = |length: &u64| {
            start += length;
            ByteRange::between(start - length, start)
        };
        assert!(lengths.len() <= names.len(), "every disk has a name");
        Self { disks: names.iter().zip(lengths).map(disk).collect(), ranges: lengths.iter().map(range).collect() }
    }

    /// How long they are together, in bytes.
    pub fn size(&self) -> u64 {
        self.disks.iter().map(Disk::size).sum()
    }

    /// See [`Disk::resize`]: of the last one, so that they are so long together.
    pub fn resize(&self, len: u64) {
        let (last, range) = self.disks.last().zip(self.ranges.last()).expect("a row has a disk");
        last.resize(len - range.start());
    }

    /// Opens them for `process`.
    pub fn open(&self, process: Process) -> RowHandle {
        match Concat::new(self.disks.iter().map(|disk| disk.open(process)).collect()) {
            Ok(row) => row,
            Err(error) => panic!("the plan's disks are no row: {error}"),
        }
    }

    /// The disks that `range` touches, and what of it each has.
    fn parts(&self, range: ByteRange) -> impl Iterator<Item = (&Disk, ByteRange)> {
        self.disks.iter().zip(&self.ranges).filter_map(move |(disk, own)| {
            let shared = own.intersection(range)?;
            Some((disk, ByteRange::new(shared.start() - own.start(), shared.len())))
        })
    }

    /// See [`Disk::fill`].
    pub fn fill(&self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (disk, range) in self.parts(ByteRange::new(offset, bytes.len() as u64)) {
            let (own, others) = rest.split_at(range.len() as usize);
            disk.fill(range.start(), own);
            rest = others;
        }
    }

    /// See [`Disk::peek`].
    pub fn peek(&self, range: ByteRange) -> Vec<u8> {
        self.parts(range).flat_map(|(disk, range)| disk.peek(range)).collect()
    }

    /// See [`Disk::corrupt`]: of one disk, which follows from the number.
    pub fn corrupt(&self, pick: u64) -> bool {
        self.of(pick >> 40).corrupt(pick)
    }

    /// Arms a fault of one disk, which follows from the fault.
    pub fn inject(&self, injection: Injection) {
        self.of(injection.times).inject(injection);
    }

    fn of(&self, pick: u64) -> &Disk {
        &self.disks[(pick % self.disks.len() as u64) as usize]
    }

    /// See [`Disk::heal`].
    pub fn heal(&self) {
        self.disks.iter().for_each(Disk::heal);
    }

    /// See [`Disk::settle`].
    pub fn settle(&self) {
        self.disks.iter().for_each(Disk::settle);
    }

    /// See [`Disk::lose_power`].
    pub fn lose_power(&self, cut: &Cut) {
        self.disks.iter().for_each(|disk| disk.lose_power(cut));
    }

    /// See [`Disk::logged`].
    pub fn logged(&self) -> Vec<u64> {
        self.disks.iter().flat_map(Disk::logged).collect()
    }

    /// See [`Disk::failures`].
    pub fn failures(&self, action: Action) -> u64 {
        self.disks.iter().map(|disk| disk.failures(action)).sum()
    }

    /// See [`Disk::has_failed`].
    pub fn has_failed(&self, action: Action, range: ByteRange) -> bool {
        self.parts(range).any(|(disk, range)| disk.has_failed(action, range))
    }

    /// See [`Disk::in_flight`].
    pub fn in_flight(&self, process: Process) -> usize {
        self.disks.iter().map(|disk| disk.in_flight(process)).sum()
    }
}
