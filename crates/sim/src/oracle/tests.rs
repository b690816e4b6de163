use super::*;
use crate::contents::Cells;
use crate::executor::{Chaos, Executor, Process, Stuck, spawn};

const CELLS: Cells = Cells { cell: 16, size: 64 };
const ALL: ByteRange = ByteRange::new(0, 64);

fn bytes_of(version: Version) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    CELLS.fill(version, ALL, &mut bytes);
    bytes
}

/// What the oracle objects to, if anything.
fn judged(story: impl FnOnce(&Oracle) + 'static) -> Option<String> {
    let executor = Executor::new(1, Chaos::default());
    let oracle = Oracle::new(CELLS, |_| true);
    spawn(Process::WORLD, "story".into(), true, async move { story(&oracle) });
    match executor.run(100) {
        Ok(_) => None,
        Err(Stuck::Violation(complaint)) => Some(complaint),
        Err(other) => panic!("{other}"),
    }
}

fn write(oracle: &Oracle, epoch: u64, outcome: Option<Outcome>) -> Version {
    let id = oracle.submit(Kind::Write, ALL, false);
    oracle.admitted(id, epoch);
    if let Some(outcome) = outcome {
        oracle.finished(id, outcome);
    }
    Version(id.0)
}

fn view(oracle: &Oracle, version: Version) {
    let token = oracle.view_begins(1, ALL);
    oracle.view_ends(&token, &bytes_of(version), "view");
}

fn read(oracle: &Oracle, version: Version) {
    let token = oracle.read_begins(ALL);
    oracle.read_ends(&token, &bytes_of(version), "host");
}

fn snapshot(oracle: &Oracle, epoch: u64) {
    oracle.create_begins(1);
    oracle.created(1, epoch);
}

#[test]
fn an_acknowledged_write_is_what_is_read() {
    let stale = |oracle: &Oracle| {
        let old = write(oracle, 0, Some(Outcome::Done));
        let new = write(oracle, 0, Some(Outcome::Done));
        read(oracle, new);
        read(oracle, old);
    };
    assert!(judged(stale).is_some_and(|complaint| complaint.contains("hold write 1, allowed are [2]")));
    assert_eq!(
        judged(|oracle| {
            let one = write(oracle, 0, Some(Outcome::Unknown));
            read(oracle, one);
            read(oracle, one);
        }),
        None
    );
}

#[test]
fn what_was_read_once_stays() {
    let flickers = |oracle: &Oracle| {
        write(oracle, 0, Some(Outcome::Unknown));
        read(oracle, Version::FIRST);
        read(oracle, Version(1));
    };
    assert!(judged(flickers).is_some());
}

#[test]
fn a_view_has_what_came_before_and_nothing_else() {
    let right = |oracle: &Oracle| {
        let before = write(oracle, 0, Some(Outcome::Done));
        snapshot(oracle, 1);
        let after = write(oracle, 1, Some(Outcome::Done));
        view(oracle, before);
        read(oracle, after);
    };
    assert_eq!(judged(right), None);
    let too_new = |oracle: &Oracle| {
        write(oracle, 0, Some(Outcome::Done));
        snapshot(oracle, 1);
        view(oracle, write(oracle, 1, None));
    };
    assert!(judged(too_new).is_some_and(|complaint| complaint.contains("snapshot 1 after 1 changes")));
}

#[test]
fn a_straddler_counts_as_before_even_when_it_lands_later() {
    let ignored = |oracle: &Oracle| {
        let id = oracle.submit(Kind::Write, ALL, false);
        oracle.admitted(id, 0);
        snapshot(oracle, 1);
        view(oracle, Version::FIRST);
        oracle.finished(id, Outcome::Done);
        oracle.quiesced(&bytes_of(Version(id.0)));
    };
    assert!(judged(ignored).is_some_and(|complaint| complaint.contains("in hindsight")));
}

#[test]
fn epochs_must_be_true_to_what_clients_saw() {
    let late = |oracle: &Oracle| {
        snapshot(oracle, 1);
        write(oracle, 0, None);
    };
    assert!(judged(late).is_some());
    let early = |oracle: &Oracle| {
        write(oracle, 1, Some(Outcome::Done));
        snapshot(oracle, 1);
    };
    assert!(judged(early).is_some());
    let unannounced = |oracle: &Oracle| {
        let id = oracle.submit(Kind::Write, ALL, false);
        oracle.finished(id, Outcome::Done);
    };
    assert!(judged(unannounced).is_some());
}

#[test]
fn after_a_crash_everything_before_it_is_older() {
    let story = |oracle: &Oracle| {
        let lost = write(oracle, 5, None);
        oracle.crashed();
        oracle.recovered(&[], false, false, |_| false, |_| false);
        snapshot(oracle, 5);
        view(oracle, lost);
        write(oracle, 5, Some(Outcome::Done));
        view(oracle, lost);
    };
    assert_eq!(judged(story), None);
    let gone = |oracle: &Oracle| {
        snapshot(oracle, 1);
        oracle.crashed();
        oracle.recovered(&[], false, false, |_| false, |_| false);
    };
    assert!(judged(gone).is_some_and(|complaint| complaint.contains("lost")));
}

#[test]
fn released_ranges_are_not_served() {
    let served = |oracle: &Oracle| {
        snapshot(oracle, 1);
        oracle.release_begins(1, &[ALL]);
        view(oracle, Version::FIRST);
        oracle.released(1, &[ALL]);
        view(oracle, Version::FIRST);
    };
    assert!(judged(served).is_some_and(|complaint| complaint.contains("after it was released")));
}

#[test]
fn an_answer_from_before_a_loss_of_power_is_judged_by_what_was_there_then() {
    let late = |oracle: &Oracle, sees_the_lost: bool| {
        let lost = write(oracle, 0, Some(Outcome::Done));
        let token = oracle.read_begins(ALL);
        oracle.crashed();
        oracle.lost_power();
        oracle.recovered(&[], true, false, |_| false, |_| false);
        let new = oracle.submit(Kind::Write, ALL, true);
        oracle.admitted(new, 0);
        oracle.finished(new, Outcome::Done);
        let held = if sees_the_lost { lost } else { Version::FIRST };
        oracle.read_ends(&token, &bytes_of(held), "late");
    };
    assert_eq!(judged(move |oracle| late(oracle, true)), None);
    assert!(judged(move |oracle| late(oracle, false)).is_some_and(|complaint| complaint.contains("late")));
}
