//! Making a failing schedule smaller: fewer clients, fewer operations, fewer deaths, while it still fails.
//!
//! Taking something out changes who runs when, so each attempt tries a few interleavings of what is left.

use tzero_engine::Planted;

use crate::plan::{OpId, Plan};
use crate::random::mix;
use crate::schedule::{Verdict, run};

/// Interleavings tried for each smaller plan.
const TRIES: u64 = 12;

/// A smaller plan that fails, and how. The plan itself if nothing can be taken out.
pub fn shrink(plan: &Plan, planted: Option<Planted>, progress: &dyn Fn(&Plan)) -> (Plan, Verdict) {
    let mut best = (plan.clone(), run(plan, planted));
    if best.1.failure.is_none() {
        return best;
    }
    while let Some(smaller) = smaller(&best.0, planted) {
        best = smaller;
        progress(&best.0);
    }
    best
}

fn smaller(plan: &Plan, planted: Option<Planted>) -> Option<(Plan, Verdict)> {
    for end in 0..plan.ends.len() {
        let mut without = plan.clone();
        without.ends.remove(end);
        without.power_loss.remove(end);
        if let Some(verdict) = fails(&mut without, planted) {
            return Some((without, verdict));
        }
    }
    for actor in 0..plan.actors.len() {
        let mut without = plan.clone();
        without.actors.remove(actor);
        if let Some(verdict) = fails(&mut without, planted) {
            return Some((without, verdict));
        }
    }
    let all: Vec<OpId> = plan.actors.iter().flat_map(|actor| actor.ops.iter().map(|(id, _)| *id)).collect();
    let mut stretch = all.len() / 2;
    while stretch > 0 {
        for gone in all.chunks(stretch) {
            let mut without = plan.clone();
            without.retain(|id| !gone.contains(&id));
            if let Some(verdict) = fails(&mut without, planted) {
                return Some((without, verdict));
            }
        }
        stretch /= 2;
    }
    None
}

fn fails(plan: &mut Plan, planted: Option<Planted>) -> Option<Verdict> {
    let first = plan.run_seed;
    for attempt in 0..TRIES {
        plan.run_seed = if attempt == 0 { first } else { mix(first ^ attempt) };
        let verdict = run(plan, planted);
        if verdict.failure.is_some() {
            return Some(verdict);
        }
    }
    None
}
