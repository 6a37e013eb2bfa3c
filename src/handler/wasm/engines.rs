//! The two engines for guests, and which guest runs on which.
//!
//! The **small** one is for guests that carry their program and little else, as compiled languages make them. Its
//! instances live in slots of the gateway's own mappings ([`slot_allocator`](super::slot_allocator)): a hundred thousand of them in one
//! process, at the price of an address check with each access to memory, and of copying a guest's data into each
//! instance.
//!
//! The **large** one is for guests that carry an interpreter, or that may use more memory than a slot holds. Its
//! instances have wasmtime's own mappings: their accesses are checked by the processor, which makes an interpreter a
//! quarter faster, and they share what they do not change of their data; but the kernel bounds their number.
//!
//! Where the system does not have what the small engine needs, all guests run on the large one.

use std::sync::Arc;

use wasmparser::{Parser, Payload};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, WasmBacktraceDetails};

use super::error::RuntimeError;
use super::limits::{Bound, InstanceLimit};
use super::slot_allocator::{Memories, SlotAllocatorError, Stacks};
use super::store::GuestState;
use crate::wit::bindings::ConnectionHandler;

/// The longest linear memory on the small engine: what a guest may use when nothing is configured (`memory_max`).
const SLOT_BYTES: usize = 16 << 20;

/// Data that a guest on the small engine carries at most: each instance has a copy. Compiled guests carry some
/// kilobytes, an interpreter with its library carries megabytes.
const DATA_BYTES_MAX: usize = 256 << 10;

/// Instances on the small engine, where the system gives address space for them: 4.6 TiB of the 128 TiB that a process
/// has. Twice as many were tried as the hundred thousand devices that one gateway is meant for.
const SLOTS_MAX: usize = 1 << 18;

/// What a guest's own calls may use of its stack on the small engine; more is a trap. Locals that have an address lie in
/// the guest's memory and not here, so a parser that recurses a hundred deep takes some ten KiB.
const GUEST_STACK_BYTES: usize = 96 << 10;

/// What a guest's calls of the gateway may use on top of it; one that took more would end the process at the guard. In
/// all tests, where the gateway is not optimised, no call has taken more than 40 KiB, the guest's part with it.
const HOST_STACK_BYTES: usize = 96 << 10;

/// A stack on the small engine.
pub(super) const STACK_BYTES: usize = GUEST_STACK_BYTES + HOST_STACK_BYTES;

/// Below each stack. Larger than any function's frame, which no guard page could catch that it steps over.
const STACK_GUARD_BYTES: usize = 64 << 10;

/// How many instances may live at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Of small guests; `None` where this system has no small engine.
    pub small: Option<usize>,
    /// Of large ones; of all, where there is no small engine.
    pub large: usize,
}

/// Where guests run.
#[derive(Clone)]
pub(super) struct Engines {
    small: Option<Class>,
    large: Class,
}

/// An engine, what its guests are linked with, and how many may live.
#[derive(Clone)]
pub(super) struct Class {
    /// In the log.
    pub(super) name: &'static str,
    pub(super) engine: Engine,
    pub(super) linker: Arc<Linker<GuestState>>,
    pub(super) instance_limit: InstanceLimit,
}

impl Engines {
    /// Starts what this system has.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Engine`]: not even the large engine can run here.
    pub(super) fn start() -> Result<Self, RuntimeError> {
        let large = Class::new("large", &mut common(), InstanceLimit::of_this_system())?;
        let few = large.instance_limit.instances_max();
        let small = match reserve(SLOTS_MAX, few, map) {
            Ok((slots, slabs)) => {
                if slots < SLOTS_MAX {
                    tracing::warn!(instances_max = slots, "address space is short: room for fewer small guests");
                }
                Some(Class::new("small", &mut dense(slabs), InstanceLimit::new(slots, Bound::Slots))?)
            }
            Err(error) => {
                tracing::warn!(instances_max = few, %error, "no room for small guests apart: all guests take mappings");
                None
            }
        };
        Ok(Self { small, large })
    }

