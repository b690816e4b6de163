//! The parts of a volume that a command is about.

use tzero_api::Name;
use tzero_api::control::Part;

use crate::arguments::VolumePart;
use crate::ending::Ending;

/// The parts that are named, all of `volume`; `None` where none is.
pub(crate) fn of(parts: &[VolumePart], volume: &Name) -> Result<Option<Vec<Part>>, Ending> {
    if let Some(other) = parts.iter().find(|part| part.volume != *volume) {
        return Err(Ending::usage(format!(
            "the scope names a part of volume {}, and this is about {volume}: name parts of {volume} only",
            other.volume
        )));
    }
    let part = |part: &VolumePart| Part { offset: part.offset, length: part.length };
    Ok((!parts.is_empty()).then(|| parts.iter().map(part).collect()))
}
