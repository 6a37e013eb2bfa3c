//! Slot allocator for the linear memories and fiber stacks of small guests: one large mapping of slots for each.
//!
//! It owns the two mappings and unmaps each when its last slot is dropped. It never moves a memory and never reuses a
//! slot that it could not clear.
//!
//! The kernel limits the number of mappings of a process (`vm.max_map_count`, 65,530 by default). A memory or stack
//! that wasmtime maps itself takes one or more of them; a slot takes none: it is a range of a mapping that is readable
//! and writable from end to end. The pages after its memory are guard pages, which are marks in the page tables
//! (`MADV_GUARD_INSTALL`, Linux 6.13) and not mappings.
//!
//! Why not wasmtime's pooling allocator: each of its slots takes two mappings as soon as a memory may grow, and its
//! stacks two more, so a process is limited to 16,300 Rust instances with default kernel settings, and dropping
//! instances releases no mapping. With these slots the gateway has held 100,000 live instances in 89 mappings.
//! On-demand allocation uses [`MemoryCreator`] and [`StackCreator`]; the pooling allocator ignores both.
//!
//! The code that wasmtime generates confines a guest to its linear memory: it compares every address with the memory's
//! length, because the engine of these memories declares neither reserved nor guarded address space. Guard pages are
//! the second line of defence. They begin at the end of every memory and reach to the next multiple of
//! [`PAGE_TABLE_BYTES`], so that they need no page table of their own; [`MARGIN_BYTES`] of inaccessible address space
//! lie before and after all slots.
//!
//! Invariants of the unsafe code:
//! - a slot has at most one [`Slot`], and the owner of that [`Slot`] owns every pointer into it;
//! - a free slot is zero and has no guard pages: both are restored before it becomes free, and a slot that could not be
//!   restored is never reused;
//! - the mapping lives as long as its last slot.
#![expect(
    unsafe_code,
    reason = "MemoryCreator and StackCreator are unsafe traits, and mmap, mprotect and madvise are unsafe calls"
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

/// Inaccessible address space before and after the slots: twice the range of a 32-bit address with a 32-bit offset, so
/// that a wrong address cannot hit the gateway's own memory.
const MARGIN_BYTES: usize = 8 << 30;

/// Address range of one page table, with pages of 4 KiB. Guard pages end with the page table of their first page.
const PAGE_TABLE_BYTES: usize = 2 << 20;

/// Largest page size of the supported processors, and the page size of linear memory; sizes and boundaries of slots are
/// multiples of it.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Why this system cannot run the slot allocator.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotAllocatorError {
    /// The system does not provide that much address space: a limit of the process (`ulimit -v`), strict accounting
    /// (`vm.overcommit_memory` 2), or a processor with a small address space.
    #[error("cannot reserve {bytes} bytes of address space: {source}")]
    Refused { bytes: usize, source: io::Error },
    /// The kernel does not support guard pages.
    #[error("the kernel does not support guard pages within a mapping (MADV_GUARD_INSTALL, Linux 6.13): {0}")]
    NoGuards(#[source] io::Error),
    /// The kernel accepts the calls, with another effect than Linux.
    #[error("the kernel {0}")]
    KernelMismatch(&'static str),
}

/// Advice values of `madvise`, from Linux's `asm-generic/mman-common.h`; libc and rustix lack the guard values.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
enum Advice {
    /// Releases the pages; they read as zero. Guard pages stay.
    DontNeed = 4,
    /// Prevents huge pages: one would make 2 MiB resident for the few pages that a small instance touches.
    NoHugePage = 15,
    /// Makes the pages resident as a read does. Fails where a read would fault.
    PopulateRead = 22,
    /// Makes the pages guard pages: accesses fault, and their contents are discarded.
    GuardInstall = 102,
    /// Makes guard pages accessible again, and zero.
    GuardRemove = 103,
}

/// One mapping, divided into slots of equal size.
struct SlotAllocator {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    /// The first slot; at least [`MARGIN_BYTES`] into the mapping.
    base: NonNull<u8>,
    slot_bytes: usize,
    slots: usize,
    free: Mutex<Free>,
    /// Slots that could not be cleared and are not reused.
    leaked: AtomicUsize,
}

/// Free slots, in wasmtime's terms: warm ones were used before, cold ones never. Warm slots are taken first, since
/// their page tables exist already.
struct Free {
    warm: Vec<usize>,
    /// All slots from this index on are cold.
    first_cold: usize,
}

// SAFETY: its addresses do not change. Nothing is read or written through a `SlotAllocator`; only the owner of a slot
// accesses that slot. All mutable state is behind a lock or atomic.
unsafe impl Send for SlotAllocator {}
// SAFETY: as above.
unsafe impl Sync for SlotAllocator {}

impl fmt::Debug for SlotAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotAllocator")
            .field("slots", &self.slots)
            .field("slot_bytes", &self.slot_bytes)
            .finish_non_exhaustive()
    }
}

