//! What a snapshot may be asked for besides its name, and what its volume tells of its cache. By the daemon's own sockets.

use std::time::{Duration, Instant};

use e2e::nbd::EIO;
use e2e::nbd::Failure;
use e2e::scratch::{bytes, read};
use e2e::sockets::{Mover, control};
use e2e::{Daemon, MIB, Scratch};
use serde_json::{Value, json};

const SIZE: u64 = 16 * MIB;
const SNAPSHOTS: &str = "/v1/volumes/vol/snapshots";

fn serving(scratch: &Scratch, options: &str) -> Daemon {
    let base = scratch.random("base", SIZE, 1);
    let daemon = Daemon::start(scratch);
    daemon.ok(&format!("volume add vol {} {options}", base.display()));
    daemon
}

fn post(daemon: &Daemon, body: &Value) -> (u16, Value) {
    control(daemon.state(), "POST", SNAPSHOTS, &body.to_string())
}

#[test]
fn a_scope_is_kept_shown_and_all_that_is_seen() {
    let scratch = Scratch::new();
    let daemon = serving(&scratch, "");
    let parts = json!([{"offset": 8192, "length": 4096}, {"offset": 0, "length": 512}, {"offset": 512, "length": 100}]);
    let (status, made) =
        post(&daemon, &json!({"name": "s", "scope": parts, "on_full": "wait:90s", "originals": "release"}));
    assert_eq!(status, 200, "{made}");
    let scope = json!([{"offset": 0, "length": 612}, {"offset": 8192, "length": 4096}]);
    let before = read(&scratch.join("base"));
    daemon.connect("vol").write(0, &bytes(MIB as usize, 2)).expect("writing works");
    let is_kept = |daemon: &Daemon| {
        let shown = daemon.json("snapshot show vol@s")["snapshot"].clone();
        assert_eq!(shown["scope"], scope, "{shown}");
        assert_eq!((&shown["on_full"], &shown["originals"]), (&json!("wait:90s"), &json!("release")));
        let mut view = daemon.connect("vol@s");
        assert!(view.read(0, 512).expect("in scope") == before[..512]);
        assert!(view.read(8192, 4096).expect("in scope") == before[8192..12_288]);
        assert!(matches!(view.read(4096, 512), Err(Failure::Refused(EIO))), "out of it");
        assert_eq!(daemon.map("vol@s").len(), 2, "nothing else is saved");
    };
    is_kept(&daemon);
    let said = daemon.ok("snapshot show vol@s");
    assert!(said.contains("scope      8192+4096") && said.contains("when full  wait:90s"), "{said}");
    daemon.stop();
    let daemon = Daemon::start(&scratch);
    is_kept(&daemon);
    daemon.ok("snapshot create plain vol");
    let plain = daemon.json("snapshot show vol@plain")["snapshot"].clone();
    assert_eq!(
        (&plain["scope"], &plain["on_full"], &plain["originals"]),
        (&Value::Null, &json!("break"), &json!("keep"))
    );
    daemon.stop();
}

#[test]
fn what_cannot_be_asked_for_is_a_bad_request() {
    let scratch = Scratch::new();
    let daemon = serving(&scratch, "");
    let part = |offset: u64, length: u64| json!({"name": "s", "scope": [{"offset": offset, "length": length}]});
    let most: Vec<Value> = (0..65_536_u64).map(|index| json!({"offset": index * 256, "length": 1})).collect();
    let mut more = most.clone();
    more.push(json!({"offset": 1, "length": 1}));
    for (body, part) in [
        (json!({"name": "s", "on_full": "wait:0s"}), "1h"),
        (json!({"name": "s", "on_full": "wait:2h"}), "1h"),
        (json!({"name": "s", "on_full": "wait"}), "fail-writes"),
        (json!({"name": "s", "originals": "drop"}), "keep"),
        (json!({"name": "s", "scope": []}), "one part"),
        (json!(["s"]), "no JSON object"),
        (json!({"name": "s", "scope": [{"offset": 0}]}), "length"),
        (json!({"name": "s", "scope": more}), "65536"),
        (part(0, 0), "empty"),
        (part(SIZE, 1), "past the end"),
        (part(u64::MAX, u64::MAX), "past the end"),
    ] {
        let (status, answer) = post(&daemon, &body);
        let said = answer["message"].as_str().expect("a sentence");
        assert_eq!((status, &answer["code"]), (400, &json!("invalid")), "{said}");
        assert!(said.contains(part) && !said.contains('\n'), "{said}");
    }
    let (status, answer) = control(daemon.state(), "POST", SNAPSHOTS, &" ".repeat(9 << 20));
    assert_eq!((status, &answer["code"]), (400, &json!("invalid")), "{answer}");
    let (status, answer) = control(daemon.state(), "PATCH", SNAPSHOTS, "{}");
    let said = answer["message"].as_str().expect("a sentence");
    assert!(status == 405 && answer["code"] == "invalid" && said.contains("PATCH"), "{answer}");
    let add = json!({"name": "other", "bases": [scratch.join("base")], "cache_limit": 4095});
    let (status, answer) = control(daemon.state(), "POST", "/v1/volumes", &add.to_string());
    assert_eq!(status, 400, "{answer}");
    assert!(answer["message"].as_str().is_some_and(|said| said.contains("one grain")), "{answer}");
    assert!(daemon.snapshots("vol").is_empty());

    let (status, made) = post(&daemon, &json!({"name": "s", "scope": most}));
    assert_eq!((status, made["scope"].as_array().map(Vec::len)), (200, Some(65_536)));
    daemon.stop();
}

