//! The control server: HTTP with JSON on a unix socket.
//!
//! Deliberately absent: access control. Whoever can open the socket (mode 0600 in a directory of mode 0700) is the owner or root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path as Parts, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use tokio::net::UnixListener;
use tzero_api::control::{self, AddVolume, CreateSnapshot, Forecast, Snapshot, Status};
use tzero_api::jobs::{Job, StartRestore};
use tzero_api::{Code, Failure, Name, RebaseVolume, ResizeVolume, SnapshotPath, is_private, route};
use tzero_engine::{SnapshotInfo, SnapshotKind};
use tzero_originals::{Originals, SnapshotId};

use crate::backups::Backups;
use crate::refusal::Refusal;
use crate::restores;
use crate::scope;
use crate::service::Daemon;
use crate::threads::off_thread;
use crate::volume::Volume;
use crate::words;

/// Longest body of a request, in bytes: a scope of as many parts as there may be fits.
pub(crate) const LONGEST_BODY: usize = 8 << 20;

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
        .route(route::VOLUME_FORECAST, get(forecast))
        .route(route::VOLUME_BASE, put(rebase_volume))
        .route(route::VOLUME_SIZE, put(resize_volume))
        .route(route::SNAPSHOTS, get(snapshots))
        .route(route::VOLUME_SNAPSHOTS, get(volume_snapshots).post(create_snapshot))
        .route(route::SNAPSHOT, get(snapshot).delete(delete_snapshot))
        .route(route::SNAPSHOT_MAP, get(snapshot_map))
        .route(route::RESTORES, post(start_restore))
        .route(route::JOBS, get(jobs))
        .route(route::JOB, get(job).delete(cancel_job))
        .fallback(unknown)
        .method_not_allowed_fallback(not_so)
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
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

type Body = Result<Bytes, BytesRejection>;

/// A request's body as what it says.
fn parsed<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLong,
        _ => Refusal::Unread(rejection.body_text()),
    })?;
    // What has members by name is not taken as a list of them in some order.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(Refusal::Malformed(serde::de::Error::custom("it is no JSON object")));
    }
    Ok(serde_json::from_slice(&body)?)
}

async fn not_so(method: Method, uri: Uri) -> Response {
    let message = format!("{method} is nothing that can be done with {}", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(Failure { code: Code::Invalid, message })).into_response()
}

async fn unknown() -> Response {
    let message = "the daemon has no such place: use one version of tzero for daemon and commands".into();
    refused(&Failure { code: Code::Invalid, message })
}

async fn status(State(daemon): Shared) -> Answer<Status> {
    let all = daemon.volumes.all();
    let volumes = described_volumes(&daemon, all.clone()).await;
    let snapshots = describe_all(all).await;
    let root = daemon.paths.root().to_owned();
    let restores = off_thread(move || restores::unfinished(&root)).await;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        state: daemon.paths.root().into(),
        nbd: daemon.addresses(),
        volumes,
        snapshots,
        restores,
        notices: daemon.notices.clone(),
    }))
}

async fn volumes(State(daemon): Shared) -> Answer<Vec<control::Volume>> {
    Ok(Json(described_volumes(&daemon, daemon.volumes.all()).await))
}