impl SlotAllocator {
    /// Reserves the address space. No page is resident before its first access.
    fn map(slots: usize, slot_bytes: usize) -> Result<Arc<Self>, SlotAllocatorError> {
        let refused = |source: rustix::io::Errno, bytes| SlotAllocatorError::Refused { bytes, source: source.into() };
        let margins_bytes = 2 * MARGIN_BYTES + PAGE_TABLE_BYTES;
        let Some((inner, bytes)) = slots
            .checked_mul(slot_bytes)
            .and_then(|inner| Some((inner, inner.checked_add(margins_bytes)?)))
            .filter(|_| slot_bytes > 0 && slot_bytes.is_multiple_of(PAGE_BYTES_MAX))
        else {
            return Err(refused(rustix::io::Errno::INVAL, usize::MAX));
        };
        // SAFETY: a new mapping at an address that the kernel chooses; no other code holds a pointer into it.
        let mapping = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::empty(), flags)
        };
        let mapping = mapping
            .and_then(|start| NonNull::new(start.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM))
            .map_err(|error| refused(error, bytes))?;
        // Slots are aligned to page tables, so that no two slots share one.
        let before = MARGIN_BYTES + mapping.as_ptr().wrapping_add(MARGIN_BYTES).align_offset(PAGE_TABLE_BYTES);
        // SAFETY: besides the slots, the mapping has two margins and one page table's bytes for the alignment, so this
        // address is within it.
        let base = unsafe { mapping.add(before) };
        // From here on, dropping it unmaps the mapping.
        let allocator = Self {
            mapping,
            mapping_bytes: bytes,
            base,
            slot_bytes,
            slots,
            free: Mutex::new(Free { warm: Vec::new(), first_cold: 0 }),
            leaked: AtomicUsize::new(0),
        };
        // SAFETY: the `inner` bytes from `base` on are within the mapping, before its second margin.
        unsafe { rustix::mm::mprotect(base.as_ptr().cast(), inner, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|error| refused(error, bytes))?;
        // SAFETY: the same bytes; the page size does not affect their contents.
        match unsafe { advise(base.as_ptr(), inner, Advice::NoHugePage) } {
            // A kernel without huge pages rejects this advice and does not need it.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                Err(SlotAllocatorError::Refused { bytes, source: error })
            }
            _ => Ok(Arc::new(allocator)),
        }
    }

    /// Takes a free slot; `None` when all are in use.
    fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut free = self.free.lock();
        let index = free.warm.pop().or_else(|| {
            let index = free.first_cold;
            (index < self.slots).then(|| free.first_cold = index + 1)?;
            Some(index)
        })?;
        Some(Slot { allocator: Arc::clone(self), index })
    }

    /// Checks on one slot that the kernel guards, opens, clears and zeroes pages as this file assumes.
    fn try_out(self: &Arc<Self>) -> Result<(), SlotAllocatorError> {
        let page = 0..PAGE_BYTES_MAX;
        let slot =
            self.take().ok_or(SlotAllocatorError::KernelMismatch("provides no address space for a single slot"))?;
        slot.advise(page.clone(), Advice::GuardInstall).map_err(SlotAllocatorError::NoGuards)?;
        if slot.advise(page.clone(), Advice::PopulateRead).is_ok() {
            return Err(SlotAllocatorError::KernelMismatch("allows reads of a guard page"));
        }
        slot.advise(page.clone(), Advice::GuardRemove).map_err(SlotAllocatorError::NoGuards)?;
        if slot.advise(page, Advice::PopulateRead).is_err() {
            return Err(SlotAllocatorError::KernelMismatch("keeps a page inaccessible after the removal of its guard"));
        }
        let index = slot.index;
        // SAFETY: this function owns the slot, and the kernel has just populated its first page.
        unsafe { slot.base().write_volatile(1) };
        drop(slot);
        let again = self.take().filter(|again| again.index == index);
        let slot = again.ok_or(SlotAllocatorError::KernelMismatch("does not clear a dropped slot"))?;
        // SAFETY: as above; without guard pages the whole slot is readable.
        if unsafe { slot.base().read_volatile() } != 0 {
            return Err(SlotAllocatorError::KernelMismatch("does not zero released pages"));
        }
        Ok(())
    }

    #[cfg(test)]
    fn taken(&self) -> usize {
        let free = self.free.lock();
        free.first_cold - free.warm.len()
    }
}

