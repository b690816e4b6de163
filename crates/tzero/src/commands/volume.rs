//! `tzero volume`.

use std::path::Path;

use serde_json::json;
use tzero_api::control::{
    self, AddVolume, AheadState, Basis, DEFAULT_GRAIN, Durability, Foretold, SaveAhead, TierKind, VolumeState,
};
use tzero_api::{Exit, Place, Rate, RebaseVolume, ResizeVolume, Size, StatePaths};

use crate::cli::{Volume, VolumeAdd};
use crate::commands::client;
use crate::commands::status::unfinished;
use crate::ending::Ending;
use crate::output::{Output, bytes, clock};
use crate::paths::recorded;

pub(crate) fn run(command: Volume, state: &StatePaths, output: Output) -> Result<Exit, Ending> {
    let client = client(state)?;
    match command {
        Volume::Add(add) => {
            let request = request(add)?;
            let volume = client.add_volume(&request)?;
            output.line(format!("volume {}: {} of {}", volume.name, Size(volume.size), bases(&volume)));
            output.result("volume", &volume);
        }
        Volume::List => {
            let volumes = client.volumes()?;
            output.table(&table(&volumes));
            output.result("volumes", &volumes);
        }
        Volume::Show { name } => {
            let volume = client.volume(&name)?;
            show(&volume, output);
            output.result("volume", &volume);
        }
        Volume::Resize { name, size } => {
            let volume = client.resize_volume(&name, ResizeVolume { size })?;
            output.line(format!("volume {}: {} of {}", volume.name, Size(volume.size), bases(&volume)));
            output.result("volume", &volume);
        }
        Volume::Rebase { name, path } => {
            let volume = client.rebase_volume(&name, &RebaseVolume { base: told(&path)? })?;
            output.line(format!("volume {}: {} of {}", volume.name, Size(volume.size), bases(&volume)));
            output.result("volume", &volume);
        }
        Volume::Remove { name } => {
            let volume = client.remove_volume(&name)?;
            output.line(match &volume.bases[..] {
                [] => format!("volume {} removed", volume.name),
                [_] => format!("volume {} removed; its base {} stays as it is", volume.name, volume.base),
                _ => format!("volume {} removed; its bases {} stay as they are", volume.name, bases(&volume)),
            });
            output.result("volume", &json!({ "id": volume.id, "name": volume.name, "removed": true }));
        }
    }
    Ok(Exit::AsAsked)
}

fn request(add: VolumeAdd) -> Result<AddVolume, Ending> {
    let grain = add.grain.unwrap_or(Size(DEFAULT_GRAIN.into()));
    if let Some(limit) = add.cache_limit.filter(|limit| *limit < grain) {
        return Err(Ending::usage(format!(
            "the cache limit {limit} leaves no room for originals: give at least one grain ({grain})"
        )));
    }
    if let Some(limit) = add.memory_limit.filter(|limit| *limit < grain) {
        return Err(Ending::usage(format!(
            "the memory limit {limit} leaves no room for originals: give at least one grain ({grain})"
        )));
    }
    Ok(AddVolume {
        bases: add.base.iter().map(|base| told(base)).collect::<Result<_, _>>()?,
        size: add.size,
        grain: add.grain,
        cache_dir: add.cache_dir.as_deref().map(told).transpose()?,
        cache_limit: add.cache_limit,
        memory_limit: add.memory_limit,
        direct: add.direct,
        durability: add.durability,
        save_ahead: add.save_ahead,
        name: add.name,
    })
}

/// A place as the daemon takes it.
fn told(path: &Path) -> Result<Place, Ending> {
    match Place::from(path.to_owned()) {
        Place::Path(path) => recorded(&path, "the daemon's records name it").map(Place::Path),
        export @ Place::Export(_) => Ok(export),
    }
}

/// What a volume stands on, in order.
fn bases(volume: &control::Volume) -> String {
    volume.bases.iter().map(|base| base.place.to_string()).collect::<Vec<_>>().join(", ")
}

