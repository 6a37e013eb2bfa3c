//! The two wasmtime engines, and the choice of the engine of a guest.
//!
//! The **small** engine is for guests with little static data, as compiled languages produce them. Its instances use
//! slots of the gateway's own mappings ([`slot_allocator`](super::slot_allocator)): a hundred thousand instances in one
//! process, at the cost of a bounds check at each memory access, and of copying a guest's data segments into each
//! instance.
//!
//! The **large** engine is for guests with an interpreter, and for guests with a memory limit above the slot size. Its
//! instances use wasmtime's own mappings: the processor checks their accesses by guard pages, which makes an
//! interpreter a quarter faster, and they share unmodified data (copy on write); but the kernel limits their number.
//!
//! Where the system does not support the small engine, all guests run on the large one.

use std::sync::Arc;

use wasmparser::{Parser, Payload};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, WasmBacktraceDetails};

use super::error::RuntimeError;
use super::limits::{Bound, InstanceLimit};
use super::slot_allocator::{Memories, SlotAllocatorError, Stacks};
use super::store::GuestState;
use crate::wit::bindings::ConnectionHandler;

/// Longest linear memory on the small engine, in bytes: the default of `memory_max`.
const SLOT_BYTES: usize = 16 << 20;

/// Maximum size of the data segments of a guest on the small engine, in bytes: each instance has a copy. Compiled
/// guests have some kilobytes, an interpreter with its library has megabytes.
const DATA_BYTES_MAX: usize = 256 << 10;

/// Maximum number of instances on the small engine, which take 4.6 TiB of the 128 TiB of address space of a process.
/// The design target of one gateway is a hundred thousand devices; twice that number was tested.
pub(crate) const SLOTS_MAX: usize = 1 << 18;

/// Stack of the guest's own calls on the small engine, in bytes; more is a trap. Locals with an address are in the
/// linear memory and not here, so a parser that recurses a hundred levels deep uses some ten KiB.
const GUEST_STACK_BYTES: usize = 96 << 10;

/// Additional stack of host functions, in bytes; more would end the process at the guard. In all tests, with an
/// unoptimised gateway, no call has used more than 40 KiB, including the guest's part.
const HOST_STACK_BYTES: usize = 96 << 10;

/// Fiber stack on the small engine, in bytes.
pub(super) const STACK_BYTES: usize = GUEST_STACK_BYTES + HOST_STACK_BYTES;

/// Guard range below each stack, in bytes. Larger than the frame of any function: a larger frame could skip the guard.
const STACK_GUARD_BYTES: usize = 64 << 10;

/// Maximum numbers of live instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// On the small engine; `None` without a small engine.
    pub small: Option<usize>,
    /// On the large engine; of all guests if there is no small engine.
    pub large: usize,
}

#[derive(Clone)]
pub(super) struct Engines {
    small: Option<Class>,
    large: Class,
}

/// An engine with its linker and its instance limit.
#[derive(Clone)]
pub(super) struct Class {
    pub(super) name: &'static str,
    pub(super) engine: Engine,
    pub(super) linker: Arc<Linker<GuestState>>,
    pub(super) instance_limit: InstanceLimit,
}

impl Engines {
    /// Starts the engines that this system supports.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Engine`]: the large engine cannot run on this system.
    pub(super) fn start() -> Result<Self, RuntimeError> {
        let large = Class::new("large", &mut common(), InstanceLimit::of_this_system())?;
        let large_max = large.instance_limit.instances_max();
        let small = match reserve(SLOTS_MAX, large_max, map) {
            Ok((slots, creators)) => {
                if slots < SLOTS_MAX {
                    tracing::warn!(instances_max = slots, "address space limited: fewer instances on the small engine");
                }
                Some(Class::new("small", &mut dense(creators), InstanceLimit::new(slots, Bound::Slots))?)
            }
            Err(error) => {
                let instances_max = large_max;
                tracing::warn!(instances_max, %error, "small engine unavailable: all guests run on the large engine");
                None
            }
        };
        Ok(Self { small, large })
    }

