//! The simulator as a test: schedules pass, are repeatable, and every planted fault is caught.

use tzero_engine::Planted;
use tzero_sim::plan::Plan;
use tzero_sim::runner::{Kind, every_prefix, run_many, small, sweep};
use tzero_sim::schedule;

/// Most schedules that a planted fault may survive.
const MOST_SCHEDULES: u64 = 10_000;

fn silent(_: u64) {}

#[test]
fn schedules_pass() {
    let total = run_many(1, 300, 2, 1, Kind::default(), &silent);
    assert_eq!(total.failures, [], "replay with: cargo run --release -p tzero-sim -- --replay SEED");
    assert!(total.ops >= 200 * total.schedules, "{} operations", total.ops);
}

#[test]
fn a_seed_is_a_schedule() {
    for seed in 0..12 {
        let (first, second) = (Kind::default().run(seed), Kind::default().run(seed));
        assert_eq!((first.trace, first.steps, first.ops), (second.trace, second.steps, second.ops), "seed {seed}");
        assert_eq!(first.races, second.races, "seed {seed}");
    }
    assert_ne!(Kind::default().run(1).trace, Kind::default().run(2).trace);
}

#[test]
fn another_interleaving_of_the_same_plan_is_another_schedule() {
    let mut plan = Plan::new(5);
    let first = schedule::run(&plan, None);
    plan.run_seed += 1;
    assert_ne!(first.trace, schedule::run(&plan, None).trace);
}

#[test]
fn kills_at_many_moments_of_one_schedule() {
    let (runs, failed) = sweep(2, 2, 2, None);
    assert!(failed.is_none(), "{failed:?}");
    assert!(runs > 500, "{runs} kills");
}

/// Every prefix of what was not durable, where the power was lost in schedules that are small.
#[test]
fn every_prefix_of_what_was_not_flushed() {
    let mut runs = 0;
    for seed in 0..8 {
        let (plan, kill) = small(seed);
        let (prefixes, failed) = every_prefix(&plan, kill, 150, None);
        assert!(failed.is_none(), "seed {seed}, {kill:?}: {failed:?}");
        runs += prefixes;
    }
    assert!(runs > 500, "{runs} prefixes");
}

// Of the run 1, unless another one meets the fault much sooner.
macro_rules! caught {
    ($($test:ident: $fault:ident $(in $run:literal)?,)*) => {
        $(#[test]
        fn $test() {
            let run = *[1 $(, $run)?].last().expect("there is one");
            let kind = Kind::of(Some(Planted::$fault));
            let total = run_many(run, MOST_SCHEDULES, 2, 1, kind, &silent);
            let Some((seed, _)) = total.failures.first() else {
                panic!("{} schedules did not notice it", total.schedules);
            };
            // It is this fault that was noticed.
            assert_eq!(Kind { planted: None, ..kind }.run(*seed).failure, None, "{seed} fails without it, too");
        })*

        #[test]
        fn every_fault_that_can_be_planted_has_its_test() {
            assert_eq!([$(Planted::$fault),*].len(), Planted::ALL.len());
        }
    };
}

caught! {
    map_looked_up_first_is_caught: MapLookedUpFirst,
    last_original_wins_is_caught: LastOriginalWins,
    bit_cleared_before_entry_is_caught: BitClearedBeforeEntry,
    bits_tested_before_registering_is_caught: BitsTestedBeforeRegistering,
    arm_then_stale_clear_is_caught: ArmThenStaleClear,
    slot_reused_while_needed_is_caught: SlotReusedWhileNeeded,
    released_served_from_base_is_caught: ReleasedServedFromBase,
    release_persisted_after_clear_is_caught: ReleasePersistedAfterClear,
    ended_takes_later_entry_is_caught: EndedTakesLaterEntry,
    save_ignores_straddlers_is_caught: SaveIgnoresStraddlers,
    view_ignores_straddlers_is_caught: ViewIgnoresStraddlers,
    second_writer_does_not_wait_is_caught: SecondWriterDoesNotWait,
    payload_after_entry_is_caught: PayloadAfterEntry,
    failed_save_ignored_is_caught: FailedSaveIgnored,
    trim_not_held_back_is_caught: TrimNotHeldBack,
    zeroes_not_saved_is_caught: ZeroesNotSaved,
    view_without_last_check_is_caught: ViewWithoutLastCheck,
    last_grain_forgotten_is_caught: LastGrainForgotten,
    bad_original_as_zeroes_is_caught: BadOriginalAsZeroes,
    lost_mark_forgotten_is_caught: LostMarkForgotten,
    scan_takes_newer_is_caught: ScanTakesNewer,
    room_made_not_used_is_caught: RoomMadeNotUsed,
    hung_slot_reused_is_caught: HungSlotReused,
    ahead_breaks_is_caught: AheadBreaks,
    marker_too_early_is_caught: MarkerTooEarly,
    deleted_breaks_is_caught: DeletedBreaks,
    overlay_not_caught_up_is_caught: OverlayNotCaughtUp,
    retained_makes_room_is_caught: RetainedMakesRoom,
    unit_ignored_is_caught: UnitIgnored,
    clean_stop_before_sync_is_caught: CleanStopBeforeSync,
    lost_forgotten_is_caught: LostForgotten,
    commit_before_flush_is_caught: CommitBeforeFlush,
    payload_not_durable_is_caught: PayloadNotDurable,
    torn_payload_believed_is_caught: TornPayloadBelieved,
    confirmed_before_flush_is_caught: ConfirmedBeforeFlush,
    mark_not_durable_is_caught: MarkNotDurable,
    release_not_durable_is_caught: ReleaseNotDurable,
    deletion_not_durable_is_caught: DeletionNotDurable,
    epoch_reused_is_caught: EpochReused,
    grown_for_all_is_caught: GrownForAll,
    short_original_freed_is_caught: ShortOriginalFreed,
    save_cut_twice_is_caught: SaveCutTwice,
    short_end_not_released_is_caught: ShortEndNotReleased in 6,
    size_recorded_first_is_caught: SizeRecordedFirst,
    damaged_records_ignored_is_caught: DamagedRecordsIgnored,
    doubt_forgotten_is_caught: DoubtForgotten,
    end_of_broken_is_caught: EndOfBroken,
    failure_kept_is_caught: FailureKept,
    failed_clear_forgotten_is_caught: FailedClearForgotten,
    found_not_durable_is_caught: FoundNotDurable,
    increment_admitted_anew_is_caught: IncrementAdmittedAnew,
    landed_too_early_is_caught: LandedTooEarly,
    mark_revives_is_caught: MarkRevives in 2,
}
