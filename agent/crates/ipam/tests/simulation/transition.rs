//! What can happen.

use std::time::Duration;

use proptest::prelude::*;
use weave_ipam::{Mode, Request};
use weave_proto::local::cni::AttachmentKey;

use crate::world::{Weather, World};

/// One thing that happens. Machines are given by number, modulo how many there are.
#[derive(Debug, Clone)]
pub(crate) enum Transition {
    /// Time passes, in milliseconds.
    Pass(u64),
    /// A pod is born.
    Allocate(usize),
    /// A pod dies: the machine's oldest.
    Free(usize),
    /// All pods of a machine die but the oldest.
    KeepOldest(usize),
    /// The mesh falls apart: bit i of the number says on which side machine i is.
    Split(u8),
    /// The mesh is whole.
    Join,
    /// A machine loses its power.
    Crash(usize),
    /// A machine loses its power after some more outputs.
    CrashAfter(usize, usize),
    /// A machine starts, if it is down.
    Start(usize),
    /// A machine is replaced by one with an empty disk.
    Replace(usize),
    /// A machine is added.
    Add,
    /// One machine's operator has all machines removed that are gone for good.
    RemoveGone(usize),
    /// The first machine's operator has a machine removed that is out of its reach, be it alive.
    RemoveUnseen(usize),
    /// The network behaves differently.
    Weather(Weather),
}

impl Transition {
    /// Makes it happen; `mode` is that of machines which come new.
    pub(crate) fn happen(self, world: &mut World, mode: &Mode) {
        let count = world.machines.len();
        match self {
            Self::Pass(millis) => world.pass(Duration::from_millis(millis)),
            Self::Allocate(index) => {
                world.allocate(index % count);
            }
            Self::Free(index) => {
                if let Some(key) = pods(world, index % count).into_iter().next() {
                    world.ask(index % count, Request::Free { key, generation: None });
                }
            }
            Self::KeepOldest(index) => {
                for key in pods(world, index % count).into_iter().skip(1) {
                    world.ask(index % count, Request::Free { key, generation: None });
                }
            }
            Self::Split(mask) => {
                for (index, machine) in world.machines.iter_mut().enumerate() {
                    machine.side = (mask >> (index % 8)) & 1;
                }
            }
            Self::Join => world.machines.iter_mut().for_each(|machine| machine.side = 0),
            Self::Crash(index) => world.crash(index % count),
            Self::CrashAfter(index, outputs) => world.crash_after(index % count, outputs),
            Self::Start(index) => world.start(index % count),
            Self::Replace(index) => {
                world.wipe(index % count);
                let side = world.machines[index % count].side;
                let new = world.add(mode.clone());
                world.machines[new].side = side;
                world.start(new);
            }
            Self::Add => {
                let new = world.add(mode.clone());
                world.start(new);
            }
            Self::RemoveGone(index) => remove_gone(world, index % count),
            Self::RemoveUnseen(index) => {
                let peer = world.machines[index % count].name;
                world.ask(0, Request::RemovePeer { peer, force: false });
            }
            Self::Weather(weather) => world.weather = weather,
        }
    }
}

fn pods(world: &World, index: usize) -> Vec<AttachmentKey> {
    world.machines[index].promised.keys().cloned().collect()
}

fn remove_gone(world: &mut World, index: usize) {
    let gone: Vec<_> =
        world.machines.iter().filter(|machine| machine.gone).map(|machine| machine.name).collect();
    for peer in gone {
        world.ask(index, Request::RemovePeer { peer, force: false });
    }
}

/// What happens everywhere: pods come and go, machines crash and start, the mesh falls apart and heals.
pub(crate) fn daily_life() -> BoxedStrategy<Transition> {
    prop_oneof![
        6 => (1_u64..4000).prop_map(Transition::Pass),
        5 => any::<usize>().prop_map(Transition::Allocate),
        2 => any::<usize>().prop_map(Transition::Free),
        1 => any::<usize>().prop_map(Transition::KeepOldest),
        2 => any::<u8>().prop_map(Transition::Split),
        2 => Just(Transition::Join),
        2 => any::<usize>().prop_map(Transition::Crash),
        3 => (any::<usize>(), 0_usize..8).prop_map(|(index, outputs)| Transition::CrashAfter(index, outputs)),
        5 => any::<usize>().prop_map(Transition::Start),
        1 => Just(Transition::Weather(Weather::STORM)),
        1 => Just(Transition::Weather(Weather::CALM)),
    ]
    .boxed()
}

/// What makes candidates change their minds: short glimpses of different parts of the mesh, and long silences.
pub(crate) fn glimpses() -> BoxedStrategy<Transition> {
    prop_oneof![
        6 => (1_u64..900).prop_map(Transition::Pass),
        2 => (5500_u64..7000).prop_map(Transition::Pass),
        6 => any::<u8>().prop_map(Transition::Split),
        1 => Just(Transition::Join),
        1 => any::<usize>().prop_map(Transition::Crash),
        1 => (any::<usize>(), 0_usize..4).prop_map(|(index, outputs)| Transition::CrashAfter(index, outputs)),
        4 => any::<usize>().prop_map(Transition::Start),
        1 => Just(Transition::Weather(Weather::BLIZZARD)),
        1 => Just(Transition::Weather(Weather::STORM)),
    ]
    .boxed()
}

/// Machines that are lost, too, before there is a universe.
pub(crate) fn with_replacements() -> BoxedStrategy<Transition> {
    prop_oneof![9 => glimpses(), 3 => daily_life(), 1 => any::<usize>().prop_map(Transition::Replace)].boxed()
}

/// Machines that come and go for good.
pub(crate) fn with_removals() -> BoxedStrategy<Transition> {
    prop_oneof![
        16 => daily_life(),
        1 => any::<usize>().prop_map(Transition::Replace),
        1 => Just(Transition::Add),
        3 => any::<usize>().prop_map(Transition::RemoveGone),
    ]
    .boxed()
}

/// An operator who takes silence for death.
pub(crate) fn with_rash_removals() -> BoxedStrategy<Transition> {
    prop_oneof![8 => daily_life(), 1 => any::<usize>().prop_map(Transition::RemoveUnseen)].boxed()
}

/// As many cases as fit into a developer's patience; `PROPTEST_CASES` asks for more.
pub(crate) fn cases(few: u32) -> ProptestConfig {
    let standard = ProptestConfig::default();
    let cases = if standard.cases == 256 { few } else { standard.cases };
    ProptestConfig { cases, max_shrink_iters: 2000, ..standard }
}
