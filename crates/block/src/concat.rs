//! Several devices in a row, as one (R28).
//!
//! ```text
//! bytes       0 ............ a ............ b ......... size
//! component   ├───── 0 ──────┼───── 1 ──────┼──── 2 ────┤
//! ```
//! A request that lies in one component goes there as it is, with the caller's buffer. One that crosses a boundary is cut, and its parts are
//! under way together.
//!
//! # Invariants
//! 1. Every component but the last is a whole number of the coarsest alignment long, so an aligned request is cut into aligned parts.
//! 2. A flush succeeds only if every component's does.
//!
//! The last one may become longer, and the row with it.
//!
//! Deliberately absent: atomicity. Of a request that fails, some parts may be done, as the contract allows.

use std::fmt;

use tzero_io::{Buffer, together};

use crate::{Action, BlockDevice, ByteRange, Error, Extent, Fault, Geometry, Zeroes};

/// Devices in a row: each begins where the one before it ends.
#[derive(Debug)]
pub struct Concat<D> {
    components: Vec<D>,
    /// Where each component begins.
    starts: Vec<u64>,
    alignment: u32,
}

/// Why devices cannot be put in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcatError {
    /// There is none.
    Empty,
    /// The length of this component, counted from 0, is no multiple of the alignment in bytes, and others follow it.
    Uneven {
        /// Which one.
        component: usize,
        /// The coarsest alignment of all, in bytes.
        alignment: u32,
    },
    /// Together they are longer than a number of bytes can say.
    TooLong,
}

impl fmt::Display for ConcatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is no component"),
            Self::Uneven { component, alignment } => {
                write!(
                    f,
                    "the length of component {component} is no multiple of {alignment} bytes, and others follow it"
                )
            }
            Self::TooLong => f.write_str("the components are too long together"),
        }
    }
}

impl std::error::Error for ConcatError {}

/// What of a request belongs to one component.
#[derive(Clone, Copy)]
struct Part {
    component: usize,
    /// Within the component.
    range: ByteRange,
    /// Where the request has it, from its own first byte.
    at: u64,
}

impl<D: BlockDevice> Concat<D> {
    /// `components` in this order.
    ///
    /// # Errors
    /// See [`ConcatError`].
    pub fn new(components: Vec<D>) -> Result<Self, ConcatError> {
        let alignment =
            components.iter().map(|component| component.geometry().alignment).max().ok_or(ConcatError::Empty)?;
        let mut starts = Vec::with_capacity(components.len());
        let mut end = 0u64;
        for (component, device) in components.iter().enumerate() {
            let size = device.geometry().size;
            if component + 1 < components.len() && !size.is_multiple_of(u64::from(alignment)) {
                return Err(ConcatError::Uneven { component, alignment });
            }
            starts.push(end);
            end = end.checked_add(size).ok_or(ConcatError::TooLong)?;
        }
        Ok(Self { components, starts, alignment })
    }

    /// The devices, in order.
    pub fn components(&self) -> &[D] {
        &self.components
    }

    /// The number of the component that holds the byte at `offset`, counted from 0; `None` past the end.
    pub fn component_at(&self, offset: u64) -> Option<usize> {
        let next = self.starts.partition_point(|start| *start <= offset);
        (next < self.starts.len() || offset < self.end()).then(|| next - 1)
    }

    /// Where the last component ends.
    fn end(&self) -> u64 {
        let (start, last) = self.starts.last().zip(self.components.last()).expect("there is always a component");
        start.saturating_add(last.geometry().size)
    }

    /// Which bytes the component holds.
    ///
    /// # Panics
    /// If there is no such component.
    pub fn range_of(&self, component: usize) -> ByteRange {
        let end = self.starts.get(component + 1).copied().unwrap_or_else(|| self.end());
        ByteRange::between(self.starts[component], end)
    }

    /// The one component that holds all of `range`, and where its first byte is there.
    fn only(&self, range: ByteRange) -> Option<(usize, u64)> {
        // An empty request at the very end belongs to the last one.
        let component = self.component_at(range.start()).unwrap_or(self.components.len() - 1);
        self.range_of(component).contains(range).then(|| (component, range.start() - self.starts[component]))
    }

    fn parts(&self, range: ByteRange) -> impl Iterator<Item = Part> {
        let first = self.component_at(range.start()).unwrap_or(self.components.len());
        (first..self.components.len())
            .map_while(move |component| {
                let whole = self.range_of(component);
                if whole.start() >= range.end() {
                    return None;
                }
                Some(whole.intersection(range).map(|shared| Part {
                    component,
                    range: ByteRange::new(shared.start() - whole.start(), shared.len()),
                    at: shared.start() - range.start(),
                }))
            })
            // A component without a byte.
            .flatten()
    }

