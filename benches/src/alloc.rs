//! A global allocator that can count: how often and how much a process allocates while the counting is on.
//!
//! It is ours because the published counting allocators always pay for their atomics, which would show in the CPU
//! time per call of the stacks that allocate most; here a call with counting off costs one relaxed load.
//! It does NOT attribute allocations and does NOT count what is freed.
#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait; every method only forwards to System")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// The allocator; install it with `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting {
    on: AtomicBool,
    allocations: AtomicU64,
    bytes: AtomicU64,
}

/// What was allocated while the counting was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Calls of `alloc`, `alloc_zeroed` and `realloc`.
    pub allocations: u64,
    /// Bytes asked for; a `realloc` adds what it grew by.
    pub bytes: u64,
}

impl Counting {
    /// An allocator that is not counting yet.
    pub const fn new() -> Self {
        Self { on: AtomicBool::new(false), allocations: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Starts to count from zero.
    pub fn start(&self) {
        self.allocations.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
        self.on.store(true, Relaxed);
    }

    /// Stops to count and says what was counted.
    pub fn stop(&self) -> Count {
        self.on.store(false, Relaxed);
        Count { allocations: self.allocations.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    fn count(&self, bytes: usize) {
        if self.on.load(Relaxed) {
            self.allocations.fetch_add(1, Relaxed);
            self.bytes.fetch_add(bytes as u64, Relaxed);
        }
    }
}

impl Default for Counting {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every method forwards its arguments unchanged to `System` and returns what that returned; the counters are
// plain atomics that never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.count(new_size.saturating_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}
