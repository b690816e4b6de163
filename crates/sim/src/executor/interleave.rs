//! Giving way to others: the places where tasks interleave.

use std::future::{Future, poll_fn};
use std::task::Poll;

use super::{after, current, draw, note, release_current};

/// How wild a run is. Each schedule draws its own, so that calm and wild regimes are both explored.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// The clock moves on by 1 to this many nanoseconds a step.
    pub tick_ns: u64,
    /// How often a ready task goes before an event that is due.
    pub task_percent: u32,
    /// How often [`interleave`] gives way at all.
    pub yield_percent: u32,
    /// How often it then sleeps instead of going to the end of the queue.
    pub sleep_percent: u32,
    /// The longest such sleep.
    pub sleep_ns: u64,
    /// Places (see [`interleave`]) at which tasks nearly always sleep.
    pub focus: Vec<u32>,
}

impl Default for Chaos {
    fn default() -> Self {
        let (tick_ns, sleep_ns) = (1_000, 100_000);
        Self { tick_ns, task_percent: 60, yield_percent: 40, sleep_percent: 20, sleep_ns, focus: Vec::new() }
    }
}

/// Lets others go first.
pub async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Sleeps in virtual time.
pub async fn sleep(ns: u64) {
    let mut started = false;
    let done = std::rc::Rc::new(std::cell::Cell::new(false));
    poll_fn(|cx| {
        if done.get() {
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut started, true) {
            let (waker, done) = (cx.waker().clone(), std::rc::Rc::clone(&done));
            after(ns, move || {
                done.set(true);
                waker.wake();
            });
        }
        Poll::Pending
    })
    .await;
}

/// A place where others may go first: at random it does nothing, gives way once or more, or sleeps.
pub async fn interleave(place: u32) {
    let (give_way, ns) = {
        let inner = current();
        let chaos = inner.chaos.borrow();
        let focused = chaos.focus.contains(&place);
        draw(|random| {
            let give_way = random.chance(if focused { 90 } else { chaos.yield_percent });
            let sleeps = give_way && random.chance(if focused { 70 } else { chaos.sleep_percent });
            (give_way, sleeps.then(|| random.magnitude(chaos.sleep_ns)))
        })
    };
    note("point", u64::from(place), 0);
    match (give_way, ns) {
        (false, _) => {}
        (true, None) => {
            let times = draw(|random| random.magnitude(4));
            for _ in 0..times {
                yield_once().await;
            }
        }
        (true, Some(ns)) => sleep(ns).await,
    }
}

/// Polls `inner` up to `polls` times. Then a client goes away: it is dropped, and the result is `None`. Or, with `for_ever`, the client
/// stalls: it is never polled again and holds on to whatever it holds; the task is released from having to finish.
pub async fn cut_short<F: Future>(polls: u64, for_ever: bool, inner: F) -> Option<F::Output> {
    let mut left = polls;
    let mut inner = Box::pin(inner);
    let cut = poll_fn(|cx| {
        if left > 0 {
            left -= 1;
            if let Poll::Ready(value) = inner.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            if left > 0 {
                return Poll::Pending;
            }
        }
        Poll::Ready(None)
    })
    .await;
    if cut.is_none() && for_ever {
        note("stalled for ever", 0, 0);
        release_current();
        std::future::pending::<()>().await;
    }
    cut
}