    /// An error of a component, as one of the whole.
    fn placed(&self, component: usize, error: Error) -> Error {
        match error.action {
            Action::Flush => error,
            _ => Error { offset: error.offset.saturating_add(self.starts[component]), ..error },
        }
    }

    async fn read_parts(&self, range: ByteRange, buffer: &mut Buffer) -> Result<(), Error> {
        let parts = self.parts(range).map(|part| async move {
            let into = Buffer::uncleared(part.range.len() as usize);
            (part, self.components[part.component].read(part.range.start(), into).await)
        });
        let mut result = Ok(());
        for (part, (bytes, read)) in together(parts).await {
            let at = part.at as usize;
            buffer[at..at + bytes.len()].copy_from_slice(&bytes);
            result = result.and(read.map_err(|error| self.placed(part.component, error)));
        }
        result
    }

    async fn write_parts(&self, range: ByteRange, buffer: &Buffer, fua: bool) -> Result<(), Error> {
        let parts = self.parts(range).map(|part| {
            let at = part.at as usize;
            let bytes = Buffer::copy_of(&buffer[at..at + part.range.len() as usize]);
            async move {
                let (_, result) = self.components[part.component].write(part.range.start(), bytes, fua).await;
                result.map_err(|error| self.placed(part.component, error))
            }
        });
        together(parts).await.into_iter().collect()
    }
}

impl<D: BlockDevice> BlockDevice for Concat<D> {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.end(), alignment: self.alignment }
    }

    async fn read(&self, offset: u64, mut buffer: Buffer) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Read, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        if let Some((component, offset)) = self.only(range) {
            let (buffer, result) = self.components[component].read(offset, buffer).await;
            return (buffer, result.map_err(|error| self.placed(component, error)));
        }
        let result = self.read_parts(range, &mut buffer).await;
        (buffer, result)
    }

    async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> (Buffer, Result<(), Error>) {
        let range = match self.geometry().check(Action::Write, offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return (buffer, Err(error)),
        };
        if let Some((component, offset)) = self.only(range) {
            let (buffer, result) = self.components[component].write(offset, buffer, fua).await;
            return (buffer, result.map_err(|error| self.placed(component, error)));
        }
        let result = self.write_parts(range, &buffer, fua).await;
        (buffer, result)
    }

    async fn write_zeroes(&self, range: ByteRange, zeroes: Zeroes) -> Result<(), Error> {
        self.geometry().check(Action::WriteZeroes, range.start(), range.len())?;
        let parts = self.parts(range).map(|part| async move {
            let result = self.components[part.component].write_zeroes(part.range, zeroes).await;
            result.map_err(|error| self.placed(part.component, error))
        });
        let results: Vec<Result<(), Error>> = together(parts).await;
        // A failure of one says more than that another is not fast.
        let (slow, failed): (Vec<_>, Vec<_>) =
            results.into_iter().filter_map(Result::err).partition(Error::is_unsupported);
        match failed.into_iter().next() {
            Some(error) => Err(error),
            None if slow.is_empty() => Ok(()),
            None => Err(Error::new(Action::WriteZeroes, range.start(), range.len(), Fault::Unsupported)),
        }
    }

    fn can_zero_fast(&self, range: ByteRange, zeroes: Zeroes) -> bool {
        self.parts(range).all(|part| self.components[part.component].can_zero_fast(part.range, zeroes))
    }

    async fn discard(&self, range: ByteRange) -> Result<(), Error> {
        self.geometry().check(Action::Discard, range.start(), range.len())?;
        let parts = self.parts(range).map(|part| async move {
            let result = self.components[part.component].discard(part.range).await;
            result.map_err(|error| self.placed(part.component, error))
        });
        together(parts).await.into_iter().collect()
    }

    async fn flush(&self) -> Result<(), Error> {
        if let [only] = self.components.as_slice() {
            return only.flush().await;
        }
        together(self.components.iter().map(|component| component.flush())).await.into_iter().collect()
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, Error> {
        self.geometry().check(Action::Extents, range.start(), range.len())?;
        let mut extents: Vec<Extent> = Vec::new();
        for part in self.parts(range) {
            let found = self.components[part.component].extents(part.range).await;
            let start = self.starts[part.component];
            for extent in found.map_err(|error| self.placed(part.component, error))? {
                let own = ByteRange::new(extent.range.start() + start, extent.range.len());
                match extents.last_mut() {
                    Some(last) if last.hole == extent.hole => {
                        last.range = ByteRange::between(last.range.start(), own.end());
                    }
                    _ => extents.push(Extent { range: own, hole: extent.hole }),
                }
            }
        }
        if extents.is_empty() {
            extents.push(Extent { range, hole: false });
        }
        Ok(extents)
    }

    async fn prefetch(&self, range: ByteRange) {
        for part in self.parts(range) {
            self.components[part.component].prefetch(part.range).await;
        }
    }
}

#[cfg(test)]
mod tests;
