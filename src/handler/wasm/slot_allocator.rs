//! Slot allocator for the linear memories and fiber stacks of small guests: one large mapping of slots for each.
//!
//! The kernel bounds the mappings of a process (`vm.max_map_count`, 65,530 by default). A memory or stack that wasmtime maps
//! itself takes one or more; a slot takes none: it is a part of a mapping that is readable and writable from end to end,
//! and the pages behind its memory are closed by guards, which are marks in the page tables (`MADV_GUARD_INSTALL`,
//! Linux 6.13) and no mappings.
//!
//! Why not wasmtime's pooling allocator: each of its slots takes two mappings as soon as a memory may grow, and its stacks two
//! more, so a process ends at 16,300 Rust instances with default kernel settings, and dropping instances gives no mapping
//! back. With these slots the gateway has held 100,000 live instances in 89 mappings. On-demand allocation reads
//! [`MemoryCreator`] and [`StackCreator`]; the pooling allocator ignores both.
//!
//! A guest is confined to its memory by the code that wasmtime generates: it compares every address with the memory's
//! length, because the engine over these memories declares neither reserved nor guarded address space. Guards are the
//! second line of defence. One follows every memory's length, up to the next border of [`PAGE_TABLE_BYTES`], so that it needs no
//! page table of its own; [`MARGIN_BYTES`] of inaccessible address space lie before and after all slots.
//!
//! Invariants, which the unsafe code relies on:
//! - a slot has at most one [`Slot`], and everything that points into it is owned by what owns that;
//! - a slot that is free is zero and has no guards: both are restored before it is free, and if they cannot be, the
//!   slot is never used again;
//! - the mapping lives as long as the last slot.
#![expect(
    unsafe_code,
    reason = "memory that wasmtime does not map itself is given to it by unsafe traits, and mapped by unsafe calls"
)]

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType, StackCreator, StackMemory};

#[cfg(test)]
mod tests;

/// Address space that nothing can be reached in, before and after the slots: twice what a 32-bit address with a
/// 32-bit offset spans from its slot, so that no stray one meets the gateway's own memory.
const MARGIN_BYTES: usize = 8 << 30;

/// What one page table covers, on machines with pages of 4 KiB. A guard ends where the page table ends that its
/// beginning needs anyway.
const PAGE_TABLE_BYTES: usize = 2 << 20;

/// The largest page of the machines that there are; sizes and borders of slots are multiples of it. A page of linear
/// memory is as large.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Why memory cannot be held in slots here.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotAllocatorError {
    /// The system gives not that much address space: a limit of the process (`ulimit -v`), strict accounting
    /// (`vm.overcommit_memory` 2), or a small processor.
    #[error("{bytes} bytes of address space were refused: {source}")]
    Refused {
        /// How many.
        bytes: usize,
        /// The cause.
        source: io::Error,
    },
    /// The kernel does not know guards.
    #[error("the kernel has no guards within a mapping, as Linux has from 6.13 on: {0}")]
    NoGuards(#[source] io::Error),
    /// The kernel takes the calls and does something else than Linux does.
    #[error("the kernel {0}")]
    Unfaithful(&'static str),
}

/// What `madvise` is asked; values of Linux's `asm-generic/mman-common.h`, of which the crates that know the call do not
/// know the guards.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
enum Advice {
    /// Give the pages back; they read as zero. Guards stay.
    DontNeed = 4,
    /// A huge page would make 2 MiB of the few pages that a small instance touches.
    NoHugePage = 15,
    /// Make the pages resident as if they were read. Fails where a read would.
    PopulateRead = 22,
    /// From now on an access to these pages is a fault; what they held is gone.
    GuardInstall = 102,
    /// The pages are accessible again, and zero.
    GuardRemove = 103,
}

/// One mapping, cut into slots of one size.
struct SlotAllocator {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    /// The first slot; at least [`MARGIN_BYTES`] into the mapping.
    base: NonNull<u8>,
    slot_bytes: usize,
    slots: usize,
    free: Mutex<Free>,
    /// Slots that could not be cleared, and are not used again.
    lost: AtomicUsize,
}

/// Which slots are free: those that were given back, and all from `untouched` on. The ones given back are used first,
/// since their page tables are there already.
struct Free {
    given_back: Vec<usize>,
    untouched: usize,
}

// SAFETY: its addresses do not change. Nothing is read or written through a `SlotAllocator`; the owner of a slot
// does that, of its own slot alone. What changes is behind a lock.
unsafe impl Send for SlotAllocator {}
// SAFETY: as above.
unsafe impl Sync for SlotAllocator {}

impl fmt::Debug for SlotAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("slots", &self.slots).field("slot_bytes", &self.slot_bytes).finish_non_exhaustive()
    }
}

