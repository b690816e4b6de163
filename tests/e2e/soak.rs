//! A long life: snapshots, deletions, backups and restarts for as long as one likes; nothing grows with uptime (R18).

mod lane {
    use std::time::{Duration, Instant};

    use e2e::random::Random;
    use e2e::scratch::{allocated_below, read};
    use e2e::{Daemon, MIB};

    use crate::load::Load;

    const SIZE: u64 = 64 * MIB;

    /// Resident memory of the daemon in bytes.
    fn resident(daemon: &Daemon) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process().id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
    }

    #[test]
    fn nothing_grows_with_uptime() {
        let minutes = std::env::var("TZERO_SOAK_MINUTES").map_or(10, |text| text.parse().expect("a number of minutes"));
        let load = Load::new(SIZE);
        let daemon = load.serve();
        let mut random = Random::new(1);
        let image = load.scratch.join("copy.img");
        let backup = format!("backup vol --replace --to image:{}", image.display());
        let end = Instant::now() + Duration::from_secs(minutes * 60);
        let (mut round, mut early) = (0_u64, None);
        while Instant::now() < end {
            let writers = load.writers(&daemon, random.draw());
            let mut standing = Vec::new();
            for index in 0..6 {
                writers.progress(200);
                let name = format!("s{index}");
                standing.push((format!("vol@{name}"), load.snapshot(&daemon, &name)));
            }
            let (instant, _) = load.history.instant(|| daemon.ok(&backup));
            load.history.prove("the copy", &read(&image), instant);
            while let Some((export, instant)) = random.take(&mut standing) {
                load.prove(&daemon, &export, instant);
                daemon.ok(&format!("snapshot delete {export}"));
            }
            writers.stop();
            let used = daemon.json("volume show vol")["volume"]["cache_used"].as_u64();
            assert_eq!(used, Some(0), "nothing is kept for nobody");
            round += 1;
            let now = (resident(&daemon), allocated_below(daemon.state()));
            eprintln!("round {round}: {} MiB of memory, {} MiB on disk", now.0 / MIB, now.1 / MIB);
            if round == 5 {
                early = Some(now);
            }
            if let Some((memory, disk)) = early {
                assert!(now.0 <= memory + memory / 2 + 32 * MIB, "memory grows: {} bytes, then {}", memory, now.0);
                assert!(now.1 <= disk * 2 + 32 * MIB, "the state directory grows: {} bytes, then {}", disk, now.1);
            }
        }
        daemon.stop();
    }
}