    /// The same engines with capacity for very few instances: for the compiler process, where memory is limited.
    /// `has_small`: whether the runtime that will load the compiled components has a small engine.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Engine`]: an engine cannot run on this system.
    pub(super) fn to_compile(has_small: bool) -> Result<Self, RuntimeError> {
        let large = Class::new("large", &mut common(), InstanceLimit::of_this_system())?;
        let small = if has_small {
            let creators = map(1).map_err(|error| RuntimeError::Engine(error.to_string()))?;
            Some(Class::new("small", &mut dense(creators), InstanceLimit::new(1, Bound::Slots))?)
        } else {
            None
        };
        Ok(Self { small, large })
    }

    /// Only the large engine, with fuel metering.
    ///
    /// # Errors
    ///
    /// As [`Engines::start`].
    pub(super) fn start_metered() -> Result<Self, RuntimeError> {
        let large = Class::new("large", common().consume_fuel(true), InstanceLimit::of_this_system())?;
        Ok(Self { small: None, large })
    }

    /// Only the large engine, as on a system without support for the small one.
    #[cfg(test)]
    pub(super) fn without_small() -> Self {
        Self { small: None, large: Class::new("large", &mut common(), InstanceLimit::of_this_system()).unwrap() }
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity {
            small: self.small.as_ref().map(|small| small.instance_limit.instances_max()),
            large: self.large.instance_limit.instances_max(),
        }
    }

    /// All engines, for the epoch ticker.
    pub(super) fn all(&self) -> impl Iterator<Item = &Engine> {
        self.small.iter().chain([&self.large]).map(|class| &class.engine)
    }

    /// Chooses the engine by the component's data segments and memory limit. For an unreadable file any engine will do:
    /// its compiler reports the error.
    pub(super) fn class_of(&self, component: &[u8], memory_bytes_max: usize) -> &Class {
        match &self.small {
            Some(small) if memory_bytes_max <= SLOT_BYTES && data_bytes(component) <= DATA_BYTES_MAX => small,
            _ => &self.large,
        }
    }
}

impl Class {
    fn new(name: &'static str, config: &mut Config, instance_limit: InstanceLimit) -> Result<Self, RuntimeError> {
        let failed = |error: wasmtime::Error| RuntimeError::Engine(format!("{error:#}"));
        let engine = Engine::new(config).map_err(failed)?;
        let mut linker = Linker::new(&engine);
        ConnectionHandler::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
            .and_then(|()| wasmtime_wasi::p2::add_to_linker_async(&mut linker))
            .map_err(failed)?;
        Ok(Self { name, engine, linker: Arc::new(linker), instance_limit })
    }
}

/// Configuration of both engines.
fn common() -> Config {
    let mut config = Config::new();
    // The guest interface has no async functions of the component model, and support for them doubles the cost of a
    // call.
    config.concurrency_support(false);
    config.epoch_interruption(true);
    // Files and lines in the backtrace of a failed guest, if its file has DWARF; other guests do not pay for it.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config
}

/// Configuration of the small engine: memories and stacks in slots.
pub(super) fn dense((memories, stacks): (Memories, Stacks)) -> Config {
    let mut config = common();
    // Forces a bounds check at every access: generated code may rely on no address beyond the memory's length.
    config.memory_reservation(0).memory_reservation_for_growth(0);
    config.memory_guard_size(0).guard_before_linear_memory(false);
    config.memory_may_move(false);
    // Copy on write needs a mapping for each instance, and memories that wasmtime maps itself.
    config.memory_init_cow(false);
    config.max_wasm_stack(GUEST_STACK_BYTES).async_stack_size(STACK_BYTES);
    config.with_host_memory(Arc::new(memories)).with_host_stack(Arc::new(stacks));
    config
}