impl Drop for SlotAllocator {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping of `map`. No slot is left, since each holds a reference to the allocator.
        if let Err(error) = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) } {
            tracing::error!(%error, "cannot unmap the slots of guests");
        }
    }
}

/// Calls `madvise(2)`.
///
/// # Safety
///
/// The caller owns the pages, and no other code relies on the contents or accessibility that the advice changes.
unsafe fn advise(start: *mut u8, bytes: usize, advice: Advice) -> io::Result<()> {
    // SAFETY: the caller's contract.
    if unsafe { libc::madvise(start.cast(), bytes, advice as libc::c_int) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Exclusive ownership of one slot. Dropping it clears and frees the slot.
#[derive(Debug)]
struct Slot {
    allocator: Arc<SlotAllocator>,
    index: usize,
}

impl Slot {
    fn base(&self) -> *mut u8 {
        // SAFETY: `index` is below `slots`, so the slot's first byte is within the mapping.
        unsafe { self.allocator.base.as_ptr().add(self.index * self.allocator.slot_bytes) }
    }

    /// Calls `madvise(2)` for a part of this slot.
    fn advise(&self, part: Range<usize>, advice: Advice) -> io::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        if part.end > self.allocator.slot_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{part:?} is not within a slot")));
        }
        // SAFETY: the part is within the slot, which the caller owns. The owner guards and releases only pages beyond
        // every length that it has reported to wasmtime, so no advice removes access that wasmtime relies on.
        unsafe { advise(self.base().add(part.start), part.len(), advice) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let whole = 0..self.allocator.slot_bytes;
        // The kernel skips absent page tables: the cost grows with the used pages, not with the slot size.
        let cleared =
            self.advise(whole.clone(), Advice::GuardRemove).and_then(|()| self.advise(whole, Advice::DontNeed));
        match cleared {
            Ok(()) => self.allocator.free.lock().warm.push(self.index),
            Err(error) => {
                let leaked = self.allocator.leaked.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(%error, leaked, "cannot clear the slot of an instance: the slot is not reused");
            }
        }
    }
}

/// [`MemoryCreator`] of the small engine: linear memories in slots.
#[derive(Debug)]
pub(super) struct Memories {
    allocator: Arc<SlotAllocator>,
    /// Longest memory in a slot, in bytes; there is always space for guard pages after it.
    capacity: usize,
}

impl Memories {
    /// Maps slots for memories of up to `capacity` bytes each.
    ///
    /// # Errors
    ///
    /// [`SlotAllocatorError`].
    pub(super) fn map(slots: usize, capacity: usize) -> Result<Self, SlotAllocatorError> {
        let allocator = SlotAllocator::map(slots, capacity.next_multiple_of(PAGE_TABLE_BYTES) + PAGE_TABLE_BYTES)?;
        allocator.try_out()?;
        Ok(Self { allocator, capacity })
    }

    fn memory(&self, minimum: usize, maximum: Option<usize>) -> Result<Box<dyn LinearMemory>, String> {
        let Self { allocator, capacity } = self;
        if maximum == Some(0) {
            return Ok(Box::new(EmptyMemory(Arc::clone(allocator))));
        }
        if minimum > *capacity {
            return Err(format!("expected a memory of at most {capacity} bytes, the size of a slot; came {minimum}"));
        }
        let slot = allocator.take().ok_or_else(|| format!("all {} memory slots are in use", allocator.slots))?;
        let mut memory = SlotMemory { slot, length: 0, guarded_to: 0, capacity: *capacity };
        memory.guard_from(minimum).map_err(|error| format!("cannot install the guard pages of a memory: {error}"))?;
        memory.length = minimum;
        Ok(Box::new(memory))
    }
}

// SAFETY: each memory has a slot of its own, which is zero at first, is accessible over the reported length, and is
// accessed by no other code until the memory is dropped.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        // An engine that relies on either would omit the bounds checks that keep a guest in its slot.
        if reserved_size_in_bytes.is_some_and(|reserved| reserved > 0) || guard_size_in_bytes > 0 {
            return Err(format!(
                "expected an engine without reserved and guarded address space; came {reserved_size_in_bytes:?} \
                 reserved bytes and {guard_size_in_bytes} guarded bytes"
            ));
        }
        self.memory(minimum, maximum)
    }
}

