//! Counts what each thread allocates, and shows that the packet threads do not.

#![expect(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::*;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is left to the system's allocator; counting touches a plain thread-local number that needs neither
// an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the promises that this function asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, len) }
    }
}

/// How often this thread has allocated.
pub(in super::super) fn of_this_thread() -> u64 {
    COUNT.with(Cell::get)
}

#[test]
fn nothing_is_allocated_for_a_packet() {
    let Some(lab) = Lab::new("alloc") else { return };
    let (a, b) = two_ends(&lab);
    let allocated = || [&a, &b].map(|end| end.engine.shared.allocated.load(Ordering::Relaxed));
    // Both directions have confirmed the first epoch by then.
    bulk(&lab, 1 << 20);
    let before = allocated();
    bulk(&lab, 8 << 20);
    let after = allocated();
    let records = b.engine.counters().records_opened;
    assert!(records > 5000, "{records}");
    for (before, after) in before.iter().zip(after) {
        assert!(*before > 0, "it is counted at all");
        assert!(after - before < 10, "{} allocations for {records} records", after - before);
    }
}