impl SlotAllocator {
    /// Reserves the address space. No page of it is resident until it is used.
    fn map(slots: usize, slot_bytes: usize) -> Result<Arc<Self>, SlotAllocatorError> {
        let refused = |source: rustix::io::Errno, bytes| SlotAllocatorError::Refused { bytes, source: source.into() };
        let around = 2 * MARGIN_BYTES + PAGE_TABLE_BYTES;
        let Some((inner, bytes)) = slots
            .checked_mul(slot_bytes)
            .and_then(|inner| Some((inner, inner.checked_add(around)?)))
            .filter(|_| slot_bytes > 0 && slot_bytes.is_multiple_of(PAGE_BYTES_MAX))
        else {
            return Err(refused(rustix::io::Errno::INVAL, usize::MAX));
        };
        // SAFETY: a new mapping where the kernel likes, which nobody else knows.
        let mapping = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::empty(), flags)
        };
        let mapping = mapping
            .and_then(|start| NonNull::new(start.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM))
            .map_err(|error| refused(error, bytes))?;
        // A slot begins where a page table does, so that it shares none with another.
        let before = MARGIN_BYTES + mapping.as_ptr().wrapping_add(MARGIN_BYTES).align_offset(PAGE_TABLE_BYTES);
        // SAFETY: the mapping has a margin and one page table's bytes more than the slots and what is behind them, so
        // this is an address within it.
        let base = unsafe { mapping.add(before) };
        // From here on dropping it unmaps it.
        let slab = Self {
            mapping,
            mapping_bytes: bytes,
            base,
            slot_bytes,
            slots,
            free: Mutex::new(Free { given_back: Vec::new(), untouched: 0 }),
            lost: AtomicUsize::new(0),
        };
        // SAFETY: the `inner` bytes from `base` on are in the mapping, in front of its second margin.
        unsafe { rustix::mm::mprotect(base.as_ptr().cast(), inner, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|error| refused(error, bytes))?;
        // SAFETY: the same bytes; how large their pages are changes nothing that they hold.
        match unsafe { advise(base.as_ptr(), inner, Advice::NoHugePage) } {
            // A kernel that was built without huge pages does not know the advice, and needs it not.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                Err(SlotAllocatorError::Refused { bytes, source: error })
            }
            _ => Ok(Arc::new(slab)),
        }
    }

    /// A free slot; `None` when all are taken.
    fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut free = self.free.lock();
        let index = free.given_back.pop().or_else(|| {
            let index = free.untouched;
            (index < self.slots).then(|| free.untouched = index + 1)?;
            Some(index)
        })?;
        Some(Slot { slab: Arc::clone(self), index })
    }

    /// Tries on one slot what everything here relies on.
    fn try_out(self: &Arc<Self>) -> Result<(), SlotAllocatorError> {
        let page = 0..PAGE_BYTES_MAX;
        let slot = self.take().ok_or(SlotAllocatorError::Unfaithful("gives no room for a single slot"))?;
        slot.advise(page.clone(), Advice::GuardInstall).map_err(SlotAllocatorError::NoGuards)?;
        if slot.advise(page.clone(), Advice::PopulateRead).is_ok() {
            return Err(SlotAllocatorError::Unfaithful("lets a guarded page be read"));
        }
        slot.advise(page.clone(), Advice::GuardRemove).map_err(SlotAllocatorError::NoGuards)?;
        if slot.advise(page, Advice::PopulateRead).is_err() {
            return Err(SlotAllocatorError::Unfaithful("does not open a page whose guard was removed"));
        }
        let index = slot.index;
        // SAFETY: the slot is this function's own, and its first page has just been read by the kernel.
        unsafe { slot.base().write_volatile(1) };
        drop(slot);
        let again = self.take().filter(|again| again.index == index);
        let slot = again.ok_or(SlotAllocatorError::Unfaithful("does not take memory back"))?;
        // SAFETY: as above; without its guards the whole slot is readable.
        if unsafe { slot.base().read_volatile() } != 0 {
            return Err(SlotAllocatorError::Unfaithful("does not zero memory that was given back"));
        }
        Ok(())
    }

    #[cfg(test)]
    fn taken(&self) -> usize {
        let free = self.free.lock();
        free.untouched - free.given_back.len()
    }
}

