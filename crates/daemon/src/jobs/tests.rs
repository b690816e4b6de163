use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use tzero_api::{Client, ClientError, Code, StatePaths};

use super::*;
use crate::opening::Opening;
use crate::platform::Without;
use crate::service::Daemon;
use crate::threads::DataThreads;
use crate::volumes::Volumes;

/// What stands in for `tzero restore`.
struct Fake {
    root: tempfile::TempDir,
}

impl Fake {
    fn new(script: &str) -> (Self, Jobs) {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("program");
        fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", root.path().display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let jobs = Jobs::new(program, root.path());
        (Self { root }, jobs)
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join(name)).unwrap_or_default()
    }
}

fn restore(target: &str) -> StartRestore {
    let ranges = vec![tzero_api::control::Part { offset: 0, length: 512 }];
    StartRestore { copy: "5a1f".into(), target: target.into(), ranges, differing: true, force: false }
}

/// Looks again and again, up to a limit.
fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came");
        thread::yield_now();
    }
}

fn ended(jobs: &Jobs, id: &str) -> Job {
    until(|| jobs.get(id).unwrap().state.is_over());
    jobs.get(id).unwrap()
}

const GOOD: &str = r#"
echo "$@" > words; echo "$TZERO_STATE $TZERO_JOB" > environment
echo '{"event":"progress","phase":"copy","done":5,"total":7}'
echo '{"restored":{"id":"1a"}}'"#;

#[test]
fn what_its_process_says_is_what_is_told() {
    let (fake, jobs) = Fake::new(GOOD);
    let begun = jobs.start(restore("volume:v")).unwrap();
    assert_eq!((begun.state, begun.pid.is_some()), (JobState::Running, true));
    let job = ended(&jobs, &begun.id);
    assert_eq!((job.state, job.exit, job.pid), (JobState::Done, Some(0), None));
    assert_eq!(job.progress, Some(JobProgress { phase: "copy".into(), done: 5, total: 7 }));
    assert_eq!(job.result, Some(serde_json::json!({ "id": "1a" })));
    assert_eq!(fake.said("words").trim(), "restore --to=volume:v --range=0+512 --differing --json -- 5a1f");
    assert_eq!(fake.said("environment").trim(), format!("{} {}", fake.root.path().display(), begun.id));
    assert_eq!(jobs.cancel(&begun.id).unwrap().id, begun.id);
    assert!(matches!(jobs.get(&begun.id), Err(Refusal::NoJob(_))), "it is forgotten");
}