/// A line a volume.
pub(crate) fn table(volumes: &[control::Volume]) -> Vec<Vec<String>> {
    let head = ["NAME", "STATE", "SIZE", "GRAIN", "SNAPSHOTS", "CLIENTS", "CACHE", "LIMIT", "BASE"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(volumes.iter().map(|volume| {
        vec![
            volume.name.to_string(),
            state(volume.state).into(),
            Size(volume.size).to_string(),
            Size(volume.grain.into()).to_string(),
            volume.snapshots.to_string(),
            volume.connections.to_string(),
            bytes(volume.cache_used),
            limit(volume),
            bases(volume),
        ]
    }));
    rows
}

fn show(volume: &control::Volume, output: Output) {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    output.line(format!("volume      {}", volume.name));
    output.line(format!("id          {}", volume.id));
    output.line(format!("state       {}", state(volume.state)));
    if let Some(reason) = &volume.reason {
        output.line(format!("reason      {reason}"));
    }
    for notice in &volume.notices {
        output.line(format!("notice      {notice}"));
    }
    for base in &volume.bases {
        output.line(format!("base        {} ({} bytes from {})", base.place, base.size, base.offset));
    }
    for restore in &volume.restores {
        output.line(format!("restore     {}", unfinished(restore)));
    }
    output.line(format!("size        {} ({} bytes)", Size(volume.size), volume.size));
    output.line(format!("grain       {}", Size(volume.grain.into())));
    output.line(format!("direct      {}", yes_no(volume.direct)));
    output.line(format!("generation  {}", volume.generation));
    output.line(format!("cache       {}", volume.cache));
    output.line(format!(
        "originals   {} in use, {} on disk, limit {}",
        bytes(volume.cache_used),
        bytes(volume.cache_file),
        limit(volume)
    ));
    for tier in &volume.tiers {
        let limit = tier.limit.map_or("-".into(), |limit| Size(limit).to_string());
        output.line(format!(
            "tier        {}: {} in use, limit {limit}, {}",
            kind(tier.kind),
            bytes(tier.used),
            tier.place
        ));
    }
    output.line(format!(
        "durability  {}",
        match volume.durability {
            Durability::Process => "process: snapshots survive the daemon",
            Durability::Power => "power: snapshots survive a loss of power",
        }
    ));
    if let Some(forecast) = &volume.forecast {
        output.line(format!("forecast    {}", foretold(forecast)));
    }
    if let Some(ahead) = &volume.save_ahead {
        output.line(format!("save ahead  {}", saved_ahead(ahead, volume.size)));
    }
    output.line(format!("snapshots   {}", volume.snapshots));
    output.line(format!("clients     {}", volume.connections));
    output.line(format!("configured  {}", yes_no(volume.declared)));
}

/// When the cache is full.
fn foretold(forecast: &Foretold) -> String {
    let room = match forecast.room {
        // More than any file system has: nobody knows.
        room if room > 1 << 60 => String::new(),
        room => format!("room for {}; ", bytes(room)),
    };
    let rate = format!("{}/s", bytes(forecast.rate));
    match (forecast.full_in_seconds, forecast.basis) {
        (Some(seconds), Basis::Saved) => format!("{room}full in {} at {rate}", clock(seconds)),
        (Some(seconds), Basis::Changed) => {
            format!("{room}a snapshot would have {} at least, as the host changes {rate}", clock(seconds))
        }
        (None, Basis::Saved) => format!("{room}nothing is being saved"),
        (None, Basis::Changed) => format!("{room}nothing is being changed"),
    }
}

/// How far originals are saved ahead of the host's changes.
fn saved_ahead(ahead: &SaveAhead, size: u64) -> String {
    let doing = match ahead.state {
        AheadState::Idle => "nothing is left to save".to_owned(),
        AheadState::Saving => format!("has gone through {} of {}", bytes(ahead.reached), bytes(size)),
        AheadState::WaitsForSpace => "the cache is half full, the rest is saved on demand".to_owned(),
    };
    format!("{} at most; {} saved, {doing}", Rate(ahead.rate), bytes(ahead.saved))
}

fn kind(kind: TierKind) -> &'static str {
    match kind {
        TierKind::Memory => "memory",
        TierKind::Disk => "disk",
        TierKind::Nbd => "nbd",
    }
}

fn state(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Serving => "serving",
        VolumeState::Failed => "failed",
    }
}

fn limit(volume: &control::Volume) -> String {
    volume.cache_limit.map_or("-".into(), |limit| Size(limit).to_string())
}