impl Drop for SlotAllocator {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` has mapped. No slot is left, since each holds the slab.
        if let Err(error) = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) } {
            tracing::error!(%error, "address space of guests could not be given back");
        }
    }
}

/// Asks the kernel to do something with pages.
///
/// # Safety
///
/// The pages belong to the caller, and nothing relies on what the advice changes in them.
unsafe fn advise(start: *mut u8, bytes: usize, advice: Advice) -> io::Result<()> {
    // SAFETY: the caller's.
    if unsafe { libc::madvise(start.cast(), bytes, advice as libc::c_int) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// One slot for one owner. Dropped, it is cleared and free.
#[derive(Debug)]
struct Slot {
    slab: Arc<SlotAllocator>,
    index: usize,
}

impl Slot {
    fn base(&self) -> *mut u8 {
        // SAFETY: `index` is below `slots`, so the slot's first byte is in the mapping.
        unsafe { self.slab.base.as_ptr().add(self.index * self.slab.slot_bytes) }
    }

    /// Asks the kernel to do something with a part of this slot.
    fn advise(&self, part: Range<usize>, advice: Advice) -> io::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        if part.end > self.slab.slot_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{part:?} is not within a slot")));
        }
        // SAFETY: the part is within the slot, which is the caller's alone. The advices take no access away that the
        // owner relies on: it guards and gives back only what no length that it has told includes.
        unsafe { advise(self.base().add(part.start), part.len(), advice) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let whole = 0..self.slab.slot_bytes;
        // Page tables that are not there are stepped over: this costs by what was used, not by what could be.
        let cleared =
            self.advise(whole.clone(), Advice::GuardRemove).and_then(|()| self.advise(whole, Advice::DontNeed));
        match cleared {
            Ok(()) => self.slab.free.lock().given_back.push(self.index),
            Err(error) => {
                let lost = self.slab.lost.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(%error, lost, "a slot of an instance could not be cleared and is lost");
            }
        }
    }
}

/// Gives engines their linear memories.
#[derive(Debug)]
pub(super) struct Memories {
    slab: Arc<SlotAllocator>,
    /// The longest memory of a slot; behind it there is always room for a guard.
    capacity: usize,
}

impl Memories {
    /// Room for so many memories of up to `capacity` bytes each.
    ///
    /// # Errors
    ///
    /// [`SlotAllocatorError`]: what this system lacks.
    pub(super) fn map(slots: usize, capacity: usize) -> Result<Self, SlotAllocatorError> {
        let slab = SlotAllocator::map(slots, capacity.next_multiple_of(PAGE_TABLE_BYTES) + PAGE_TABLE_BYTES)?;
        slab.try_out()?;
        Ok(Self { slab, capacity })
    }

    fn memory(&self, minimum: usize, maximum: Option<usize>) -> Result<Box<dyn LinearMemory>, String> {
        let Self { slab, capacity } = self;
        if maximum == Some(0) {
            return Ok(Box::new(NoMemory(Arc::clone(slab))));
        }
        if minimum > *capacity {
            return Err(format!("a memory of {minimum} bytes; a slot holds {capacity}"));
        }
        let slot = slab.take().ok_or_else(|| format!("all {} places for memories are taken", slab.slots))?;
        let mut memory = SlotMemory { slot, length: 0, guarded_to: 0, capacity: *capacity };
        memory.guard_from(minimum).map_err(|error| format!("cannot guard a memory: {error}"))?;
        memory.length = minimum;
        Ok(Box::new(memory))
    }
}

// SAFETY: each memory is a slot of its own, which is zero when it is given out, as long as wasmtime is told, and
// reached by nobody else until the memory is dropped.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        // An engine that counts on either would leave out the checks that keep a guest in its slot.
        if reserved_size_in_bytes.is_some_and(|reserved| reserved > 0) || guard_size_in_bytes > 0 {
            return Err(format!(
                "the engine expects {reserved_size_in_bytes:?} bytes reserved and {guard_size_in_bytes} guarded; \
                 these memories promise none"
            ));
        }
        self.memory(minimum, maximum)
    }
}

/// A linear memory that lies in a slot.
struct SlotMemory {
    slot: Slot,
    length: usize,
    /// Where the guard ends that begins at `length`.
    guarded_to: usize,
    capacity: usize,
}

impl SlotMemory {
    /// Guards what is behind this length, as far as it is not guarded yet.
    fn guard_from(&mut self, length: usize) -> io::Result<()> {
        let first = length.next_multiple_of(PAGE_BYTES_MAX);
        let end = (first + 1).next_multiple_of(PAGE_TABLE_BYTES);
        self.slot.advise(first.max(self.guarded_to)..end, Advice::GuardInstall)?;
        self.guarded_to = self.guarded_to.max(end);
        Ok(())
    }
}

// SAFETY: `byte_size` bytes from `as_ptr` on are accessible and never move; they are in the slot, which this owns.
unsafe impl LinearMemory for SlotMemory {
    fn byte_size(&self) -> usize {
        self.length
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        if new_size < self.length || new_size > self.capacity {
            wasmtime::bail!("from {} to {new_size} bytes; a slot holds {}", self.length, self.capacity);
        }
        // The new guard first: if the old one then cannot be opened, the memory is as it was, with more behind it.
        self.guard_from(new_size)?;
        let opened = self.length.next_multiple_of(PAGE_BYTES_MAX)..new_size.next_multiple_of(PAGE_BYTES_MAX);
        self.slot.advise(opened, Advice::GuardRemove)?;
        self.length = new_size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.slot.base()
    }
}

/// A memory that is empty for ever, as some compilers declare; it takes no slot. Its address is the space behind all
/// slots, where nothing is.
struct NoMemory(Arc<SlotAllocator>);

// SAFETY: of no bytes all are accessible, and the address never moves.
unsafe impl LinearMemory for NoMemory {
    fn byte_size(&self) -> usize {
        0
    }

    fn byte_capacity(&self) -> usize {
        0
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        wasmtime::bail!("to {new_size} bytes, of a memory that is empty for ever")
    }

    fn as_ptr(&self) -> *mut u8 {
        let SlotAllocator { base, slots, slot_bytes, .. } = &*self.0;
        // SAFETY: behind the slots there is a margin, so this is an address within the mapping.
        unsafe { base.as_ptr().add(slots * slot_bytes) }
    }
}

/// Gives engines the stacks that guests run on.
#[derive(Debug)]
pub(super) struct Stacks {
    slab: Arc<SlotAllocator>,
    guard_bytes: usize,
}

impl Stacks {
    /// Room for so many stacks of `stack_bytes` each, below each of which `guard_bytes` are guarded.
    ///
    /// # Errors
    ///
    /// [`SlotAllocatorError`]: what this system lacks.
    pub(super) fn map(slots: usize, stack_bytes: usize, guard_bytes: usize) -> Result<Self, SlotAllocatorError> {
        let slab = SlotAllocator::map(slots, guard_bytes + stack_bytes)?;
        slab.try_out()?;
        Ok(Self { slab, guard_bytes })
    }
}

// SAFETY: each stack is a slot of its own, which is zero when it is given out and reached by nobody else until the
// stack is dropped; its lowest pages are guarded.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, _zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let Self { slab, guard_bytes } = self;
        let stack_bytes = slab.slot_bytes - guard_bytes;
        if size > stack_bytes {
            wasmtime::bail!("a stack of {size} bytes; a slot holds {stack_bytes}");
        }
        let Some(slot) = slab.take() else {
            wasmtime::bail!("all {} places for stacks are taken", slab.slots);
        };
        slot.advise(0..*guard_bytes, Advice::GuardInstall)?;
        Ok(Box::new(SlotStack { slot, guard_bytes: *guard_bytes }))
    }
}

/// A stack that lies in a slot, above its guard.
struct SlotStack {
    slot: Slot,
    guard_bytes: usize,
}

// SAFETY: the range is accessible, the guarded range below it is not, and both are in the slot, which this owns.
unsafe impl StackMemory for SlotStack {
    fn top(&self) -> *mut u8 {
        // SAFETY: one past the slot's last byte.
        unsafe { self.slot.base().add(self.slot.slab.slot_bytes) }
    }

    fn range(&self) -> Range<usize> {
        self.guard_range().end.addr()..self.top().addr()
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let base = self.slot.base();
        // SAFETY: the guard is shorter than the slot.
        base..unsafe { base.add(self.guard_bytes) }
    }
}