async fn volume(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<control::Volume> {
    let volume = daemon.volumes.get(&name.parse()?)?;
    shown(&daemon, volume).await
}

async fn shown(daemon: &Daemon, volume: Arc<Volume>) -> Answer<control::Volume> {
    let described = described_volumes(daemon, vec![volume]).await;
    Ok(Json(described.into_iter().next().expect("one volume has one description")))
}

async fn described_volumes(daemon: &Daemon, volumes: Vec<Arc<Volume>>) -> Vec<control::Volume> {
    let state = daemon.paths.root().to_owned();
    off_thread(move || {
        let mut described: Vec<_> = volumes.iter().map(|volume| volume.describe()).collect();
        restores::tell(&state, &mut described);
        described
    })
    .await
}

async fn forecast(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<Forecast> {
    let volume = daemon.volumes.get(&name.parse()?)?;
    Ok(Json(off_thread(move || volume.forecast()).await?))
}

async fn add_volume(State(daemon): Shared, body: Body) -> Answer<control::Volume> {
    let request: AddVolume = parsed(body)?;
    let volume = daemon.volumes.add(&request).await?;
    tracing::info!(volume = %volume.name, "added");
    shown(&daemon, volume).await
}

async fn remove_volume(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<control::Volume> {
    let volume = daemon.volumes.remove(&name.parse()?).await?;
    tracing::info!(volume = %volume.name, "removed");
    shown(&daemon, volume).await
}

async fn rebase_volume(State(daemon): Shared, Parts(name): Parts<String>, body: Body) -> Answer<control::Volume> {
    let request: RebaseVolume = parsed(body)?;
    let volumes = Arc::clone(&daemon.volumes);
    let name = name.parse()?;
    // A task of its own: a client that goes away leaves nothing half done.
    let rebased = tokio::spawn(async move { volumes.rebase(&name, &request).await }).await;
    let volume = rebased.map_err(|_| Refusal::Stopping)??;
    tracing::info!(volume = %volume.name, "stands on another base");
    shown(&daemon, volume).await
}

async fn resize_volume(State(daemon): Shared, Parts(name): Parts<String>, body: Body) -> Answer<control::Volume> {
    let request: ResizeVolume = parsed(body)?;
    let volumes = Arc::clone(&daemon.volumes);
    let name = name.parse()?;
    let resized = tokio::spawn(async move { volumes.resize(&name, request).await }).await;
    let volume = resized.map_err(|_| Refusal::Stopping)??;
    tracing::info!(volume = %volume.name, size = request.size.0, "has the size");
    shown(&daemon, volume).await
}

async fn snapshots(State(daemon): Shared) -> Answer<Vec<Snapshot>> {
    Ok(Json(describe_all(daemon.volumes.all()).await))
}

async fn volume_snapshots(State(daemon): Shared, Parts(name): Parts<String>) -> Answer<Vec<Snapshot>> {
    let volume = daemon.volumes.get(&name.parse()?)?;
    Ok(Json(describe_all(vec![volume]).await))
}

async fn create_snapshot(State(daemon): Shared, Parts(name): Parts<String>, body: Body) -> Answer<Snapshot> {
    let request: CreateSnapshot = parsed(body)?;
    if is_private(request.name.as_str()) {
        return Err(Refusal::Reserved(request.name));
    }
    let volume = daemon.volumes.get(&name.parse()?)?;
    let _gate = volume.enter()?;
    daemon.volumes.refuse_when_stopping()?;
    volume.refuse_without_room()?;
    let size = volume.whole()?.engine.size();
    let kind = kind_of(&request);
    let scope = request.scope.map(|parts| parts.iter().map(|part| (part.offset, part.length)).collect());
    let scope = scope.map(|parts| scope::ranges(parts, size)).transpose()?;
    let path = SnapshotPath { volume: volume.name.clone(), snapshot: request.name };
    let (name, taken_of, theirs) = (path.snapshot.clone(), Arc::clone(&volume), Arc::clone(&daemon));
    // A task of its own: a client that goes away leaves nothing half done.
    let taken = tokio::spawn(async move { taken_of.take_snapshot(&theirs.threads, &name, kind, scope).await });
    let info = taken.await.map_err(|_| Refusal::Stopping)??;
    let copied = Arc::clone(&volume);
    off_thread(move || copied.copy_snapshots()).await;
    tracing::info!(snapshot = %path, pause_us = info.pause_ns / 1000, "created");
    described(describe(&volume, info).await, path)
}

/// What a user's snapshot is to be.
fn kind_of(request: &CreateSnapshot) -> SnapshotKind {
    SnapshotKind {
        originals: request.originals.map_or(Originals::Keep, words::originals),
        private: false,
        on_full: words::on_full(request.on_full.unwrap_or_default()),
    }
}

async fn snapshot(State(daemon): Shared, Parts(parts): Parts<(String, String)>) -> Answer<Snapshot> {
    let (volume, path) = find(&daemon, parts)?;
    described(described_by_name(&volume, &path).await?.1, path)
}

async fn delete_snapshot(State(daemon): Shared, Parts(parts): Parts<(String, String)>) -> Answer<Snapshot> {
    let (volume, path) = find(&daemon, parts)?;
    if volume.serving().is_err() {
        return delete_dormant(&daemon, &volume, path).await;
    }
    let _gate = volume.enter()?;
    daemon.volumes.refuse_when_stopping()?;
    let (id, description) = described_by_name(&volume, &path).await?;
    let engine = Arc::clone(&volume.serving()?.engine);
    let deleted = daemon.threads.run(move || async move { engine.delete_snapshot(id).await });
    deleted.await.map_err(|_| Refusal::Stopping)?.map_err(|error| Refusal::of_snapshot(&path, error))?;
    let copied = Arc::clone(&volume);
    off_thread(move || copied.copy_snapshots()).await;
    tracing::info!(snapshot = %path, "deleted");
    described(description, path)
}

/// Deletes a snapshot of a volume that is not served.
async fn delete_dormant(daemon: &Daemon, volume: &Arc<Volume>, path: SnapshotPath) -> Answer<Snapshot> {
    let (id, description) = described_by_name(volume, &path).await?;
    daemon.volumes.delete_dormant(volume, id).await?;
    let (theirs, name) = (Arc::clone(volume), path.snapshot.clone());
    // A note that stays is removed at the next start.
    let _ = off_thread(move || Backups::of(&theirs.directory).forget(name.as_str())).await;
    tracing::info!(snapshot = %path, "deleted");
    described(description, path)
}

async fn snapshot_map(State(daemon): Shared, Parts(parts): Parts<(String, String)>) -> Result<Response, Refusal> {
    use std::fmt::Write;
    let (volume, path) = find(&daemon, parts)?;
    let engine = Arc::clone(&volume.serving()?.engine);
    let name = path.snapshot.clone();
    let lines = off_thread(move || engine.map_lines(name.as_str()))
        .await
        .map_err(|error| Refusal::of_snapshot(&path, error))?;
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

async fn start_restore(State(daemon): Shared, body: Body) -> Answer<Job> {
    let request: StartRestore = parsed(body)?;
    let jobs = Arc::clone(&daemon.jobs);
    let job = off_thread(move || jobs.start(request)).await?;
    tracing::info!(job = job.id, copy = job.restore.copy, target = job.restore.target, "restore begun");
    Ok(Json(job))
}

async fn jobs(State(daemon): Shared) -> Answer<Vec<Job>> {
    Ok(Json(daemon.jobs.list()))
}

async fn job(State(daemon): Shared, Parts(id): Parts<String>) -> Answer<Job> {
    daemon.jobs.get(&id).map(Json)
}

async fn cancel_job(State(daemon): Shared, Parts(id): Parts<String>) -> Answer<Job> {
    daemon.jobs.cancel(&id).map(Json)
}

fn find(daemon: &Daemon, (volume, snapshot): (String, String)) -> Result<(Arc<Volume>, SnapshotPath), Refusal> {
    let (volume, snapshot): (Name, Name) = (volume.parse()?, snapshot.parse()?);
    let found = daemon.volumes.get(&volume)?;
    Ok((found, SnapshotPath { volume, snapshot }))
}

fn described(description: Option<Snapshot>, path: SnapshotPath) -> Answer<Snapshot> {
    description.map(Json).ok_or(Refusal::NoSnapshot(path))
}

/// A snapshot's id, and what there is to say of it.
async fn described_by_name(
    volume: &Arc<Volume>,
    path: &SnapshotPath,
) -> Result<(SnapshotId, Option<Snapshot>), Refusal> {
    let (theirs, name) = (Arc::clone(volume), path.snapshot.clone());
    let info = off_thread(move || theirs.any_snapshot(&name)).await?;
    Ok((info.id, describe(volume, info).await))
}

async fn describe(volume: &Arc<Volume>, info: SnapshotInfo) -> Option<Snapshot> {
    let volume = Arc::clone(volume);
    off_thread(move || volume.describe_snapshots(&[info]).pop()).await
}

async fn describe_all(volumes: Vec<Arc<Volume>>) -> Vec<Snapshot> {
    off_thread(move || {
        let mut all = Vec::new();
        for volume in volumes {
            all.extend(volume.describe_snapshots(&volume.snapshots()));
        }
        all
    })
    .await
}
