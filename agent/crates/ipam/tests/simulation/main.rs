//! Many peers in one virtual world: messages are lost, repeated and reordered, the mesh falls apart and heals,
//! machines lose their power between any two outputs, disks are wiped. Whatever happens, no address has two
//! holders; and when it stops happening, everybody agrees and everybody is served.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test says what it expected")]

mod invariants;
mod transition;
mod world;

mod first_split;
mod growth;
mod removal;
