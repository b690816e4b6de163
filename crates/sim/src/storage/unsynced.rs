//! What of a state file is not durable, and what a loss of power leaves of it.

use std::collections::BTreeMap;

use crate::executor::serial;
use crate::power::Cut;

/// Words of a page.
const PAGE: usize = 512;

/// A page with stores that are not durable.
struct Page {
    /// What it is at least. Shorter than a page where the file ended there.
    floor: Vec<u64>,
    /// Number of the store, index of the word in the page, word.
    stores: Vec<(u64, usize, u64)>,
}

impl Page {
    /// Takes the first stores for certain.
    fn settle(&mut self, count: usize) {
        for (_, at, word) in self.stores.drain(..count) {
            if self.floor.len() <= at {
                self.floor.resize(at + 1, 0);
            }
            self.floor[at] = word;
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Unsynced {
    pages: BTreeMap<usize, Page>,
    /// Words that are certain to be there.
    durable_len: usize,
    /// When the file grew, and to how many words.
    grown: Vec<(u64, usize)>,
}

impl Unsynced {
    /// Nothing, of a file of so many words.
    pub(super) fn new(words: usize) -> Self {
        Self { durable_len: words, ..Self::default() }
    }

    /// A word is about to be stored in a file that holds `words`.
    pub(super) fn log(&mut self, words: &[u64], at: usize, word: u64) {
        let page = self.pages.entry(at / PAGE).or_insert_with(|| {
            let start = at / PAGE * PAGE;
            Page { floor: words[start..words.len().min(start + PAGE)].to_vec(), stores: Vec::new() }
        });
        page.stores.push((serial(), at % PAGE, word));
    }

    /// The file has grown to so many words.
    pub(super) fn grew(&mut self, words: usize) {
        self.grown.push((serial(), words));
    }

    /// Everything from before the moment is durable.
    pub(super) fn synced(&mut self, before: u64) {
        self.pages.retain(|_, page| {
            page.settle(page.stores.partition_point(|(number, ..)| *number < before));
            !page.stores.is_empty()
        });
        let durable = self.grown.partition_point(|(number, _)| *number < before);
        if let Some((_, words)) = self.grown.drain(..durable).next_back() {
            self.durable_len = words;
        }
    }

    /// Numbers of what is logged.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        let stores = self.pages.values().flat_map(|page| page.stores.iter().map(|(number, ..)| *number));
        stores.chain(self.grown.iter().map(|(number, _)| *number))
    }

    /// Makes of the file's words what is left of them.
    pub(super) fn lose_power(&mut self, words: &mut Vec<u64>, cut: &Cut) {
        for (number, mut page) in std::mem::take(&mut self.pages) {
            let numbers: Vec<u64> = page.stores.iter().map(|(number, ..)| *number).collect();
            page.settle(cut.prefix(&numbers));
            // What the file has grown by since is zero.
            page.floor.resize(PAGE, 0);
            let (start, end) = (number * PAGE, words.len().min((number + 1) * PAGE));
            words[start..end].copy_from_slice(&page.floor[..end - start]);
        }
        let numbers: Vec<u64> = self.grown.iter().map(|(number, _)| *number).collect();
        if let Some(last) = cut.prefix(&numbers).checked_sub(1) {
            self.durable_len = self.grown[last].1;
        }
        words.truncate(self.durable_len);
        self.grown.clear();
    }
}
