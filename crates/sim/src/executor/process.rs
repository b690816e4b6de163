//! Processes that can be killed, and the moments at which they are.
//!
//! A [`moment`] is counted at each place where a kill makes a difference to what outlives the process: before and after
//! every mapped store, when a disk request is submitted, when it has completed, at every named point, and at every poll.
//! A [`CrashPlan`] names one such moment by kind and number.

use std::collections::VecDeque;

use super::{current, draw};

/// Something that is killed as a whole: one incarnation of the daemon, or a mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(u32);

impl Process {
    /// The world outside: clients, operators. Never killed.
    pub const WORLD: Self = Self(0);

    /// A new process.
    pub fn start() -> Self {
        current().processes.borrow_mut().start()
    }
}

/// A kind of moment at which a kill can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Crash {
    /// Before or after a mapped store.
    Store,
    /// A disk request is being submitted: odd moments before it is, even ones after.
    Submit,
    /// A disk request has just completed, but its submitter does not know.
    Complete,
    /// A named point of the engine.
    Point,
}

impl Crash {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Store, Self::Submit, Self::Complete, Self::Point];
}

/// When a process is to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPlan {
    /// At a moment of this kind,
    pub at: Crash,
    /// the one with this number, counted from 1 per process.
    pub number: u64,
}

#[derive(Default)]
struct State {
    dead: bool,
    plan: Option<CrashPlan>,
    counts: [u64; Crash::ALL.len()],
}

#[derive(Default)]
pub(super) struct Processes {
    /// Of process 1, 2, …
    states: Vec<State>,
    /// Killed and not buried yet, the first first.
    killed: VecDeque<Process>,
}

impl Processes {
    fn start(&mut self) -> Process {
        self.states.push(State::default());
        Process(self.states.len() as u32)
    }

    fn state(&mut self, process: Process) -> Option<&mut State> {
        self.states.get_mut((process.0 as usize).checked_sub(1)?)
    }

    pub(super) fn is_dead(&self, process: Process) -> bool {
        (process.0 as usize).checked_sub(1).is_some_and(|at| self.states[at].dead)
    }

    pub(super) fn take_killed(&mut self) -> Option<Process> {
        self.killed.pop_front()
    }

    fn kill(&mut self, process: Process) {
        if let Some(state) = self.state(process)
            && !std::mem::replace(&mut state.dead, true)
        {
            self.killed.push_back(process);
        }
    }
}

impl Process {
    /// Plans the death of the process.
    pub fn plan_crash(self, plan: Option<CrashPlan>) {
        if let Some(state) = current().processes.borrow_mut().state(self) {
            state.plan = plan;
        }
    }
}

/// Kills the process, here and now.
pub fn die(process: Process) {
    current().processes.borrow_mut().kill(process);
}

/// Whether the process was killed: nothing that it still does may have an effect outside its memory.
pub fn is_dead(process: Process) -> bool {
    current().processes.borrow().is_dead(process)
}

/// A moment of `process` passes; true if the process is dead now (killed by this moment, or before).
pub fn moment(process: Process, kind: Crash) -> bool {
    let inner = current();
    let mut processes = inner.processes.borrow_mut();
    let Some(state) = processes.state(process) else { return false };
    if state.dead {
        return true;
    }
    state.counts[kind as usize] += 1;
    let dies = state.plan.is_some_and(|plan| plan.at == kind && plan.number == state.counts[kind as usize]);
    if dies {
        processes.kill(process);
    }
    dies
}

/// How many moments of `kind` have passed in `process`.
pub fn moments(process: Process, kind: Crash) -> u64 {
    current().processes.borrow_mut().state(process).map_or(0, |state| state.counts[kind as usize])
}

impl CrashPlan {
    /// A moment of a random kind, numbered up to about `reach`.
    pub fn random(reach: u64) -> Self {
        draw(|random| Self { at: *random.pick(&Crash::ALL), number: random.between(1, reach.max(1)) })
    }
}