/// Maps the memory and stack slots of the small engine.
fn map(slots: usize) -> Result<(Memories, Stacks), SlotAllocatorError> {
    let memories = Memories::map(slots, SLOT_BYTES)?;
    let stacks = Stacks::map(slots, STACK_BYTES, STACK_GUARD_BYTES)?;
    Ok((memories, stacks))
}

/// Maps as many slots as the system allows: `slots`, halved until the mapping succeeds, but always more than
/// `large_max`, the number of instances on the large engine.
fn reserve<T>(
    slots: usize,
    large_max: usize,
    map: impl Fn(usize) -> Result<T, SlotAllocatorError>,
) -> Result<(usize, T), SlotAllocatorError> {
    let mut slots = slots;
    loop {
        match map(slots) {
            Ok(mapped) => return Ok((slots, mapped)),
            Err(SlotAllocatorError::Refused { .. }) if slots / 2 > large_max => slots /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Total size of the data segments of a component's modules, in bytes.
fn data_bytes(component: &[u8]) -> usize {
    let sections = Parser::new(0)
        .parse_all(component)
        .map_while(Result::ok)
        .filter_map(|payload| if let Payload::DataSection(section) = payload { Some(section) } else { None });
    sections.flat_map(|section| section.into_iter().map_while(Result::ok)).map(|data| data.data.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Little data and a small memory limit select the small engine; more of either selects the large one.
    #[test]
    fn engine_of_a_guest() {
        let engines = Engines::start().unwrap();
        let class = |data: usize, memory_bytes_max| {
            let text = format!("(component (core module (memory 9) (data (i32.const 0) \"{}\")))", "x".repeat(data));
            engines.class_of(&wat::parse_str(text).unwrap(), memory_bytes_max).name
        };
        assert_eq!(class(100, SLOT_BYTES), "small");
        assert_eq!(class(DATA_BYTES_MAX, SLOT_BYTES), "small");
        assert_eq!(class(DATA_BYTES_MAX + 1, SLOT_BYTES), "large");
        assert_eq!(class(100, SLOT_BYTES + 1), "large");
        assert_eq!(Engines::without_small().class_of(b"", 1).name, "large");
    }

    /// The example guests run on the small engine.
    #[test]
    fn guests_of_compiled_languages_are_small() {
        let engines = Engines::start().unwrap();
        for entry in std::fs::read_dir("guests/dist").unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "wasm") {
                let class = engines.class_of(&std::fs::read(&file).unwrap(), SLOT_BYTES);
                assert_eq!(class.name, "small", "{file:?}");
            }
        }
    }

    /// A refused reservation is halved, down to the capacity of the large engine.
    #[test]
    fn refused_reservations_are_halved() {
        let refuse_above = |limit| {
            move |slots| {
                let source = io::ErrorKind::OutOfMemory.into();
                if slots > limit { Err(SlotAllocatorError::Refused { bytes: slots, source }) } else { Ok(()) }
            }
        };
        assert_eq!(reserve(1024, 100, refuse_above(2000)).unwrap().0, 1024);
        assert_eq!(reserve(1024, 100, refuse_above(300)).unwrap().0, 256);
        assert!(matches!(reserve(1024, 100, refuse_above(127)), Err(SlotAllocatorError::Refused { bytes: 128, .. })));
        let old_kernel = |_| Err::<(), _>(SlotAllocatorError::NoGuards(io::ErrorKind::InvalidInput.into()));
        assert!(matches!(reserve(1024, 100, old_kernel), Err(SlotAllocatorError::NoGuards(_))));
    }

    /// Code compiled for one engine would be wrong on the other: their compatibility hashes differ.
    #[test]
    fn compiled_code_is_cached_by_engine() {
        use std::hash::{DefaultHasher, Hash, Hasher};

        let hash = |engine: &Engine| {
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let engines = Engines::start().unwrap();
        let hashes: Vec<u64> = engines.all().map(hash).collect();
        let [small, large] = hashes[..] else { panic!("{hashes:?}") };
        assert_ne!(small, large);
    }
}