#[test]
fn every_end_is_told_apart() {
    for (script, state, exit) in [
        (r#"echo '{"error":{"exit":1,"message":"it is damaged"}}'; exit 1"#, JobState::Failed, Some(1)),
        (r#"echo '{"error":{"exit":4,"message":"it is interrupted"}}'; exit 4"#, JobState::Incomplete, Some(4)),
        ("kill -9 $$", JobState::Incomplete, None),
        // A result is one only with the status that belongs to it, and the other way round.
        (r#"echo '{"restored":{}}'; exit 1"#, JobState::Failed, Some(1)),
        ("exit 0", JobState::Failed, Some(0)),
        // More than anybody wants to hear, and no JSON.
        ("head -c 5000000 /dev/zero; echo; exit 1", JobState::Failed, Some(1)),
    ] {
        let (_fake, jobs) = Fake::new(script);
        let begun = jobs.start(restore("/dev/x")).unwrap();
        let job = ended(&jobs, &begun.id);
        assert_eq!((job.state, job.exit), (state, exit), "{script}");
        assert!(job.error.is_some_and(|error| error.len() > 10), "{script}");
    }
    let (_fake, jobs) = Fake::new("");
    let missing = Jobs::new("/no/such/program".into(), &jobs.state);
    assert!(matches!(missing.start(restore("/x")), Err(Refusal::JobNotStarted(_))));
    assert!(missing.list().is_empty());
}

const PATIENT: &str = "touch started; cat > /dev/null; exit 4";

#[test]
fn a_job_stops_when_its_input_ends() {
    let (fake, jobs) = Fake::new(PATIENT);
    let begun = jobs.start(restore("/dev/x")).unwrap();
    until(|| fake.root.path().join("started").exists());
    assert_eq!(jobs.cancel(&begun.id).unwrap().state, JobState::Stopping);
    let job = ended(&jobs, &begun.id);
    assert_eq!((job.state, job.exit), (JobState::Incomplete, Some(4)));
}

#[test]
fn no_more_than_some_run_and_no_more_than_some_are_remembered() {
    let (_fake, jobs) = Fake::new(PATIENT);
    let running: Vec<Job> = (0..MOST_RUNNING).map(|_| jobs.start(restore("/dev/x")).unwrap()).collect();
    assert!(matches!(jobs.start(restore("/dev/x")), Err(Refusal::TooManyJobs(MOST_RUNNING))));
    for job in &running {
        jobs.cancel(&job.id).unwrap();
        ended(&jobs, &job.id);
    }
    for _ in 0..MOST_KEPT + 3 {
        let job = jobs.start(restore("/dev/x")).unwrap();
        jobs.cancel(&job.id).unwrap();
        ended(&jobs, &job.id);
    }
    assert!(jobs.list().len() <= MOST_KEPT + 1);
    assert!(jobs.list().is_sorted_by_key(|job| job.begun_ns));
}

#[test]
fn the_daemon_s_end_is_every_job_s() {
    let (fake, jobs) = Fake::new(PATIENT);
    let job = jobs.start(restore("/dev/x")).unwrap();
    until(|| fake.root.path().join("started").exists());
    jobs.stop();
    assert_eq!(jobs.get(&job.id).unwrap().exit, Some(4));
    assert!(matches!(jobs.start(restore("/dev/x")), Err(Refusal::Stopping)));
    // One that does not hear.
    let (fake, jobs) = Fake::new("touch started; exec sleep 1000");
    let job = jobs.start(restore("/dev/x")).unwrap();
    until(|| fake.root.path().join("started").exists());
    let asked = Instant::now();
    jobs.stop();
    assert!(asked.elapsed() < 2 * PATIENCE, "{:?}", asked.elapsed());
    assert_eq!(ended(&jobs, &job.id).exit, None);
}

#[test]
fn by_program() {
    let (_fake, jobs) = Fake::new(GOOD);
    let root = tempfile::tempdir().unwrap();
    let paths = StatePaths::new(root.path());
    let listener = std::os::unix::net::UnixListener::bind(paths.control_socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let threads = Arc::new(DataThreads::start().unwrap());
    let opening = Opening { boot_id: [1; 16], crash: None, without: Without::default() };
    let volumes = Volumes::new(paths.clone(), Arc::clone(&threads), opening, |_, _| Ok(false));
    let daemon = Arc::new(Daemon {
        paths: paths.clone(),
        threads: Arc::clone(&threads),
        volumes: Arc::new(volumes),
        jobs: Arc::new(jobs),
        notices: Vec::new(),
    });
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let serving = tokio::spawn(crate::control::serve(listener, daemon));
            let _ = stopped.await;
            serving.abort();
        });
    });
    let client = Client::new(&paths).unwrap();
    let begun = client.start_restore(&restore("volume:v")).unwrap();
    until(|| client.job(&begun.id).unwrap().state == JobState::Done);
    assert_eq!(client.jobs().unwrap(), [client.job(&begun.id).unwrap()]);
    assert_eq!(client.cancel_job(&begun.id).unwrap().result, Some(serde_json::json!({ "id": "1a" })));
    assert!(client.jobs().unwrap().is_empty());
    let refused = |error: ClientError| match error {
        ClientError::Refused(failure) => failure.code,
        other => panic!("{other}"),
    };
    assert_eq!(refused(client.job(&begun.id).unwrap_err()), Code::Unknown);
    assert_eq!(refused(client.cancel_job("x").unwrap_err()), Code::Unknown);
    assert_eq!(refused(client.start_restore(&restore("relative")).unwrap_err()), Code::Invalid);
    drop(stop);
    server.join().unwrap();
    threads.stop();
}
