//! A name for a block device that stays with it as far as the system can tell.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::placement::{number_in, split, sysfs_of};

/// What device-mapper or the hardware calls it, a partition by its disk and number, a loop device by the file behind it;
/// failing all, its number.
///
/// # Errors
/// When the device cannot be looked at.
pub(crate) fn device_key(number: u64) -> io::Result<String> {
    let place = fs::canonicalize(sysfs_of(number))?;
    let text = |name: &str| {
        let text = fs::read_to_string(place.join(name)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    if let Some(partition) = text("partition")
        && let Some(disk) = place.parent().and_then(|disk| number_in(&disk.join("dev")))
    {
        return Ok(format!("{}-part{}", device_key(disk)?, plain(&partition)));
    }
    if let Some(uuid) = text("dm/uuid").or_else(|| text("md/uuid")) {
        return Ok(plain(&uuid));
    }
    if let Some(name) =
        text("wwid").or_else(|| text("device/wwid")).or_else(|| text("serial")).or_else(|| text("device/serial"))
    {
        return Ok(plain(&name));
    }
    if let Some(file) = text("loop/backing_file")
        && let Ok(metadata) = fs::metadata(&file)
    {
        return Ok(format!("loop-{:x}-{:x}", metadata.dev(), metadata.ino()));
    }
    let (major, minor) = split(number);
    Ok(format!("device-{major}-{minor}"))
}

/// Only characters that a file name may have everywhere, and not too many.
fn plain(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = text.chars().map(safe).take(100).collect();
    format!("id-{name}")
}
