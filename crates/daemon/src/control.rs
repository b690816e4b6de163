//! The control server: HTTP with JSON on a unix socket.
//!
//! Deliberately absent: access control. Whoever can open the socket (mode 0600 in a directory of mode 0700) is the owner or root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path as Parts, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::UnixListener;
use tzero_api::control::{AddVolume, CreateSnapshot, Snapshot, Status};
use tzero_api::{Code, Failure, Name, SnapshotPath, is_private, route};
use tzero_engine::{SnapshotError, SnapshotInfo, SnapshotKind};

use crate::daemon::Daemon;
use crate::refusal::Refusal;
use crate::volume::Volume;

type Shared = State<Arc<Daemon>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// Listens for control clients.
pub(crate) fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers control clients until the task is dropped.
pub(crate) async fn serve(listener: UnixListener, daemon: Arc<Daemon>) -> std::io::Result<()> {
    let router = Router::new()
        .route(route::STATUS, get(status))
        .route(route::VOLUMES, get(volumes).post(add_volume))
        .route(route::VOLUME, get(volume).delete(remove_volume))
        .route(route::SNAPSHOTS, get(snapshots))
        .route(route::VOLUME_SNAPSHOTS, get(volume_snapshots).post(create_snapshot))
        .route(route::SNAPSHOT, get(snapshot).delete(delete_snapshot))
        .route(route::SNAPSHOT_MAP, get(snapshot_map))
        .fallback(unknown)
        .with_state(daemon);
    axum::serve(listener, router).await
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        refused(&Failure::from(&self))
    }
}

fn refused(failure: &Failure) -> Response {
    let status = match failure.code {
        Code::Invalid => StatusCode::BAD_REQUEST,
        Code::Unknown => StatusCode::NOT_FOUND,
        Code::Taken | Code::Busy => StatusCode::CONFLICT,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(failure)).into_response()
}

async fn unknown() -> Response {
    let message = "the daemon has no such place: use one version of tzero for daemon and commands".into();
    refused(&Failure { code: Code::Invalid, message })
}

async fn status(State(daemon): Shared) -> Answer<Status> {
    let volumes = daemon.volumes.all();
    let snapshots = describe_all(volumes.clone()).await;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        state: daemon.paths.root().into(),
        nbd: daemon.addresses(),
        volumes: volumes.iter().map(|volume| volume.describe()).collect(),
        snapshots,
    }))
}

async fn volumes(State(daemon): Shared) -> Answer<Vec<tzero_api::control::Volume>> {
    Ok(Json(daemon.volumes.all().iter().map(|volume| volume.describe()).collect()))
}