#[test]
fn a_mover_is_told_of_the_scope_and_to_hurry() {
    let scratch = Scratch::new();
    let mut daemon = serving(&scratch, "--cache-limit 1M");
    let mut mover = Mover::connect(daemon.state());
    let half = SIZE / 2;
    let begun = mover.ask(&json!({"request": "begin", "protocol": 3, "volume": "vol", "snapshot": null,
        "scope": [[half, half], [0, 4096]], "on_full": "wait:1h"}));
    assert_eq!(begun["scope"], json!([[0, 4096], [half, half]]), "{begun}");
    assert_eq!(begun["released"]["ranges"], json!([[4096, half - 4096]]), "what is outside cannot be had");
    let name = begun["snapshot"].as_str().expect("a name").to_owned();
    let shown = daemon.json(&format!("snapshot show vol@{name}"))["snapshot"].clone();
    assert_eq!((&shown["on_full"], &shown["captured_bytes"]), (&json!("wait:1h"), &json!(0)), "{shown}");
    let released = mover.ask(&json!({"request": "captured", "ranges": [[half, 4096]]}));
    assert_eq!(released, json!({"reply": "released", "hurry": false}));
    let mut host = daemon.connect("vol");
    host.write(0, &bytes(4096, 2)).expect("writing works");
    host.write(half, &bytes(900 << 10, 2)).expect("writing works");
    let released = mover.ask(&json!({"request": "captured", "ranges": [[half + 4096, 4096]]}));
    assert_eq!(released["hurry"], true, "{released}");
    // The cache is full, and the host waits because a mover is at work.
    let writing = std::thread::spawn(move || host.write(half + MIB, &bytes(512 << 10, 3)).map(|()| host));
    assert_eq!(mover.ask(&json!({"request": "check"}))["reply"], "good");
    let released = mover.ask(&json!({"request": "captured", "ranges": [[half, MIB]]}));
    assert_eq!(released["reply"], "released");
    writing.join().expect("no panic").expect("writing works");
    assert_eq!(mover.ask(&json!({"request": "check"}))["reply"], "good", "nothing broke");
    for member in [json!({"scope": [[0, 512]]}), json!({"on_full": "break"})] {
        let mut begin = json!({"request": "begin", "protocol": 3, "volume": "vol", "snapshot": "s"});
        begin.as_object_mut().expect("an object").extend(member.as_object().expect("an object").clone());
        let answer = Mover::connect(daemon.state()).ask(&begin);
        assert_eq!(answer["code"], "invalid", "{answer}");
    }
    let answer = Mover::connect(daemon.state())
        .ask(&json!({"request": "begin", "protocol": 3, "volume": "vol", "snapshot": null, "scope": []}));
    assert_eq!(answer["code"], "invalid", "{answer}");
    assert_eq!(mover.ask(&json!({"request": "abandon"}))["reply"], "finished");
    daemon.announce("broken");
    daemon.stop();
}

fn forecast(daemon: &Daemon) -> Value {
    let (status, forecast) = control(daemon.state(), "GET", "/v1/volumes/vol/forecast", "");
    assert_eq!(status, 200, "{forecast}");
    forecast
}

#[test]
fn a_steady_rate_tells_when_the_cache_is_full() {
    let scratch = Scratch::new();
    let daemon = serving(&scratch, "--cache-limit 12M");
    let mut host = daemon.connect("vol");
    assert_eq!(forecast(&daemon)["full_in_seconds"], Value::Null);
    let began = Instant::now();
    let mut grain = 0_u64;
    // A write of 8 KiB every 10 ms, in time.
    let mut steady = |host: &mut e2e::nbd::Client, writes: u64| {
        let since = Instant::now();
        for index in 0..writes {
            let due = Duration::from_millis(10 * index);
            while since.elapsed() < due {
                std::thread::park_timeout(due.saturating_sub(since.elapsed()));
            }
            host.write(grain * 4096, &[7; 8192]).expect("writing works");
            grain += 2;
        }
    };
    steady(&mut host, 400);
    let before = forecast(&daemon);
    assert_eq!(before["basis"], "changed", "no snapshot stands: {before}");
    let near = |forecast: &Value, room: u64| {
        let seconds = forecast["full_in_seconds"].as_f64().expect("a forecast");
        let comes = room as f64 / 819_200.0;
        assert!((seconds / comes - 1.0).abs() < 0.25, "{forecast} and not {comes}, after {:?}", began.elapsed());
    };
    near(&before, 12 * MIB);
    assert_eq!(daemon.json("volume show vol")["volume"]["full_in_seconds"], Value::Null);

    daemon.ok("snapshot create s vol");
    steady(&mut host, 500);
    let shown = daemon.json("volume show vol")["volume"].clone();
    assert_eq!(shown["cache_limit"], 12 * MIB);
    near(&shown, 12 * MIB - shown["cache_used"].as_u64().expect("bytes"));
    let now = forecast(&daemon);
    assert_eq!(now["basis"], "saved", "{now}");
    assert_eq!(now["volume"], "vol");
    daemon.ok("snapshot delete vol@s");
    assert_eq!(daemon.json("volume show vol")["volume"]["full_in_seconds"], Value::Null);
    daemon.stop();
}