    /// The same engines with hardly any room for instances: to compile with, where memory is bounded. Whether there is a
    /// small engine is up to whoever runs what is compiled.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Engine`]: an engine cannot run here.
    pub(super) fn to_compile(has_small: bool) -> Result<Self, RuntimeError> {
        let large = Class::new("large", &mut common(), InstanceLimit::of_this_system())?;
        let small = if has_small {
            let slabs = map(1).map_err(|error| RuntimeError::Engine(error.to_string()))?;
            Some(Class::new("small", &mut dense(slabs), InstanceLimit::new(1, Bound::Slots))?)
        } else {
            None
        };
        Ok(Self { small, large })
    }

    /// Only the large engine, with instances that count what they execute.
    ///
    /// # Errors
    ///
    /// As [`Engines::start`].
    pub(super) fn start_metered() -> Result<Self, RuntimeError> {
        let large = Class::new("large", common().consume_fuel(true), InstanceLimit::of_this_system())?;
        Ok(Self { small: None, large })
    }

    /// Only the large engine, as where the other cannot be.
    #[cfg(test)]
    pub(super) fn without_small() -> Self {
        Self { small: None, large: Class::new("large", &mut common(), InstanceLimit::of_this_system()).unwrap() }
    }

    /// How many instances may live at once.
    pub(super) fn capacity(&self) -> Capacity {
        Capacity {
            small: self.small.as_ref().map(|small| small.instance_limit.instances_max()),
            large: self.large.instance_limit.instances_max(),
        }
    }

    /// All of them, for the clock that bounds guests' time.
    pub(super) fn all(&self) -> impl Iterator<Item = &Engine> {
        self.small.iter().chain([&self.large]).map(|class| &class.engine)
    }

    /// Where a guest runs, by its bytes and by the memory it may use. What cannot be read goes to any engine, whose
    /// compiler says what is wrong with it.
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

/// What both engines have.
fn common() -> Config {
    let mut config = Config::new();
    // Async interfaces of the component model are not part of the guest interface, and only being ready for
    // them doubles the cost of a call.
    config.concurrency_support(false);
    config.epoch_interruption(true);
    // Files and lines in a failed guest's backtrace, if its file has them (DWARF); only such a guest pays for it.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    config
}

/// The small engine's: memories and stacks that are slots.
pub(super) fn dense((memories, stacks): (Memories, Stacks)) -> Config {
    let mut config = common();
    // Every access is checked against the memory's length: the code may count on no address beyond it.
    config.memory_reservation(0).memory_reservation_for_growth(0);
    config.memory_guard_size(0).guard_before_linear_memory(false);
    config.memory_may_move(false);
    // Sharing unchanged data takes a mapping of each instance, and memories that wasmtime has mapped itself.
    config.memory_init_cow(false);
    config.max_wasm_stack(GUEST_STACK_BYTES).async_stack_size(STACK_BYTES);
    config.with_host_memory(Arc::new(memories)).with_host_stack(Arc::new(stacks));
    config
}

/// Room for so many small instances.
fn map(slots: usize) -> Result<(Memories, Stacks), SlotAllocatorError> {
    let memories = Memories::map(slots, SLOT_BYTES)?;
    let stacks = Stacks::map(slots, STACK_BYTES, STACK_GUARD_BYTES)?;
    Ok((memories, stacks))
}

/// As many slots as can be had: `slots`, or half as often as it takes; but more than the `few` instances that there can
/// be without any.
fn reserve<T>(
    slots: usize,
    few: usize,
    map: impl Fn(usize) -> Result<T, SlotAllocatorError>,
) -> Result<(usize, T), SlotAllocatorError> {
    let mut slots = slots;
    loop {
        match map(slots) {
            Ok(mapped) => return Ok((slots, mapped)),
            Err(SlotAllocatorError::Refused { .. }) if slots / 2 > few => slots /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// The data that a component's modules carry for their memories.
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

    /// What carries little and may use little is small; more data or more memory makes it large.
    #[test]
    fn the_class_of_a_guest() {
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

    /// The guests that people copy are small.
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

    /// A system that refuses a large reservation is asked for less, down to what the large engine could do as well.
    #[test]
    fn as_many_slots_as_can_be_had() {
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

    /// Code compiled for one engine would be wrong on the other: it is kept apart.
    #[test]
    fn compiled_code_is_kept_by_engine() {
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
