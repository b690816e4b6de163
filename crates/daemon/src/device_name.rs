//! Names of block devices that stay with them: what device-mapper, RAID or the hardware calls them; a partition by its disk and number, or
//! by its own uuid. A loop device is the file behind it.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory in which the kernel describes a block device.
fn sysfs_of(number: u64) -> Option<PathBuf> {
    // As the kernel packs them into `dev_t`.
    let (major, minor) =
        ((number >> 32 & 0xffff_f000) | (number >> 8 & 0xfff), (number >> 12 & 0xffff_ff00) | (number & 0xff));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

fn text(place: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(place.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Its name; none where the system has nothing but a number.
pub(crate) fn of(number: u64) -> Option<String> {
    named(&sysfs_of(number)?)
}

fn named(place: &Path) -> Option<String> {
    if let Some(partition) = text(place, "partition") {
        let by_disk = || Some(format!("{}-part{partition}", named(place.parent()?)?));
        return by_disk().or_else(|| partition_uuid(place));
    }
    let uuid = text(place, "dm/uuid").or_else(|| text(place, "md/uuid"));
    let hardware = || ["wwid", "device/wwid", "serial", "device/serial"].iter().find_map(|name| text(place, name));
    uuid.or_else(hardware)
}

fn partition_uuid(place: &Path) -> Option<String> {
    let events = text(place, "uevent")?;
    let uuid = events.lines().find_map(|line| line.strip_prefix("PARTUUID="))?;
    Some(format!("partuuid-{uuid}"))
}

/// The file behind a loop device or a partition of one, and which partition.
pub(crate) fn backing_file(number: u64) -> Option<(PathBuf, Option<String>)> {
    let place = sysfs_of(number)?;
    let partition = text(&place, "partition");
    let disk = if partition.is_some() { place.parent()? } else { &place };
    Some((text(disk, "loop/backing_file")?.into(), partition))
}
