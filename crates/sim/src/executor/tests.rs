use super::*;

fn interleaved(seed: u64) -> (Vec<u32>, u64) {
    let executor = Executor::new(seed, Chaos::default());
    let order = Rc::new(RefCell::new(Vec::new()));
    for task in 0..4 {
        let order = Rc::clone(&order);
        spawn(Process::WORLD, format!("task {task}"), true, async move {
            for step in 0..4 {
                interleave(step).await;
                order.borrow_mut().push(task * 10 + step);
            }
        });
    }
    assert_eq!(executor.run(10_000).expect("no task is stuck"), Ran::Finished);
    (order.take(), executor.trace())
}

#[test]
fn a_seed_is_a_schedule() {
    assert_eq!(interleaved(3), interleaved(3));
    let orders: std::collections::BTreeSet<_> = (0..50).map(|seed| interleaved(seed).0).collect();
    assert!(orders.len() > 45, "{} different orders of 50", orders.len());
}

#[test]
fn a_deadlock_names_who_waits() {
    let executor = Executor::new(1, Chaos::default());
    spawn(Process::WORLD, "the one that waits".into(), true, async {
        note("something that never comes", 7, 1);
        std::future::pending::<()>().await;
    });
    let stuck = executor.run(1000).expect_err("it can never finish");
    assert!(matches!(&stuck, Stuck::Deadlock(waiting) if waiting.len() == 1));
    assert!(stuck.to_string().contains("the one that waits: something that never comes 7+1"), "{stuck}");
}

#[test]
fn a_stalled_task_holds_nobody_up() {
    let executor = Executor::new(1, Chaos::default());
    spawn(Process::WORLD, "stalls".into(), true, async {
        cut_short(
            3,
            true,
            std::future::poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            }),
        )
        .await;
    });
    spawn(Process::WORLD, "goes on".into(), true, sleep(5_000_000));
    assert_eq!(executor.run(1000).expect("not stuck"), Ran::Finished);
    assert!(now_ns() > 5_000_000);
}

#[test]
fn the_dead_are_not_polled_and_do_not_panic() {
    let quiet = crate::quiet::Quiet::begin();
    let executor = Executor::new(1, Chaos::default());
    let process = Process::start();
    process.plan_crash(Some(CrashPlan { at: Crash::Point, number: 3 }));
    let passed = Rc::new(Cell::new(0));
    let theirs = Rc::clone(&passed);
    spawn(process, "dies".into(), true, async move {
        loop {
            let dead = moment(process, Crash::Point);
            theirs.set(theirs.get() + 1);
            assert!(!dead, "the rest of the last poll may do anything");
            yield_once().await;
        }
    });
    assert_eq!(executor.run(1000).expect("its death is no failure"), Ran::Killed(process));
    assert_eq!(passed.get(), 3);
    executor.reap(process);
    assert_eq!(executor.run(1000).expect("nothing is left"), Ran::Finished);
    drop(quiet);
}

#[test]
fn a_panic_is_a_result() {
    let quiet = crate::quiet::Quiet::begin();
    let executor = Executor::new(1, Chaos::default());
    spawn(Process::WORLD, "careless".into(), true, async { panic!("a broken invariant") });
    let stuck = executor.run(10).expect_err("it panicked");
    drop(quiet);
    assert!(
        stuck.to_string().contains("a broken invariant (") && stuck.to_string().contains("executor/tests.rs:"),
        "{stuck}"
    );
}
