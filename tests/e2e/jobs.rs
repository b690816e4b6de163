//! Restores that a program asks the daemon for.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::control::ask;
use e2e::scratch::{allocated, assert_same, read};
use e2e::{Daemon, MIB, Scratch};
use serde_json::{Value, json};

const SIZE: u64 = 64 * MIB;
/// Large enough that a restore is not over before it is stopped.
const LARGE: u64 = 512 * MIB;

/// The control socket of a daemon.
struct Control<'a>(&'a Daemon);

impl Control<'_> {
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        ask(&self.0.state().join("control.sock"), method, path, body)
    }

    fn begin(&self, restore: &Value) -> String {
        let (status, job) = self.ask("POST", "/v1/restores", Some(restore));
        assert_eq!(status, 200, "{job}");
        assert_eq!((&job["state"], &job["restore"]["target"]), (&"running".into(), &restore["target"]));
        job["id"].as_str().expect("a job has an id").to_owned()
    }

    fn job(&self, id: &str) -> Value {
        let (status, job) = self.ask("GET", &format!("/v1/jobs/{id}"), None);
        assert_eq!(status, 200, "{job}");
        job
    }

    /// Looks at a job until something holds of it.
    fn until(&self, id: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(50);
        loop {
            let job = self.job(id);
            if holds(&job) {
                return job;
            }
            assert!(Instant::now() < deadline, "it never came: {job}");
        }
    }

    fn ended(&self, id: &str) -> Value {
        self.until(id, |job| job["state"] != "running" && job["state"] != "stopping")
    }
}

fn copied(daemon: &Daemon, scratch: &Scratch, size: u64) -> std::path::PathBuf {
    let (plain, copy) = (scratch.random("plain", size, 2), scratch.join("copy.img"));
    daemon.command(["backup"]).arg(&plain).arg("--to").arg(&copy).run().exited(3);
    copy
}

fn restore(copy: &Path, target: &str) -> Value {
    json!({ "copy": copy, "target": target, "force": true })
}

#[test]
fn restores_by_program() {
    let scratch = Scratch::new();
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::serving(&scratch, &base);
    let copy = copied(&daemon, &scratch, SIZE);
    let before = daemon.contents("vol");
    daemon.ok("snapshot create s vol");
    let control = Control(&daemon);
    let id = control.begin(&json!({
        "copy": copy, "target": "volume:vol", "force": true, "differing": true,
        "ranges": [{ "offset": 0, "length": MIB }, { "offset": 5 * MIB, "length": 17 }],
    }));
    let job = control.ended(&id);
    assert_eq!((&job["state"], &job["exit"]), (&"done".into(), &0.into()), "{job}");
    assert_eq!(job["result"]["bytes_restored"], MIB + 17);
    let mut model = before.clone();
    for (at, len) in [(0, MIB as usize), (5 * MIB as usize, 17)] {
        model[at..at + len].copy_from_slice(&read(&copy)[at..at + len]);
    }
    assert!(daemon.contents("vol") == model && daemon.contents("vol@s") == before);
    // A file, by the copy's id.
    let copies = daemon.json("copy list");
    let file = scratch.join("back");
    let id = control.begin(&json!({ "copy": copies["copies"][0]["id"], "target": file }));
    assert_eq!(control.ended(&id)["state"], "done");
    assert_same(&file, &copy);
    // What fails says why, in the words of the command.
    let id = control.begin(&json!({ "copy": copy, "target": file }));
    let job = control.ended(&id);
    assert_eq!((&job["state"], &job["exit"]), (&"failed".into(), &1.into()), "{job}");
    assert!(job["error"].as_str().is_some_and(|error| error.contains("--force")), "{job}");
    let id = control.begin(&json!({ "copy": "0000", "target": file }));
    assert_eq!(control.ended(&id)["state"], "failed");
    // What is over can be forgotten.
    let (_, jobs) = control.ask("GET", "/v1/jobs", None);
    assert_eq!(jobs.as_array().map(Vec::len), Some(4));
    assert_eq!(control.ask("DELETE", &format!("/v1/jobs/{id}"), None).0, 200);
    assert_eq!(control.ask("GET", &format!("/v1/jobs/{id}"), None).0, 404);
    daemon.stop();
}