/// A linear memory in a slot.
struct SlotMemory {
    slot: Slot,
    length: usize,
    /// End of the guard pages that begin at `length`.
    guarded_to: usize,
    capacity: usize,
}

impl SlotMemory {
    /// Installs guard pages after this length, where there are none yet.
    fn guard_from(&mut self, length: usize) -> io::Result<()> {
        let first = length.next_multiple_of(PAGE_BYTES_MAX);
        let end = (first + 1).next_multiple_of(PAGE_TABLE_BYTES);
        self.slot.advise(first.max(self.guarded_to)..end, Advice::GuardInstall)?;
        self.guarded_to = self.guarded_to.max(end);
        Ok(())
    }
}

// SAFETY: `byte_size` bytes from `as_ptr` on are accessible and never move; they are within the owned slot.
unsafe impl LinearMemory for SlotMemory {
    fn byte_size(&self) -> usize {
        self.length
    }

    fn byte_capacity(&self) -> usize {
        self.capacity
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        if new_size < self.length || new_size > self.capacity {
            wasmtime::bail!(
                "expected growth from {} to at most {} bytes, the size of a slot; came {new_size}",
                self.length,
                self.capacity
            );
        }
        // New guard pages first: if the removal of the old ones fails, the memory is unchanged.
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

/// A memory with a maximum of zero pages, as some compilers declare; it takes no slot. Its address is in the
/// inaccessible margin after all slots.
struct EmptyMemory(Arc<SlotAllocator>);

// SAFETY: its length is zero, and its address never moves.
unsafe impl LinearMemory for EmptyMemory {
    fn byte_size(&self) -> usize {
        0
    }

    fn byte_capacity(&self) -> usize {
        0
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        wasmtime::bail!("expected no growth of a memory with a maximum of zero; came {new_size} bytes")
    }

    fn as_ptr(&self) -> *mut u8 {
        let SlotAllocator { base, slots, slot_bytes, .. } = &*self.0;
        // SAFETY: a margin follows the slots, so this address is within the mapping.
        unsafe { base.as_ptr().add(slots * slot_bytes) }
    }
}

/// [`StackCreator`] of the small engine: fiber stacks in slots.
#[derive(Debug)]
pub(super) struct Stacks {
    allocator: Arc<SlotAllocator>,
    guard_bytes: usize,
}

impl Stacks {
    /// Maps slots for stacks of `stack_bytes` each, with `guard_bytes` of guard pages below each.
    ///
    /// # Errors
    ///
    /// [`SlotAllocatorError`].
    pub(super) fn map(slots: usize, stack_bytes: usize, guard_bytes: usize) -> Result<Self, SlotAllocatorError> {
        let allocator = SlotAllocator::map(slots, guard_bytes + stack_bytes)?;
        allocator.try_out()?;
        Ok(Self { allocator, guard_bytes })
    }
}

// SAFETY: each stack has a slot of its own, which is zero at first and is accessed by no other code until the stack is
// dropped; its lowest pages are guard pages.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, _zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let Self { allocator, guard_bytes } = self;
        let stack_bytes = allocator.slot_bytes - guard_bytes;
        if size > stack_bytes {
            wasmtime::bail!("expected a stack of at most {stack_bytes} bytes, the size of a slot; came {size}");
        }
        let Some(slot) = allocator.take() else {
            wasmtime::bail!("all {} stack slots are in use", allocator.slots);
        };
        slot.advise(0..*guard_bytes, Advice::GuardInstall)?;
        Ok(Box::new(SlotStack { slot, guard_bytes: *guard_bytes }))
    }
}

/// A fiber stack in a slot, above its guard pages.
struct SlotStack {
    slot: Slot,
    guard_bytes: usize,
}

// SAFETY: the range is accessible, the guard range below it is not, and both are within the owned slot.
unsafe impl StackMemory for SlotStack {
    fn top(&self) -> *mut u8 {
        // SAFETY: one past the slot's last byte.
        unsafe { self.slot.base().add(self.slot.allocator.slot_bytes) }
    }

    fn range(&self) -> Range<usize> {
        self.guard_range().end.addr()..self.top().addr()
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let base = self.slot.base();
        // SAFETY: the guard range is shorter than the slot.
        base..unsafe { base.add(self.guard_bytes) }
    }
}