async fn volume(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<tzero_api::control::Volume> {
    Ok(Json(daemon.volumes.get(&name.parse()?)?.describe()))
}

async fn add_volume(State(daemon): Shared, body: Bytes) -> Answer<tzero_api::control::Volume> {
    let request: AddVolume = serde_json::from_slice(&body)?;
    let volume = daemon.volumes.add(&request).await?;
    tracing::info!(volume = %volume.name, "added");
    Ok(Json(volume.describe()))
}

async fn remove_volume(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<tzero_api::control::Volume> {
    let volume = daemon.volumes.remove(&name.parse()?).await?;
    tracing::info!(volume = %volume.name, "removed");
    Ok(Json(volume.describe()))
}

async fn snapshots(State(daemon): Shared) -> Answer<Vec<Snapshot>> {
    Ok(Json(describe_all(daemon.volumes.all()).await))
}

async fn volume_snapshots(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<Vec<Snapshot>> {
    let volume = daemon.volumes.get(&name.parse()?)?;
    volume.serving()?;
    Ok(Json(describe_all(vec![volume]).await))
}

async fn create_snapshot(State(daemon): Shared, Parts(name): Parts<String>, body: Bytes) -> Answer<Snapshot> {
    let request: CreateSnapshot = serde_json::from_slice(&body)?;
    if is_private(request.name.as_str()) {
        return Err(Refusal::Reserved(request.name));
    }
    let volume = daemon.volumes.get(&name.parse()?)?;
    let _gate = open_gate(&volume)?;
    let engine = Arc::clone(&volume.serving()?.engine);
    let path = SnapshotPath { volume: volume.name.clone(), snapshot: request.name };
    let snapshot = path.snapshot.clone();
    let created =
        daemon.threads.run(move || async move { engine.create_snapshot(snapshot.as_str(), SnapshotKind::KEPT).await });
    let info = created.await.map_err(|_| Refusal::Stopping)?.map_err(|error| refuse(&path, error))?;
    tracing::info!(snapshot = %path, pause_us = info.pause_ns / 1000, "created");
    described(describe(&volume, info).await, path)
}

async fn snapshot(State(daemon): Shared, Parts(parts): Parts<(String, String)>) -> Answer<Snapshot> {
    let (volume, path) = find(&daemon, parts)?;
    let info = volume.snapshot(&path.snapshot)?;
    described(describe(&volume, info).await, path)
}

async fn delete_snapshot(State(daemon): Shared, Parts(parts): Parts<(String, String)>) -> Answer<Snapshot> {
    let (volume, path) = find(&daemon, parts)?;
    let _gate = open_gate(&volume)?;
    let info = volume.snapshot(&path.snapshot)?;
    let id = info.id;
    let description = describe(&volume, info).await;
    let engine = Arc::clone(&volume.serving()?.engine);
    let deleted = daemon.threads.run(move || async move { engine.delete_snapshot(id).await });
    deleted.await.map_err(|_| Refusal::Stopping)?.map_err(|error| refuse(&path, error))?;
    tracing::info!(snapshot = %path, "deleted");
    described(description, path)
}

async fn snapshot_map(State(daemon): Shared, Parts(parts): Parts<(String, String)>) -> Result<Response, Refusal> {
    use std::fmt::Write;
    let (volume, path) = find(&daemon, parts)?;
    let engine = Arc::clone(&volume.serving()?.engine);
    let name = path.snapshot.clone();
    let lines = off_thread(move || engine.map_lines(name.as_str())).await.map_err(|error| refuse(&path, error))?;
    let mut text = String::with_capacity(lines.len() * 32);
    for line in lines {
        let state = if line.read { "read" } else { "unread" };
        let _ = write!(text, "{:x}\t{}\t{state}\t", line.unit, line.block);
        let _ = match line.cache_offset {
            Some(offset) => writeln!(text, "{offset}"),
            None => writeln!(text, "-"),
        };
    }
    Ok(([(header::CONTENT_TYPE, "text/tab-separated-values")], text).into_response())
}

fn find(daemon: &Daemon, (volume, snapshot): (String, String)) -> Result<(Arc<Volume>, SnapshotPath), Refusal> {
    let (volume, snapshot): (Name, Name) = (volume.parse()?, snapshot.parse()?);
    let found = daemon.volumes.get(&volume)?;
    Ok((found, SnapshotPath { volume, snapshot }))
}

fn open_gate(volume: &Volume) -> Result<tokio::sync::RwLockReadGuard<'_, ()>, Refusal> {
    volume.gate.try_read().map_err(|_| Refusal::BeingChanged(volume.name.clone()))
}

fn described(description: Option<Snapshot>, path: SnapshotPath) -> Answer<Snapshot> {
    description.map(Json).ok_or(Refusal::NoSnapshot(path))
}

async fn describe(volume: &Arc<Volume>, info: SnapshotInfo) -> Option<Snapshot> {
    let volume = Arc::clone(volume);
    off_thread(move || volume.describe_snapshots(&[info]).pop()).await
}

/// What the engine says of a snapshot, for the operator.
fn refuse(path: &SnapshotPath, error: SnapshotError) -> Refusal {
    match error {
        SnapshotError::Unknown => Refusal::NoSnapshot(path.clone()),
        SnapshotError::Taken => Refusal::SnapshotTaken(path.clone()),
        source => Refusal::Snapshot { path: path.clone(), source },
    }
}

async fn describe_all(volumes: Vec<Arc<Volume>>) -> Vec<Snapshot> {
    off_thread(move || {
        let mut all = Vec::new();
        for volume in volumes {
            let Ok(serving) = volume.serving() else { continue };
            let snapshots = serving.engine.snapshots();
            all.extend(volume.describe_snapshots(&snapshots));
        }
        all
    })
    .await
}

/// Runs what looks at every original on a thread of its own.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("looking does not panic")
}
