//! What a block device is: the contract, ranges, and devices over files and memory.

mod concat;
mod device;
mod edges;
mod export;
mod faulty;
mod file;
mod medium;
mod memory;
mod range;
mod sectors;

pub use concat::{Concat, ConcatError};
pub use device::{Action, BlockDevice, Error, Extent, Fault, Geometry, Zeroes};
pub use export::{Export, ExportError, ExportInfo, ExportSummary, Exports};
pub use faulty::{Faulty, Injected};
pub use file::{FileDevice, Mode};
pub use memory::MemoryDevice;
pub use range::ByteRange;
pub use sectors::Sectors;