#[test]
fn requests_that_cannot_be() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch);
    let control = Control(&daemon);
    let many: Vec<Value> = (0..1025).map(|index| json!({ "offset": 2 * index, "length": 1 })).collect();
    for body in [
        json!({}),
        json!({ "copy": "abc" }),
        json!({ "copy": "abc", "target": "relative" }),
        json!({ "copy": "dir/x", "target": "/y" }),
        json!({ "copy": "x.img.tzero.json", "target": "/y" }),
        json!({ "copy": "--help", "target": "/y" }),
        json!({ "copy": "", "target": "/y" }),
        json!({ "copy": "abc", "target": "/y", "surprise": 1 }),
        json!({ "copy": "abc", "target": "/y", "ranges": [{ "offset": 0, "length": 0 }] }),
        json!({ "copy": "abc", "target": "/y", "ranges": [{ "offset": u64::MAX, "length": 2 }] }),
        json!({ "copy": "abc", "target": "/y", "ranges": many }),
        json!({ "copy": "x".repeat(10_000), "target": "/y" }),
    ] {
        let (status, said) = control.ask("POST", "/v1/restores", Some(&body));
        assert_eq!((status, &said["code"]), (400, &"invalid".into()), "{said}");
        assert!(said["message"].as_str().is_some_and(|message| message.len() > 20), "{said}");
    }
    assert_eq!(control.ask("GET", "/v1/jobs/0", None).0, 404);
    assert_eq!(control.ask("DELETE", "/v1/jobs/0", None).0, 404);
    assert_eq!(control.ask("GET", "/v1/jobs", None), (200, json!([])));
    daemon.stop();
}

#[test]
fn a_job_is_stopped_and_asked_for_again() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", LARGE);
    let daemon = Daemon::serving(&scratch, &base);
    let copy = copied(&daemon, &scratch, LARGE);
    let control = Control(&daemon);
    let id = control.begin(&restore(&copy, "volume:vol"));
    control.until(&id, |job| job["progress"]["phase"] == "copy" && job["progress"]["done"].as_u64() > Some(0));
    let told = &daemon.json("volume show vol")["volume"]["restores"][0];
    assert_eq!((&told["by"]["job"], &told["running"]), (&id.as_str().into(), &true.into()), "{told}");
    let (_, job) = control.ask("DELETE", &format!("/v1/jobs/{id}"), None);
    assert!(matches!(job["state"].as_str(), Some("stopping")), "{job}");
    let job = control.ended(&id);
    assert_eq!((&job["state"], &job["exit"]), (&"incomplete".into(), &4.into()), "{job}");
    assert_eq!(daemon.json("status")["status"]["restores"][0]["running"], false);
    let id = control.begin(&restore(&copy, "volume:vol"));
    assert_eq!(control.ended(&id)["state"], "done");
    assert!(daemon.contents("vol") == read(&copy));
    daemon.stop();
}

#[test]
fn the_daemon_s_end_ends_its_jobs() {
    let scratch = Scratch::new();
    let base = scratch.sparse("base", LARGE);
    let daemon = Daemon::serving(&scratch, &base);
    let copy = copied(&daemon, &scratch, LARGE);
    let control = Control(&daemon);
    let id = control.begin(&restore(&copy, "volume:vol"));
    control.until(&id, |_| allocated(&base) >= LARGE / 8);
    let pid = control.job(&id)["pid"].as_u64().expect("it runs");
    // In good time, although one of its own clients is at work.
    daemon.stop();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "its process is gone");
    let daemon = Daemon::start(&scratch);
    let told = &daemon.json("status")["status"]["restores"][0];
    assert_eq!((&told["running"], &told["target"]), (&false.into(), &"volume:vol".into()), "{told}");
    // Killed, it cannot end them; they notice.
    let control = Control(&daemon);
    let id = control.begin(&restore(&copy, "volume:vol"));
    let job = control.until(&id, |job| job["progress"]["phase"] == "copy");
    let process = format!("/proc/{}", job["pid"]);
    daemon.kill();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Path::new(&process).exists() {
        assert!(Instant::now() < deadline, "{process} lives on");
        std::thread::yield_now();
    }
    let daemon = Daemon::start(&scratch);
    let told = daemon.json("status")["status"]["restores"].as_array().expect("a list").clone();
    let resume = told[0]["resume"].as_str().and_then(|text| text.strip_prefix("tzero ")).expect("a command");
    daemon.ok(resume);
    assert!(daemon.contents("vol") == read(&copy));
    daemon.stop();
}
